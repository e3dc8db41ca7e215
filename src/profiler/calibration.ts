/** Text the model writes itself, for profiling without a corpus: temperature 1, one seed per window. */
import { existsSync, readFileSync } from 'node:fs';
import type { Engine, EngineOptions } from '../engine/engine.js';
import { positionBytes } from '../engine/options.js';
import type { OnProgress } from '../io/progress.js';
import { alignUp, KV_PAGE } from '../kernels/layout.js';
import type { PackHeader } from '../pack/types.js';
import { GrowingFile } from './recording-files.js';
import { stopWhenAsked } from './record.js';
import { hash32 } from './seeded.js';
import type { WorkFolder } from './work-folder.js';

const FILE = 'self-written.i32';

/**
 * `count` windows of `window` tokens each, from the model's begin token on. Windows written before a kill
 * are taken from the file.
 * @param engine in FFN mode `exact`
 */
export async function writeCalibrationText(
  engine: Engine,
  folder: WorkFolder,
  count: number,
  window: number,
  seed: number,
  options: { signal?: AbortSignal; onProgress?: OnProgress } = {},
): Promise<number[][]> {
  const { bosId, eosIds } = engine.layout.config;
  const path = folder.file(FILE);
  const bytes = window * 4;
  const known = existsSync(path) ? readFileSync(path) : Buffer.alloc(0);
  const done = Math.min(count, Math.floor(known.length / bytes));
  const windows = Array.from({ length: done }, (_, w) =>
    Array.from(new Int32Array(Uint8Array.from(known.subarray(w * bytes, (w + 1) * bytes)).buffer)),
  );
  const file = GrowingFile.open(path, done * bytes);
  let written = done * window;
  const report = (): void =>
    options.onProgress?.({ stage: 'write text', done: written, total: count * window, unit: 'tokens' });
  const first = bosId ?? eosIds[0] ?? 0;
  const write = async (w: number): Promise<number[]> => {
    const { tokens } = await engine.generate({
      prompt: [first],
      maxTokens: window - 1,
      sampling: { ...AS_THE_MODEL_SAYS, seed: hash32(seed, w) },
      onTokens: (fresh) => {
        written += fresh.length;
        report();
      },
      signal: options.signal,
    });
    written++;
    return [first, ...tokens];
  };
  // Several at a time: an engine with slots reads its weights once for all of them.
  const pending: Promise<number[]>[] = [];
  try {
    for (let w = done; w < count; w++) {
      while (pending.length < TOGETHER && w + pending.length < count) pending.push(write(w + pending.length));
      const ids = await pending.shift()!;
      stopWhenAsked(options.signal); // an aborted text is short
      windows.push(ids);
      file.append(new Uint8Array(Int32Array.from(ids).buffer));
    }
  } finally {
    await Promise.allSettled(pending);
    file.close();
  }
  return windows;
}

/** Windows written at a time. */
const TOGETHER = 8;

/** What an engine that writes needs beside its other options: room for all that is written at a time. */
export const writingOptions = ({ quant, config }: PackHeader, window: number): EngineOptions => {
  const positions = TOGETHER * alignUp(window, KV_PAGE);
  return { slots: TOGETHER, kvMemory: positions * positionBytes(config, quant === 'f32' ? 'f32' : 'q8') };
};

/** Tokens as often as the model thinks they come. */
const AS_THE_MODEL_SAYS = {
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  repetitionWindow: 0,
};
