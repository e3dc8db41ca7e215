/** Text as training batches: random windows of weighted texts, and the held-out windows that measure. */
import { UsageError } from '../errors.js';
import { hash32 } from '../profiler/seeded.js';
import type { Tokens } from './lanes.js';
import type { Batch } from './model-graph.js';

export interface TrainingText {
  name: string;
  ids: Int32Array;
  /** How often windows come from this text, relative to the others. */
  weight: number;
}

/** Part at the end of every text that is held out when no held-out text is given. */
const HELD_OUT_SHARE = 0.05;

/**
 * Takes held-out windows off the ends of the texts.
 * @param window tokens scored together
 */
export function splitHeldOut(
  texts: readonly TrainingText[],
  window: number,
): { texts: TrainingText[]; heldOut: Int32Array } {
  const parts = texts.map((text) => {
    const windows = Math.max(1, Math.round((HELD_OUT_SHARE * text.ids.length) / window));
    return Math.max(0, text.ids.length - windows * window);
  });
  const ends = texts.flatMap(({ ids }, i) => Array.from(ids.subarray(parts[i])));
  return {
    texts: texts.map((text, i) => ({ ...text, ids: text.ids.subarray(0, parts[i]) })),
    heldOut: Int32Array.from(ends),
  };
}

/**
 * @param heldOut tokens at the end of a text that are not trained on
 * @throws UsageError when a text has not one window and the token that follows it
 */
export function checkLength(texts: readonly TrainingText[], window: number, heldOut: number): void {
  for (const { name, ids } of texts) {
    const needed = window + 1 + heldOut;
    if (ids.length >= needed) continue;
    const and = heldOut > 0 ? `, and ${heldOut} held out` : '';
    throw new UsageError(
      `--text ${name} has ${ids.length} tokens, expected at least ${needed}: ` +
        `a window of ${window} and the token after it${and}`,
      'Give a longer text, or a smaller --window.',
    );
  }
}

/** Windows of one step, in parts that a lane computes at once. Which ones depends on seed and step alone. */
export function batchAt(
  texts: readonly TrainingText[],
  { windows, tokens }: Batch,
  parts: number,
  seed: number,
  step: number,
): Tokens[] {
  const total = texts.reduce((sum, { weight }) => sum + weight, 0);
  return Array.from({ length: parts }, (_, part) => {
    const ids = new BigInt64Array(windows * tokens);
    const labels = new BigInt64Array(windows * tokens);
    for (let w = 0; w < windows; w++) {
      const draw = 2 * ((step * parts + part) * windows + w);
      const text = pickText(texts, total, unit(seed, draw));
      const begin = Math.floor(unit(seed, draw + 1) * (text.ids.length - tokens));
      for (let t = 0; t < tokens; t++) {
        ids[w * tokens + t] = BigInt(text.ids[begin + t]);
        labels[w * tokens + t] = BigInt(text.ids[begin + t + 1]);
      }
    }
    return { ids, labels };
  });
}

/** In [0, 1). */
const unit = (seed: number, index: number): number => hash32(seed, index) / 2 ** 32;

function pickText(texts: readonly TrainingText[], total: number, at: number): TrainingText {
  let sum = 0;
  for (const text of texts) {
    sum += text.weight;
    if (at * total < sum) return text;
  }
  return texts[texts.length - 1];
}

/** Consecutive windows, the last partial one dropped; every token but a window's first is scored. */
export function heldOutParts(
  ids: Int32Array,
  { windows, tokens }: Batch,
): (Tokens & { scored: Float32Array })[] {
  const parts: (Tokens & { scored: Float32Array })[] = [];
  const size = windows * tokens;
  for (let begin = 0; begin + size <= ids.length; begin += size) {
    const part = {
      ids: new BigInt64Array(size),
      labels: new BigInt64Array(size),
      scored: new Float32Array(size),
    };
    for (let i = 0; i < size; i++) {
      part.ids[i] = BigInt(ids[begin + i]);
      const last = i % tokens === tokens - 1;
      part.labels[i] = last ? 0n : BigInt(ids[begin + i + 1]);
      part.scored[i] = last ? 0 : 1;
    }
    parts.push(part);
  }
  return parts;
}

/** The largest number up to `most` that divides `whole`. */
export function divisorUpTo(whole: number, most: number): number {
  for (let d = Math.min(whole, most); d > 1; d--) if (whole % d === 0) return d;
  return 1;
}
