/**
 * Recordings on disk: one file that grows by a window at a time, in it the layers one after the other. Of each
 * layer, for the window's samples in order:
 *
 *     x      FFN inputs after the norm, f16   [rows][d]
 *     bits   active neurons, bit i % 8 of byte i / 8   [rows][ceil(nFf / 8)]
 *     mag    |x1| of the active neurons, f16, one after the other in neuron order
 *
 * Where everything lies follows from the index. Samples to train on come first, since windows do.
 */
import { closeSync, fsyncSync, ftruncateSync, openSync, readSync } from 'node:fs';
import { HybridError } from '../errors.js';
import { writeFully } from '../io/atomic-write.js';
import { fromFloat16Array } from '../onnx/float16.js';
import type { Samples } from '../predictor/samples.js';

export const RECORDING = 'recording.bin';

export const bitBytes = (nFf: number): number => Math.ceil(nFf / 8);

export interface RecordingIndex {
  /** Hidden size; 0 where inputs were not recorded. */
  d: number;
  nFf: number;
  windows: WindowIndex[];
}

export interface WindowIndex {
  rows: number;
  /** Active neurons of all rows, by layer. */
  active: number[];
}

/** Bytes of one layer in one window. */
const layerBytes = ({ d, nFf }: RecordingIndex, { rows, active }: WindowIndex, l: number): number =>
  rows * (2 * d + bitBytes(nFf)) + 2 * active[l];

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
export const recordingBytes = (nFf: number, active: number): number => bitBytes(nFf) + 6 * active + 4;

/** One layer's samples; inputs are read from the file as they are asked for. */
export class LayerRecording implements Samples {
  readonly samples: number;
  readonly d: number;
  readonly nFf: number;
  readonly bits: Uint8Array;
  readonly magnitudes: Float32Array;
  readonly magnitudeAt: Uint32Array;
  private readonly fd: number;
  /** First sample of each window, and where its inputs lie. */
  private readonly windows: { first: number; rows: number; offset: number }[] = [];

  /** @throws HybridError IO_FAILED when the file is missing or shorter than the index says */
  constructor(
    private readonly path: string,
    layer: number,
    index: RecordingIndex,
  ) {
    const { d, nFf } = index;
    const stride = bitBytes(nFf);
    this.d = d;
    this.nFf = nFf;
    this.samples = index.windows.reduce((sum, { rows }) => sum + rows, 0);
    this.bits = new Uint8Array(this.samples * stride);
    this.magnitudeAt = new Uint32Array(this.samples + 1);
    const halves = new Uint16Array(index.windows.reduce((sum, { active }) => sum + active[layer], 0));
    const halfBytes = new Uint8Array(halves.buffer);
    this.fd = open(path);
    try {
      let [begin, first, halvesRead] = [0, 0, 0];
      for (const window of index.windows) {
        let offset = begin;
        for (let l = 0; l < layer; l++) offset += layerBytes(index, window, l);
        const { rows } = window;
        this.windows.push({ first, rows, offset });
        const bitsAt = offset + rows * 2 * d;
        this.read(this.bits.subarray(first * stride, (first + rows) * stride), bitsAt);
        const count = 2 * window.active[layer];
        this.read(halfBytes.subarray(halvesRead, halvesRead + count), bitsAt + rows * stride);
        begin += windowBytes(index, window);
        first += rows;
        halvesRead += count;
      }
    } catch (error) {
      this.close();
      throw error;
    }
    this.magnitudes = fromFloat16Array(halves);
    for (let t = 0; t < this.samples; t++) {
      let active = 0;
      for (let b = t * stride; b < (t + 1) * stride; b++) active += POPCOUNT[this.bits[b]];
      this.magnitudeAt[t + 1] = this.magnitudeAt[t] + active;
    }
  }

  inputs(begin: number, end: number): Float32Array {
    const { d } = this;
    const halves = new Uint16Array((end - begin) * d);
    const bytes = new Uint8Array(halves.buffer);
    for (const { first, rows, offset } of this.windows) {
      const from = Math.max(begin, first);
      const to = Math.min(end, first + rows);
      if (from >= to) continue;
      this.read(
        bytes.subarray((from - begin) * 2 * d, (to - begin) * 2 * d),
        offset + (from - first) * 2 * d,
      );
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
