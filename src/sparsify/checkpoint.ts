/**
 * A training between two steps, as a file: `magic | SHA-256 of the rest | header bytes u32 | header JSON | floats`,
 * floats being the trained weights, m and v, each flat and in the order of the parameters. Written atomically.
 */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { writeFileAtomic } from '../io/atomic-write.js';
import type { Measurement } from './trainer.js';
import type { Trainer } from './trainer.js';
import type { LambdaControl } from './schedule.js';
import type { Parameter } from './parameters.js';

/** One line of a training's history. */
export interface HistoryPoint {
  /** Steps done. */
  step: number;
  /** Of the step's own batch; null before the first. */
  loss: number | null;
  ce: number | null;
  l1: number | null;
  kl: number | null;
  lambda: number;
  /** Activations of the batch that are not above zero. */
  batchSparsity: number | null;
  /** On held-out text, where it was measured. */
  perplexity: number | null;
  sparsity: number | null;
}

export interface Progress {
  step: number;
  control: LambdaControl;
  history: HistoryPoint[];
  /** Held-out figures before the first step and after the last. */
  before: Measurement | null;
  after: Measurement | null;
}

const MAGIC = Buffer.from('HYBSPRS1');
const DIGEST_BYTES = 32;

export async function writeCheckpoint(
  path: string,
  progress: Progress,
  trainer: Trainer,
  trained: readonly Parameter[],
): Promise<void> {
  const header = Buffer.from(JSON.stringify(progress));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(header.length);
  const { weights, m, v } = trainer;
  const parts = [
    length,
    header,
    ...trained.map(({ begin, size }) => bytesOf(weights.slice(begin, begin + size))),
    bytesOf(m),
    bytesOf(v),
  ];
  const hash = createHash('sha256');
  for (const part of parts) hash.update(part);
  await writeFileAtomic(path, Buffer.concat([MAGIC, hash.digest(), ...parts]));
}

/**
 * Puts weights and moments back.
 * @returns null when there is no checkpoint, or none that is whole
 */
export function readCheckpoint(
  path: string,
  trainer: Trainer,
  trained: readonly Parameter[],
): Progress | null {
  if (!existsSync(path)) return null;
  const file = readFileSync(path);
  const begin = MAGIC.length + DIGEST_BYTES;
  if (file.length < begin + 4 || !file.subarray(0, MAGIC.length).equals(MAGIC)) return null;
  const rest = file.subarray(begin);
  const digest = createHash('sha256').update(rest).digest();
  if (!digest.equals(file.subarray(MAGIC.length, begin))) return null;
  const headerBytes = rest.readUInt32LE(0);
  const progress = JSON.parse(rest.subarray(4, 4 + headerBytes).toString()) as Progress;
  let at = 4 + headerBytes;
  const take = (into: Float32Array): void => {
    new Uint8Array(into.buffer, into.byteOffset, into.byteLength).set(
      rest.subarray(at, at + into.byteLength),
    );
    at += into.byteLength;
  };
  for (const { begin: first, size } of trained) take(trainer.weights.subarray(first, first + size));
  take(trainer.m);
  take(trainer.v);
  trainer.step = progress.step;
  return progress;
}

const bytesOf = (values: Float32Array): Buffer =>
  Buffer.from(values.buffer, values.byteOffset, values.byteLength);
