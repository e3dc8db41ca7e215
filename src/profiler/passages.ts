/**
 * From token ids to what is recorded: windows that the model reads on their own, grouped into passages, and
 * whole passages held out. Text that was trained on never stands in the same passage as text measured on.
 */
import { UsageError } from '../errors.js';
import { samplePositions, shuffled } from './seeded.js';

/** Share of the passages that predictors and thresholds are chosen by, and as many again for the figures. */
const HELD_OUT_SHARE = 0.1;
/** Neighbouring windows share names and topics: keep this many together where there is enough text. */
const PASSAGE_WINDOWS = 4;
/** With fewer passages than this, they become shorter: the held-out ones should come from several places. */
const MIN_PASSAGES = 40;
/** One to train on, one to choose by, one for the figures. */
export const MIN_WINDOWS = 3;

/** What the recorder runs, in this order: windows to train on, to choose by, and for the figures. */
export interface Passages {
  /** Token ids, each `window` long. */
  windows: readonly (readonly number[])[];
  /** The first of `windows` that nothing is fitted to: kinds, sizes and thresholds are chosen by it. */
  chooseFrom: number;
  /** The first of `windows` that decides nothing and gives the figures. */
  reportFrom: number;
  window: number;
}

/** Where samples are taken: positions count tokens over `windows`. */
export interface SamplePlan {
  train: Uint32Array;
  choose: Uint32Array;
  report: Uint32Array;
}

/**
 * @param texts token ids of each text
 * @param tokens most tokens to use; passages spread evenly over the texts are chosen
 * @throws UsageError when there are not three windows
 */
export function splitPassages(
  texts: readonly (readonly number[])[],
  window: number,
  tokens: number,
  seed: number,
): Passages {
  const total = texts.reduce((sum, ids) => sum + Math.floor(ids.length / window), 0);
  if (total < MIN_WINDOWS) {
    const found = texts.reduce((sum, ids) => sum + ids.length, 0);
    throw new UsageError(
      `the text has ${found} tokens, profiling needs at least three windows of ${window}`,
      'Give a longer text, or none: then the model writes its own.',
    );
  }
  const used = Math.min(total, Math.max(MIN_WINDOWS, Math.floor(tokens / window)));
  const size = Math.max(1, Math.min(PASSAGE_WINDOWS, Math.floor(used / MIN_PASSAGES)));
  const passages: number[][][] = [];
  for (const ids of texts) {
    for (let begin = 0; begin + window <= ids.length; begin += size * window) {
      const passage: number[][] = [];
      for (let w = begin; w < begin + size * window && w + window <= ids.length; w += window) {
        passage.push(ids.slice(w, w + window));
      }
      passages.push(passage);
    }
  }
  const wanted = Math.max(MIN_WINDOWS, Math.floor(tokens / (size * window)));
  return holdOut(spread(passages, wanted), window, seed);
}

/** Texts the model wrote: each window is a passage of its own. */
export function selfWrittenPassages(windows: readonly (readonly number[])[], seed: number): Passages {
  return holdOut(
    windows.map((ids) => [ids]),
    windows[0].length,
    seed,
  );
}

function holdOut(
  passages: readonly (readonly (readonly number[])[])[],
  window: number,
  seed: number,
): Passages {
  const order = shuffled(passages.length, seed);
  const each = Math.max(1, Math.round(passages.length * HELD_OUT_SHARE));
  const choosing = new Set(order.slice(0, each));
  const reporting = new Set(order.slice(each, 2 * each));
  const of = (wanted: (p: number) => boolean): (readonly number[])[] =>
    passages.filter((_, p) => wanted(p)).flat();
  const train = of((p) => !choosing.has(p) && !reporting.has(p));
  const choose = of((p) => choosing.has(p));
  const report = of((p) => reporting.has(p));
  return {
    windows: [...train, ...choose, ...report],
    chooseFrom: train.length,
    reportFrom: train.length + choose.length,
    window,
  };
}

/** `count` items at even distances; all when there are no more. */
function spread<T>(items: readonly T[], count: number): T[] {
  if (count >= items.length) return [...items];
  return items.filter(
    (_, i) => Math.floor(((i + 1) * count) / items.length) > Math.floor((i * count) / items.length),
  );
}

/** Samples in the same proportion from all three parts, evenly spread and seeded. */
export function planSamples(passages: Passages, samples: number, seed: number): SamplePlan {
  const { windows, chooseFrom, reportFrom, window } = passages;
  const share = Math.min(1, samples / (windows.length * window));
  const part = (begin: number, end: number, number: number): Uint32Array => {
    const tokens = (end - begin) * window;
    const count = Math.max(1, Math.round(tokens * share));
    return samplePositions(tokens, count, seed + number).map((p) => p + begin * window);
  };
  return {
    train: part(0, chooseFrom, 0),
    choose: part(chooseFrom, reportFrom, 1),
    report: part(reportFrom, windows.length, 2),
  };
}
