/** The threshold shift: ReLU becomes FATReLU with the largest threshold that costs at most so much perplexity. */
import type { Tokens } from './lanes.js';
import type { Measurement, Trainer } from './trainer.js';

export interface ShiftPoint {
  threshold: number;
  perplexity: number;
  sparsity: number;
}

export interface ShiftSearch {
  /** Thresholds to try, rising. */
  thresholds: readonly number[];
  /** Most that perplexity may rise over the threshold that the model has, as a share. */
  maxIncrease: number;
  signal?: AbortSignal;
  onProgress?: (done: number, total: number) => void;
}

/** Of a model whose gates are a few units wide: from nothing to clearly too much. */
export const THRESHOLDS: readonly number[] = [0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.16, 0.2, 0.3, 0.5];
export const MAX_INCREASE = 0.0025;

/**
 * @param from the threshold that the model has
 * @returns the point chosen, and all that were measured: the first one beyond the limit is the last
 */
export async function searchShift(
  trainer: Trainer,
  heldOut: readonly (Tokens & { scored: Float32Array })[],
  from: number,
  search: ShiftSearch,
): Promise<{ chosen: ShiftPoint; measured: Measurement; points: ShiftPoint[] }> {
  const tried = [from, ...search.thresholds.filter((t) => t > from)];
  const points: ShiftPoint[] = [];
  let chosen: { point: ShiftPoint; measured: Measurement } | null = null;
  for (const [i, threshold] of tried.entries()) {
    search.signal?.throwIfAborted();
    search.onProgress?.(i, tried.length);
    const measured = await trainer.measure(heldOut, threshold);
    const point = { threshold, perplexity: measured.perplexity, sparsity: measured.sparsity };
    points.push(point);
    if (chosen && point.perplexity > points[0].perplexity * (1 + search.maxIncrease)) break;
    chosen = { point, measured };
  }
  search.onProgress?.(tried.length, tried.length);
  return { chosen: chosen!.point, measured: chosen!.measured, points };
}
