/**
 * Recording: the engine reads window after window in `exact` mode, and what each layer's FFN saw and did is
 * appended to a file. Checkpoints let a killed run go on with the next window; what was written after the
 * last checkpoint is cut off and recorded again, with the same result.
 */
import type { AnswerBuffers, Engine, LogitsResult } from '../engine/engine.js';
import { HybridError } from '../errors.js';
import type { OnProgress } from '../io/progress.js';
import { activeNeurons, expertShape, type ExpertShape } from '../model/block.js';
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
  /** [layers][experts] tokens that met each expert */
  routed: Uint32Array[];
}

export interface Recorded extends ActivationCounts {
  index: RecordingIndex;
}

interface Checkpoint {
  index: RecordingIndex;
  tokens: number;
  /** base64 of u32 [layers][nFf] and [layers][experts] */
  counts: string;
  routed: string;
}

const CHECKPOINT = 'recording.json';
/** At most this much work is done twice after a kill. */
const CHECKPOINT_MS = 5000;

/** Bytes one window's traces take beside the engine itself. @param met neurons that a token meets */
export const traceBytes = (layers: number, d: number, met: number, window: number): number =>
  4 * layers * (d + met) * window;

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
  const { config } = engine.layout;
  const { hiddenSize: d, layers } = config;
  const shape = expertShape(config);
  const met = activeNeurons(config);
  const { windows, window, chooseFrom } = passages;
  const inputs = options.inputs ?? true;
  const start = folder.readJson<Checkpoint>(CHECKPOINT) ?? emptyCheckpoint(inputs ? d : 0, layers, shape);
  const { index } = start;
  const counts = numbersByLayer(start.counts, layers);
  const routed = numbersByLayer(start.routed, layers);
  let { tokens } = start;
  const known = index.windows.reduce((sum, of) => sum + windowBytes(index, of), 0);
  const picked = new Uint8Array(windows.length * window);
  for (const p of [...samples.train, ...samples.choose, ...samples.report]) picked[p] = 1;
  const file = GrowingFile.open(folder.file(RECORDING), known);

  const checkpoint = async (): Promise<void> => {
    file.sync();
    await folder.writeJson(CHECKPOINT, {
      index,
      tokens,
      counts: asText(counts),
      routed: asText(routed),
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
        const seen = seenBy(trace, l, window, met, shape);
        if (w < chooseFrom) countActive(seen, shape, counts[l], routed[l]);
        return appendRows(file, chosen, x, seen, d, shape);
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
  return { tokens, counts, routed, index };
}

export function stopWhenAsked(signal?: AbortSignal): void {
  if (signal?.aborted) throw stopped();
}

export const stopped = (): HybridError =>
  new HybridError('ABORTED', 'profiling was stopped', { hint: 'The same command goes on where it was.' });

const emptyCheckpoint = (d: number, layers: number, shape: ExpertShape): Checkpoint => ({
  index: { d, shape, windows: [] },
  tokens: 0,
  counts: Buffer.alloc(layers * shape.count * shape.size * 4).toString('base64'),
  routed: Buffer.alloc(layers * shape.count * 4).toString('base64'),
});

const asText = (layers: readonly Uint32Array[]): string =>
  Buffer.concat(layers.map((of) => Buffer.from(of.buffer, of.byteOffset, of.byteLength))).toString('base64');

function numbersByLayer(text: string, layers: number): Uint32Array[] {
  const all = new Uint32Array(Uint8Array.from(Buffer.from(text, 'base64')).buffer);
  const width = all.length / layers;
  return Array.from({ length: layers }, (_, l) => all.slice(l * width, (l + 1) * width));
}

/** What one layer did in a window: x1 [tokens][active][size], and which experts that was. */
interface Seen {
  x1: Float32Array;
  experts: LogitsResult['experts'];
}

function seenBy(trace: LogitsResult, l: number, tokens: number, met: number, { active }: ExpertShape): Seen {
  const own = <T extends Float32Array | Uint32Array>(all: T, width: number): T =>
    all.subarray(l * tokens * width, (l + 1) * tokens * width) as T;
  const { experts } = trace;
  return {
    x1: own(trace.activations!, met),
    experts: experts && { ids: own(experts.ids, active), weights: own(experts.weights, active) },
  };
}

/**
 * @param chosen which of the window's tokens are samples
 * @returns active neurons of the samples
 */
function appendRows(
  file: GrowingFile,
  chosen: readonly number[],
  inputs: Float32Array | null,
  { x1, experts }: Seen,
  d: number,
  { active, size }: ExpertShape,
): number {
  const bytes = bitBytes(size);
  const bits = new Uint8Array(chosen.length * active * bytes);
  const met = Uint16Array.from(experts ? chosen.flatMap((t) => [...experts.ids.subarray(t * active, (t + 1) * active)]) : []); // prettier-ignore
  let magnitudes = new Float32Array(chosen.length * Math.ceil((active * size) / 4));
  let found = 0;
  const append = (from: number, row: number): void => {
    const weight = experts ? experts.weights[from] : 1;
    for (let i = 0, at = from * size; i < size; i++, at++) {
      const value = x1[at];
      if (value === 0) continue;
      bits[row * bytes + (i >> 3)] |= 1 << (i & 7);
      const magnitude = (value < 0 ? -value : value) * weight;
      magnitudes[found++] = magnitude < FLOAT16_MAX ? magnitude : FLOAT16_MAX;
    }
  };
  chosen.forEach((t, row) => {
    if (magnitudes.length < found + active * size) {
      const more = new Float32Array(2 * magnitudes.length + active * size);
      more.set(magnitudes);
      magnitudes = more;
    }
    for (let j = 0; j < active; j++) append(t * active + j, row * active + j);
  });
  if (inputs) {
    const x = new Uint16Array(chosen.length * d);
    chosen.forEach((t, row) =>
      float16Array(inputs.subarray(t * d, (t + 1) * d), x.subarray(row * d, (row + 1) * d)),
    );
    file.append(new Uint8Array(x.buffer));
  }
  file.append(new Uint8Array(met.buffer));
  file.append(bits);
  file.append(new Uint8Array(float16Array(magnitudes.subarray(0, found)).buffer));
  return found;
}

function countActive(
  { x1, experts }: Seen,
  { size }: ExpertShape,
  counts: Uint32Array,
  routed: Uint32Array,
): void {
  for (let k = 0; k * size < x1.length; k++) {
    const expert = experts ? experts.ids[k] : 0;
    routed[expert]++;
    for (let i = 0; i < size; i++) if (x1[k * size + i] !== 0) counts[expert * size + i]++;
  }
}
