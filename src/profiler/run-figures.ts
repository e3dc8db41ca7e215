/** Time and memory of a profiling run. */

/** What both ways of profiling give. */
export interface RunFigures {
  memory: { limitBytes: number; plannedBytes: number; peakBytes: number; diskBytes: number };
  /** By stage: text, record, fit, thresholds. */
  seconds: Record<string, number>;
  /** Tokens recorded a second, in this run; null when an earlier one had recorded all. */
  recordTokensPerSecond: number | null;
}

export const runFigures = (
  limitBytes: number,
  { bytes, diskBytes }: { bytes: number; diskBytes: number },
  clock: Stopwatch,
  recordTokensPerSecond: number | null,
): RunFigures => ({
  memory: {
    limitBytes,
    plannedBytes: bytes,
    peakBytes: process.resourceUsage().maxRSS * 1024,
    diskBytes,
  },
  seconds: clock.laps,
  recordTokensPerSecond,
});

/** Seconds by stage, of all layers. */
export function sumSeconds(layers: readonly Record<string, number>[]): Record<string, number> {
  const sum: Record<string, number> = {};
  for (const seconds of layers) {
    for (const [stage, value] of Object.entries(seconds)) sum[stage] = (sum[stage] ?? 0) + value;
  }
  return sum;
}

export interface Stopwatch {
  laps: Record<string, number>;
  lap(name: string): void;
}

export function stopwatch(): Stopwatch {
  let last = performance.now();
  const laps: Record<string, number> = {};
  return {
    laps,
    lap(name) {
      const now = performance.now();
      laps[name] = (now - last) / 1000;
      last = now;
    },
  };
}
