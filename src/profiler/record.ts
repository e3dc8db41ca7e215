/**
 * Recording: the engine reads window after window in `exact` mode, and what each layer's FFN saw and did is
 * appended to a file. Checkpoints let a killed run go on with the next window; what was written after the
 * last checkpoint is cut off and recorded again, with the same result.
 */
import type { AnswerBuffers, Engine } from '../engine/engine.js';
import { HybridError } from '../errors.js';
import type { OnProgress } from '../io/progress.js';
import { FLOAT16_MAX, float16Array } from '../onnx/float16.js';
import type { Passages, SamplePlan } from './passages.js';
import {
  bitBytes,
  GrowingFile,
  RECORDING,
  windowBytes,
  type RecordingIndex,
  type WindowIndex,
} from './recording-files.js';
import type { WorkFolder } from './work-folder.js';

/** How often each neuron was active over the training windows: the hot and the cold. */
export interface ActivationCounts {
  /** Tokens counted. */
  tokens: number;
  /** [layers][nFf] */
  counts: Uint32Array[];
}

export interface Recorded extends ActivationCounts {
  index: RecordingIndex;
}

interface Checkpoint {
  index: RecordingIndex;
  tokens: number;
  /** base64 of u32 [layers][nFf] */
  counts: string;
}

const CHECKPOINT = 'recording.json';
/** At most this much work is done twice after a kill. */
const CHECKPOINT_MS = 5000;

/** Bytes one window's traces take beside the engine itself. */
export const traceBytes = (layers: number, d: number, nFf: number, window: number): number =>
  4 * layers * (d + nFf) * window;

export interface RecordOptions {
  /** Record inputs too: what predictors are fitted to. @default true */
  inputs?: boolean;
  signal?: AbortSignal;
  onProgress?: OnProgress;
}

/** @param engine in FFN mode `exact`, with a context of at least one window */
export async function record(
  engine: Engine,
  folder: WorkFolder,
  passages: Passages,
  samples: SamplePlan,
  options: RecordOptions = {},
): Promise<Recorded> {
  const { hiddenSize: d, intermediateSize: nFf, layers } = engine.layout.config;
  const { windows, window, chooseFrom } = passages;
  const inputs = options.inputs ?? true;
  const start = folder.readJson<Checkpoint>(CHECKPOINT) ?? emptyCheckpoint(inputs ? d : 0, layers, nFf);
  const { index } = start;
  const counts = countsOf(start, layers, nFf);
  let { tokens } = start;
  const known = index.windows.reduce((sum, of) => sum + windowBytes(index, of), 0);
  const picked = new Uint8Array(windows.length * window);
  for (const p of [...samples.train, ...samples.choose, ...samples.report]) picked[p] = 1;
  const file = GrowingFile.open(folder.file(RECORDING), known);

  const checkpoint = async (): Promise<void> => {
    file.sync();
    const all = Buffer.concat(counts.map((c) => Buffer.from(c.buffer, c.byteOffset, c.byteLength)));
    await folder.writeJson(CHECKPOINT, {
      index,
      tokens,
      counts: all.toString('base64'),
    } satisfies Checkpoint);
  };

  try {
    let last = Date.now();
    const buffers: AnswerBuffers = new Map();
    for (let w = index.windows.length; w < windows.length; w++) {
      stopWhenAsked(options.signal);
      options.onProgress?.({ stage: 'record', done: w * window, total: picked.length, unit: 'tokens' });
      const trace = await engine.logits({
        tokens: windows[w],
        logits: false,
        trace: { inputs, activations: true },
        buffers,
        signal: options.signal,
      });
      const rows = picked.subarray(w * window, (w + 1) * window);
      const chosen = Array.from(rows.keys()).filter((t) => rows[t]);
      const active = Array.from({ length: layers }, (_, l) => {
        const x = trace.inputs?.subarray(l * window * d, (l + 1) * window * d) ?? null;
        const x1 = trace.activations!.subarray(l * window * nFf, (l + 1) * window * nFf);
        if (w < chooseFrom) countActive(x1, counts[l]);
        return appendRows(file, chosen, x, x1, d, nFf);
      });
      index.windows.push({ rows: chosen.length, active } satisfies WindowIndex);
      if (w < chooseFrom) tokens += window;
      if (Date.now() - last < CHECKPOINT_MS && w + 1 < windows.length) continue;
      await checkpoint();
      last = Date.now();
    }
    options.onProgress?.({ stage: 'record', done: picked.length, total: picked.length, unit: 'tokens' });
  } finally {
    file.close();
  }
  return { tokens, counts, index };
}

export function stopWhenAsked(signal?: AbortSignal): void {
  if (signal?.aborted) throw stopped();
}

export const stopped = (): HybridError =>
  new HybridError('ABORTED', 'profiling was stopped', { hint: 'The same command goes on where it was.' });

const emptyCheckpoint = (d: number, layers: number, nFf: number): Checkpoint => ({
  index: { d, nFf, windows: [] },
  tokens: 0,
  counts: Buffer.alloc(layers * nFf * 4).toString('base64'),
});

function countsOf(checkpoint: Checkpoint, layers: number, nFf: number): Uint32Array[] {
  const all = new Uint32Array(Uint8Array.from(Buffer.from(checkpoint.counts, 'base64')).buffer);
  return Array.from({ length: layers }, (_, l) => all.slice(l * nFf, (l + 1) * nFf));
}

/**
 * @param chosen which of the window's tokens are samples
 * @returns active neurons of the samples
 */
function appendRows(
  file: GrowingFile,
  chosen: readonly number[],
  inputs: Float32Array | null,
  x1: Float32Array,
  d: number,
  nFf: number,
): number {
  const bytes = bitBytes(nFf);
  const bits = new Uint8Array(chosen.length * bytes);
  let magnitudes = new Float32Array(chosen.length * Math.ceil(nFf / 4));
  let active = 0;
  chosen.forEach((t, row) => {
    if (magnitudes.length < active + nFf) {
      const more = new Float32Array(2 * magnitudes.length + nFf);
      more.set(magnitudes);
      magnitudes = more;
    }
    for (let i = 0, at = t * nFf; i < nFf; i++, at++) {
      const value = x1[at];
      if (value === 0) continue;
      bits[row * bytes + (i >> 3)] |= 1 << (i & 7);
      const size = value < 0 ? -value : value;
      magnitudes[active++] = size < FLOAT16_MAX ? size : FLOAT16_MAX;
    }
  });
  if (inputs) {
    const x = new Uint16Array(chosen.length * d);
    chosen.forEach((t, row) =>
      float16Array(inputs.subarray(t * d, (t + 1) * d), x.subarray(row * d, (row + 1) * d)),
    );
    file.append(new Uint8Array(x.buffer));
  }
  file.append(bits);
  file.append(new Uint8Array(float16Array(magnitudes.subarray(0, active)).buffer));
  return active;
}

function countActive(active: Float32Array, counts: Uint32Array): void {
  const nFf = counts.length;
  for (let at = 0; at < active.length; at += nFf) {
    for (let i = 0; i < nFf; i++) if (active[at + i] !== 0) counts[i]++;
  }
}
