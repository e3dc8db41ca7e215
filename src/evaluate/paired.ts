/**
 * Paired measurements: contestants take turns, A B A B ..., in one process, so that whatever the machine is
 * doing meets all of them alike. Compare medians, and compare contestants by the ratio inside each round.
 */

export interface Contestant<T> {
  run(round: number): Promise<T>;
}

export interface AlternateOptions {
  /** Measured turns of each contestant. */
  rounds: number;
  /** Turns before that, not recorded: pages are touched, code is compiled. @default 1 */
  warmups?: number;
  /** After each round, measured or not. */
  onRound?: (round: number) => Promise<void> | void;
  signal?: AbortSignal;
}

/** @returns per contestant its results, one a round */
export async function alternate<T>(
  contestants: readonly Contestant<T>[],
  options: AlternateOptions,
): Promise<T[][]> {
  const { rounds, warmups = 1, onRound, signal } = options;
  const results: T[][] = contestants.map(() => []);
  for (let round = -warmups; round < rounds; round++) {
    for (const [index, contestant] of contestants.entries()) {
      signal?.throwIfAborted();
      const result = await contestant.run(round);
      if (round >= 0) results[index].push(result);
    }
    await onRound?.(round);
  }
  return results;
}

/** @throws RangeError when there is no value */
export function median(values: readonly number[]): number {
  if (values.length === 0) throw new RangeError('median of nothing');
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Sample standard deviation; 0 for a single value. */
export function deviation(values: readonly number[]): number {
  if (values.length < 2) return 0;
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  return Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / (values.length - 1));
}

/** Median over rounds of a/b: what pairing is for. */
export const pairedRatio = (a: readonly number[], b: readonly number[]): number =>
  median(a.map((value, round) => value / b[round]));
