/** Which blocks an exported file of architecture `llama` can hold. */
import { HybridError } from '../errors.js';
import { describeBlock, isLlamaBlock } from '../model/block.js';
import type { ModelConfig } from '../model/types.js';

/** The window that all layers have; null: none, or several. */
export function commonWindow({ block: { layers } }: ModelConfig): number | null {
  const first = layers?.[0];
  const same = layers?.every(({ rotates, window }) => rotates && window === first?.window) ?? false;
  return same ? (first?.window ?? null) : null;
}

/**
 * The first part of a model that `llama` has no place for; null: it has one for all. Biases, and a window that
 * all layers have, are in the file.
 */
export function beyondLlama(config: ModelConfig): string | null {
  const { block, ropeScaling } = config;
  const layers = commonWindow(config) === null ? block.layers : null;
  const rest: ModelConfig = {
    ...config,
    qkvBias: false,
    outputBias: false,
    block: { ...block, ffn: { ...block.ffn, bias: false }, layers },
  };
  if (ropeScaling?.type === 'dynamic' || ropeScaling?.type === 'longrope')
    return `${ropeScaling.type} rope scaling`;
  return isLlamaBlock(rest) ? null : describeBlock(rest)[0];
}

/** @throws HybridError MODEL_UNSUPPORTED */
export function requireLlama(config: ModelConfig): void {
  const what = beyondLlama(config);
  if (what === null) return;
  throw new HybridError(
    'MODEL_UNSUPPORTED',
    `${config.architecture} cannot be exported as a GGUF file of architecture llama: ${what}`,
    { hint: 'Exports write models of the Llama family. Use the model’s own GGUF file, or the folder.' },
  );
}
