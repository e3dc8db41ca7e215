/**
 * What the engine computes of what block.ts describes. The one place that knows; it goes when the engine's forward
 * pass works from the description.
 */
import { ModelError } from '../errors.js';
import { LLAMA_BLOCK, smallestWindow } from './block.js';
import type { ModelConfig } from './types.js';

/** null: nothing. */
function firstUnsupported({ block, ends, ropeScaling }: ModelConfig): string | null {
  const { norm, parallel, attention, ffn, layers } = block;
  if (ffn.experts) return 'mixtures of experts';
  if (!ffn.gated) return 'FFNs without a gate';
  if (ffn.norm || attention.outputNorm) return 'norms before the down and output projections';
  if (ffn.bias) return 'biases in the FFN';
  if (norm.kind !== 'rms' || norm.bias) return 'LayerNorm';
  if (norm.place !== 'before') return 'norms behind attention and FFN';
  if (parallel) return 'attention and FFN in parallel';
  if (attention.headNorm !== 'none') return 'norms of queries and keys';
  if (attention.scale !== null) return 'an attention scale of its own';
  if (attention.rotaryDims !== null) return 'positions that rotate a part of each head, or none';
  if (layers?.some(({ rotates }) => !rotates)) return 'layers without positions';
  if (ends.learnedPositions) return 'learned positions';
  if (ends.embeddingSize !== null) return 'projected embeddings';
  if (!ends.finalNorm) return 'a head without a norm before it';
  if (ropeScaling?.type === 'yarn' || ropeScaling?.type === 'dynamic')
    return `rope scaling ${ropeScaling.type}`;
  return null;
}

/**
 * The config as the engine may run it: within its window, sliding attention equals full attention, so the
 * smallest window becomes the context limit.
 * @throws ModelError MODEL_UNSUPPORTED, naming the first part that the engine does not compute
 */
export function configForEngine(config: ModelConfig, name: string): ModelConfig {
  const what = firstUnsupported(config);
  if (what !== null) {
    throw new ModelError(
      'MODEL_UNSUPPORTED',
      `${name}: ${config.architecture}: running ${what} is not supported yet`,
      {
        hint: 'convert, inspect and estimate take this model; see docs/models.md for those that run.',
      },
    );
  }
  const window = smallestWindow(config);
  if (window === null) return config;
  return { ...config, maxContext: window, block: LLAMA_BLOCK };
}
