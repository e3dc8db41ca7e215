/**
 * Recordings on disk: one file that grows by a window at a time, in it the layers one after the other. Of each
 * layer, for the window's samples in order:
 *
 *     x        FFN inputs after the norm, f16   [rows][d]
 *     experts  those that the row met, u16   [rows][active]; absent without a mixture
 *     bits     active neurons of these, bit i % 8 of byte i / 8   [rows][active][ceil(size / 8)]
 *     mag      |x1| of the active neurons, f16, one after the other in that order
 *
 * Where everything lies follows from the index. Samples to train on come first, since windows do.
 */
import { closeSync, fsyncSync, ftruncateSync, openSync, readSync } from 'node:fs';
import { HybridError } from '../errors.js';
import { writeFully } from '../io/atomic-write.js';
import type { ExpertShape } from '../model/block.js';
import { fromFloat16Array } from '../onnx/float16.js';
import { eachActive, type Samples } from '../predictor/samples.js';

export const RECORDING = 'recording.bin';

export const bitBytes = (neurons: number): number => Math.ceil(neurons / 8);

export interface RecordingIndex {
  /** Hidden size; 0 where inputs were not recorded. */
  d: number;
  shape: ExpertShape;
  windows: WindowIndex[];
}

export interface WindowIndex {
  rows: number;
  /** Active neurons of all rows, by layer. */
  active: number[];
}

/** Bytes of one row beside its magnitudes. */
export const rowBytes = (d: number, { count, active, size }: ExpertShape): number =>
  2 * d + (count > 1 ? 2 * active : 0) + active * bitBytes(size);

/** Bytes of one layer in one window. */
const layerBytes = ({ d, shape }: RecordingIndex, { rows, active }: WindowIndex, l: number): number =>
  rows * rowBytes(d, shape) + 2 * active[l];

export const windowBytes = (index: RecordingIndex, window: WindowIndex): number =>
  window.active.reduce((sum, _, l) => sum + layerBytes(index, window, l), 0);

/** One file that only grows; what a checkpoint does not know of is cut off when work goes on. */
export class GrowingFile {
  private constructor(
    private readonly path: string,
    private readonly fd: number,
    public length: number,
  ) {}

  /** @param length bytes that are known to be good */
  static open(path: string, length: number): GrowingFile {
    try {
      const fd = openSync(path, length === 0 ? 'w+' : 'r+');
      ftruncateSync(fd, length);
      return new GrowingFile(path, fd, length);
    } catch (cause) {
      throw new HybridError('IO_FAILED', `cannot open ${path}: ${(cause as Error).message}`, { cause });
    }
  }

  append(bytes: Uint8Array): void {
    writeFully(this.fd, bytes, this.length, this.path);
    this.length += bytes.byteLength;
  }

  /** On the disk, not only in the system's cache: a checkpoint may now count on it. */
  sync(): void {
    fsyncSync(this.fd);
  }

  close(): void {
    closeSync(this.fd);
  }
}

/** Bytes `LayerRecording` holds for one sample; `active`: mean active neurons. Inputs stay on disk. */
export const recordingBytes = ({ count, active, size }: ExpertShape, activeNeurons: number): number =>
  // Of a mixture an expert's bits are copied; 18: whose each row is, where it and its magnitudes lie, an expert's copies.
  active * (bitBytes(size) * (count > 1 ? 2 : 1) + 18) + 6 * activeNeurons;

/** The samples that one expert saw: all of them in a layer without a mixture. */
export interface ExpertSamples extends Samples {
  /** Which of the layer's samples they are, ascending. */
  rows: Uint32Array;
}

/** One layer's samples; inputs are read from the file as they are asked for. */
export class LayerRecording {
  readonly samples: number;
  readonly d: number;
  readonly shape: ExpertShape;
  /** [samples][active][ceil(size / 8)] */
  private readonly bits: Uint8Array;
  /** [samples][active] */
  private readonly experts: Uint16Array;
  /** Of every expert: its places in `experts`, ascending. */
  private readonly places: readonly Uint32Array[];
  private readonly magnitudes: Float32Array;
  /** [samples][active] */
  private readonly magnitudeAt: Uint32Array;
  private readonly fd: number;
  /** First sample of each window, and where its inputs lie. */
  private readonly windows: { first: number; rows: number; offset: number }[] = [];

  /** @throws HybridError IO_FAILED when the file is missing or shorter than the index says */
  constructor(
    private readonly path: string,
    layer: number,
    index: RecordingIndex,
  ) {
    const { d, shape } = index;
    const { active, count, size } = shape;
    const stride = active * bitBytes(size);
    this.d = d;
    this.shape = shape;
    this.samples = index.windows.reduce((sum, { rows }) => sum + rows, 0);
    this.bits = new Uint8Array(this.samples * stride);
    this.experts = new Uint16Array(this.samples * active);
    this.magnitudeAt = new Uint32Array(this.samples * active);
    const halves = new Uint16Array(index.windows.reduce((sum, { active: of }) => sum + of[layer], 0));
    const [halfBytes, expertBytes] = [new Uint8Array(halves.buffer), new Uint8Array(this.experts.buffer)];
    this.fd = open(path);
    try {
      let [begin, first, halvesRead] = [0, 0, 0];
      for (const window of index.windows) {
        let offset = begin;
        for (let l = 0; l < layer; l++) offset += layerBytes(index, window, l);
        const { rows } = window;
        this.windows.push({ first, rows, offset });
        let at = offset + rows * 2 * d;
        const take = (into: Uint8Array, from: number, bytes: number): void => {
          this.read(into.subarray(from, from + bytes), at);
          at += bytes;
        };
        if (count > 1) take(expertBytes, first * 2 * active, rows * 2 * active);
        take(this.bits, first * stride, rows * stride);
        take(halfBytes, halvesRead, 2 * window.active[layer]);
        begin += windowBytes(index, window);
        first += rows;
        halvesRead += 2 * window.active[layer];
      }
    } catch (error) {
      this.close();
      throw error;
    }
    this.magnitudes = fromFloat16Array(halves);
    this.places = placesOf(this.experts, count);
    for (let k = 0, sum = 0; k < this.magnitudeAt.length; k++) {
      this.magnitudeAt[k] = sum;
      for (let b = k * bitBytes(size); b < (k + 1) * bitBytes(size); b++) sum += POPCOUNT[this.bits[b]];
    }
  }

  /** What one expert saw and did, its neurons counted from 0. */
  expert(e: number): ExpertSamples {
    const { d, bits, magnitudes, magnitudeAt } = this;
    const { active, count, size } = this.shape;
    const places = this.places[e];
    const rows = places.map((k) => Math.floor(k / active));
    const stride = bitBytes(size);
    const own = count === 1 ? bits : new Uint8Array(places.length * stride);
    if (count > 1) places.forEach((k, i) => own.set(bits.subarray(k * stride, (k + 1) * stride), i * stride));
    return {
      samples: rows.length,
      rows,
      d,
      nFf: size,
      bits: own,
      magnitudes,
      magnitudeAt: places.map((k) => magnitudeAt[k]),
      inputs: (begin, end) => this.inputsOf(rows.subarray(begin, end)),
    };
  }

  /** Calls `visit` with the active neurons of row t, in the layer's numbering. */
  eachActive(t: number, visit: (neuron: number) => void): void {
    const { bits, magnitudes, magnitudeAt, experts } = this;
    const { active, size } = this.shape;
    const samples = { bits, magnitudes, magnitudeAt, nFf: size };
    for (let k = t * active; k < (t + 1) * active; k++) {
      eachActive(samples, k, (i) => visit(experts[k] * size + i));
    }
  }

  /** FFN inputs of the rows [begin, end), f32 [end - begin][d] */
  inputs(begin: number, end: number): Float32Array {
    return this.inputsOf(Uint32Array.from({ length: end - begin }, (_, i) => begin + i));
  }

  /** @param rows ascending */
  private inputsOf(rows: Uint32Array): Float32Array {
    const { d } = this;
    const halves = new Uint16Array(rows.length * d);
    const bytes = new Uint8Array(halves.buffer);
    let done = 0;
    for (const { first, rows: count, offset } of this.windows) {
      while (done < rows.length && rows[done] < first + count) {
        // Neighbours are read together.
        let next = done + 1;
        while (next < rows.length && rows[next] === rows[next - 1] + 1 && rows[next] < first + count) next++;
        this.read(bytes.subarray(done * 2 * d, next * 2 * d), offset + (rows[done] - first) * 2 * d);
        done = next;
      }
    }
    return fromFloat16Array(halves);
  }

  close(): void {
    closeSync(this.fd);
  }

  private read(into: Uint8Array, position: number): void {
    for (let done = 0; done < into.length;) {
      const n = readSync(this.fd, into, done, into.length - done, position + done);
      if (n === 0) throw new HybridError('IO_FAILED', `${this.path}: the file ends at ${position + done}`);
      done += n;
    }
  }
}

function open(path: string): number {
  try {
    return openSync(path, 'r');
  } catch (cause) {
    throw new HybridError('IO_FAILED', `cannot open ${path}: ${(cause as Error).message}`, { cause });
  }
}

const POPCOUNT = Uint8Array.from({ length: 256 }, (_, byte) => {
  let count = 0;
  for (let b = byte; b !== 0; b &= b - 1) count++;
  return count;
});

/** Where each expert stands among those that the rows met. */
function placesOf(experts: Uint16Array, count: number): Uint32Array[] {
  const found = new Uint32Array(count);
  for (const e of experts) found[e]++;
  const places = Array.from(found, (size) => new Uint32Array(size));
  found.fill(0);
  experts.forEach((e, k) => (places[e][found[e]++] = k));
  return places;
}
