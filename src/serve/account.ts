/** What a request took, as answers report it: OpenAI's usage, and speed and sparsity beside it. */
import type { LayerDensity } from '../engine/stats.js';
import type { BackendResult } from './backend.js';

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details: { cached_tokens: number };
}

/** @param prompts token counts of the prompts; choices of one prompt share it */
export function usageOf(prompts: readonly number[], results: readonly BackendResult[]): Usage {
  const sum = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0);
  const prompt = sum(prompts);
  const completion = sum(results.map((result) => result.tokens.length));
  const perPrompt = results.length / prompts.length;
  // Of a prompt's choices the first computes it; what later ones share is no longer the prompt's cost.
  const cached = results
    .filter((_, i) => i % perPrompt === 0)
    .map((result) => result.stats.cachedPromptTokens);
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    prompt_tokens_details: { cached_tokens: sum(cached) },
  };
}

/**
 * Means over choices. Shares are fractions; null: not measured.
 * @param withLayers also the layers of every choice
 */
export function detailsOf(results: readonly BackendResult[], withLayers = false): object {
  const stats = results.map((result) => result.stats);
  const mean = (pick: (s: BackendResult['stats']) => number | null): number | null => {
    const known = stats.map(pick).filter((value): value is number => value !== null);
    return known.length > 0 ? known.reduce((a, b) => a + b, 0) / known.length : null;
  };
  return {
    timings: {
      prompt_per_second: mean((s) => s.promptTokensPerSecond),
      predicted_per_second: mean((s) => s.decodeTokensPerSecond),
      kernels: stats[0].kernels,
      threads: stats[0].threads,
    },
    sparsity: {
      ffn_mode: stats[0].ffnMode,
      sparsity: mean((s) => s.sparsity),
      predicted_sparsity: mean((s) => s.predictedSparsity),
      recall: mean((s) => s.recall),
      weighted_recall: mean((s) => s.weightedRecall),
      bytes_per_token: mean((s) => s.bytesPerToken),
    },
    ...(withLayers ? { layers: results.map((result) => describeLayers(result.layers)) } : {}),
  };
}

/** What a stream says of choice `index` while it is written: means over its last `tokens` tokens. */
export const layersNow = (index: number, layers: readonly LayerDensity[], tokens: number): object => ({
  layers_now: { index, tokens, layers: describeLayers(layers) },
});

const describeLayers = (layers: readonly LayerDensity[]): object[] =>
  layers.map((layer, index) => ({
    layer: index,
    sparsity: layer.sparsity,
    predicted_sparsity: layer.predictedSparsity,
    recall: layer.recall,
    candidates: layer.candidates,
    gated: layer.gated,
  }));
