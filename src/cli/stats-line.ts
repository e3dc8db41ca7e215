/** The line of statistics under a generated text. */
import type { GenerationResult } from '../api/generation.js';
import { formatBytes } from '../io/progress.js';

/**
 * `[prompt 12 tokens at 900/s | generated 200 at 850/s | ffn exact | native (avx512-vnni), 2 threads | sparsity 89.2 % ...]`
 * @param gpuNote what `--gpu` came to; null when it was not asked for
 */
export function statsLine({ stats, stopReason, seed }: GenerationResult, gpuNote: string | null): string {
  const parts = [
    `prompt ${stats.promptTokens} tokens at ${rate(stats.promptTokensPerSecond)}${known(stats.cachedPromptTokens)}`,
    `generated ${stats.generatedTokens} at ${rate(stats.decodeTokensPerSecond)}${STOP_NOTES[stopReason]}`,
    ...(stats.draftTokens > 0 ? [`drafts ${stats.acceptedTokens} of ${stats.draftTokens} right`] : []),
    `ffn ${stats.ffnMode}`,
    `${stats.kernels}, ${stats.threads} ${stats.threads === 1 ? 'thread' : 'threads'}`,
    `sparsity ${percent(stats.sparsity)}`,
  ];
  if (stats.gpu) {
    const failed = stats.gpu.failure ? `, lost: ${stats.gpu.failure}` : '';
    parts.push(`gpu ${stats.gpu.provider} (${formatBytes(stats.gpu.bytes)}${failed})`);
  } else if (gpuNote) parts.push(`gpu ${gpuNote}`);
  if (stats.predictedSparsity !== null) parts.push(`predicted ${percent(stats.predictedSparsity)}`);
  if (stats.recall !== null) parts.push(`recall ${percent(stats.recall)}`);
  if (stats.weightedRecall !== null) parts.push(`weighted ${percent(stats.weightedRecall)}`);
  parts.push(`${formatBytes(stats.bytesPerToken)}/token`, `seed ${seed}`);
  return `[${parts.join(' | ')}]`;
}

const STOP_NOTES = { stop: '', length: ' (length limit)', abort: ' (stopped)' } as const;

const known = (tokens: number): string => (tokens > 0 ? `, ${tokens} of them known` : '');

const rate = (tokensPerSecond: number): string =>
  tokensPerSecond === 0 ? '-' : `${tokensPerSecond.toFixed(tokensPerSecond < 100 ? 2 : 0)}/s`;

export const percent = (share: number): string => `${(100 * share).toFixed(2)} %`;
