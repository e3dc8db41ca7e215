/** The text of a profile, given or written by the model itself, and the model reading it. */
import { Engine } from '../engine/engine.js';
import { UsageError } from '../errors.js';
import { createTokenizer } from '../model/tokenizer.js';
import { openPack } from '../pack/reader.js';
import type { Pack } from '../pack/types.js';
import { writeCalibrationText, writingOptions } from './calibration.js';
import { encodeExcerpts } from './excerpts.js';
import type { ProfileOptions, ResolvedOptions } from './options.js';
import {
  MIN_WINDOWS,
  selfWrittenPassages,
  splitPassages,
  type Passages,
  type SamplePlan,
} from './passages.js';
import { record, type Recorded } from './record.js';
import type { Stopwatch } from './run-figures.js';
import { uncutPlan } from './sparsify.js';
import type { WorkFolder } from './work-folder.js';

export interface ReadText {
  passages: Passages;
  samples: SamplePlan;
  recorded: Recorded;
  kernelsName: string;
  recordTokensPerSecond: number | null;
}

/** Finds or writes the text and records the model reading it. */
export async function readText(
  pack: Pack,
  work: WorkFolder,
  resolved: ResolvedOptions,
  options: ProfileOptions,
  clock: Stopwatch,
  plan: (passages: Passages) => SamplePlan,
  before: (engine: Engine, passages: Passages) => Promise<void> = async () => {},
): Promise<ReadText> {
  const { window, tokens, seed, threads, kernels } = resolved;
  const { signal, onProgress } = options;
  // Before the engine is loaded: a text that is too short is refused at once.
  const given = options.texts?.length ? givenPassages(pack, options.texts, resolved) : null;
  const engine = await Engine.open(openPack(pack.path), {
    ffn: 'exact',
    plan: resolved.sparsify === null ? null : uncutPlan(pack.header.config.layers),
    contextLength: window,
    batchTokens: window,
    ...(given ? { slots: 1 } : writingOptions(pack.header, window)),
    threads,
    kernels,
    signal,
    onProgress,
  });
  try {
    let passages = given;
    if (!passages) {
      const count = Math.max(MIN_WINDOWS, Math.floor(tokens / window));
      const written = await writeCalibrationText(engine, work, count, window, seed, { signal, onProgress });
      passages = selfWrittenPassages(written, seed);
    }
    if (options.hotOnly) passages = { ...passages, chooseFrom: passages.windows.length };
    clock.lap('text');
    await before(engine, passages);
    const samples = plan(passages);
    let first = -1;
    let last = 0;
    const recorded = await record(engine, work, passages, samples, {
      inputs: !options.hotOnly,
      signal,
      onProgress: (progress) => {
        if (first < 0) first = progress.done;
        last = progress.done;
        onProgress?.(progress);
      },
    });
    clock.lap('record');
    const recordTokensPerSecond = last > first ? (last - first) / clock.laps.record : null;
    return { passages, samples, recorded, kernelsName: engine.kernelsName, recordTokensPerSecond };
  } finally {
    await engine.close();
  }
}

function givenPassages(
  pack: Pack,
  texts: readonly { name: string; text: string }[],
  { window, tokens, seed }: ResolvedOptions,
): Passages {
  const tokenizer = createTokenizer(pack.header.tokenizer);
  for (const { name, text } of texts) {
    if (text.trim() === '') throw new UsageError(`--text ${name} is empty`, 'Give a file with text in it.');
  }
  const ids = encodeExcerpts(
    tokenizer,
    texts.map(({ text }) => text),
    tokens,
    window,
  );
  return splitPassages(ids, window, tokens, seed);
}
