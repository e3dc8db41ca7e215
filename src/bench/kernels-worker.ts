/**
 * One thread of the kernel benchmark. It fills its part of the arena with neuron records of a format
 * (`prepare`), then runs one pass of a case whenever it is told to (`run`) and says when that began and ended.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { alignUp, activationBytes, KV_PAGE, rowBytes, type WeightFormat } from '../kernels/layout.js';
import type { KvFormat, Ptr } from '../kernels/kernels.js';
import { instantiateKernels, type KernelChoice } from '../kernels/select.js';

export type KernelCase = 'read' | 'dot' | 'dotLists' | 'sumLists' | 'records' | 'attention';

export interface KernelTask {
  memory: WebAssembly.Memory;
  kernels: KernelChoice;
  begin: number;
  bytes: number;
  /** d */
  cols: number;
}
export type KernelMessage =
  { type: 'prepare'; format: WeightFormat } | { type: 'run'; case: KernelCase; sample: number };
/** Times are process.hrtime.bigint(): one clock for all threads. */
export interface KernelReply {
  begin: bigint;
  end: bigint;
  /** What the pass had to read from memory. */
  bytes: number;
}

/** One record in this many is read by the scattered cases: the share of active neurons of a sparse model. */
const SCATTER = 10;
/** Rows per kernel call, about what a lane gets of a 7B layer. */
const CALL_ROWS = 1024;
/** One head's cache in the attention case: a context of a few pages, heads of Llama's size. */
const POSITIONS = 2048;
const HEAD_DIM = 128;
/** Rows that are really quantised; the rest are copies: making every row would take longer than measuring. */
const DISTINCT_ROWS = 64;
/** Largest row this benchmark makes, f32 with this many columns: sizes the scratch area. */
const MAX_COLS = 16_384;
const SCRATCH_BYTES = DISTINCT_ROWS * MAX_COLS * 4;

const { memory, kernels: choice, begin, bytes, cols } = workerData as KernelTask;
const kernels = instantiateKernels(choice, memory);
const u8 = new Uint8Array(memory.buffer);
const u32 = new Uint32Array(memory.buffer);
const f32 = new Float32Array(memory.buffer);

// The part:  scratch | x | out | list | offsets | coef | pages | records ...
let end = begin;
const take = (size: number): number => {
  const at = end;
  end = alignUp(end + size, 64);
  return at;
};
const scratch = take(SCRATCH_BYTES);
const x = take(Math.max(activationBytes('f32', cols), activationBytes('q8', cols)));
const out = take(alignUp(cols, 128) * 4 + CALL_ROWS * 4);
const list = take(Math.ceil(bytes / rowBytes('q4', cols)) * 4);
const offsets = take(8);
const coef = take(CALL_ROWS * 4);
const pages = take((POSITIONS / KV_PAGE) * 4);
const records = end;

let format: WeightFormat = 'f32';
let row = 0; // bytes
let record = 0; // bytes: an up row and a down row
let count = 0; // records

function prepare(wanted: WeightFormat): void {
  format = wanted;
  row = rowBytes(format, cols);
  record = 2 * row;
  count = Math.floor((begin + bytes - records) / record);
  let state = 1;
  const noise = (): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) | 0;
    return state / 2 ** 31;
  };
  for (let i = 0; i < DISTINCT_ROWS * cols; i++) f32[scratch / 4 + i] = noise();
  kernels.quantizeRows(format, scratch, cols * 4, DISTINCT_ROWS, records, row, cols);
  for (let filled = DISTINCT_ROWS * row; filled < count * record; filled *= 2) {
    const chunk = Math.min(filled, count * record - filled);
    u8.copyWithin(records + filled, records, records + chunk);
  }
  if (format === 'f32') f32.copyWithin(x / 4, scratch / 4, scratch / 4 + cols);
  else kernels.quantize(scratch, x, cols);
  for (let i = 0; i < CALL_ROWS; i++) f32[coef / 4 + i] = noise();
}

/** Sample s of a scattered case reads the records s, s + 10, ... of a shuffled order: no sample finds the last one's in a cache. */
function chooseRecords(sample: number): number {
  let chosen = 0;
  for (let id = 0; id < count; id++) {
    const hash = Math.imul(id, 0x9e3779b1) >>> 8;
    if (hash % SCATTER === sample % SCATTER) u32[list / 4 + chosen++] = id;
  }
  return chosen;
}

interface KvRows {
  data: Ptr;
  scales: Ptr;
}
interface Head {
  keys: KvRows;
  values: KvRows;
}

/** The heads whose keys and values fill the place of the records. */
function headsOf(kv: KvFormat): { heads: Head[]; headBytes: number } {
  const dataBytes = POSITIONS * HEAD_DIM * (kv === 'f32' ? 4 : 1);
  const rowsBytes = dataBytes + (kv === 'f32' ? 0 : POSITIONS * 4);
  const rowsAt = (at: number): KvRows => ({ data: at, scales: kv === 'f32' ? 0 : at + dataBytes });
  const heads = Array.from({ length: Math.floor((count * record) / (2 * rowsBytes)) }, (_, i) => {
    const at = records + 2 * i * rowsBytes;
    return { keys: rowsAt(at), values: rowsAt(at + rowsBytes) };
  });
  return { heads, headBytes: 2 * rowsBytes };
}

/** The weights become keys and values as they are; only their scales must be numbers of a usual size. */
function writeKvScales(): void {
  for (const { keys, values } of headsOf('q8').heads) {
    for (const { scales } of [keys, values]) f32.fill(0.01, scales / 4, scales / 4 + POSITIONS);
  }
}

/** Calls `body(first, n)` for pieces of `total` rows. */
function inCalls(total: number, body: (first: number, n: number) => void): void {
  for (let first = 0; first < total; first += CALL_ROWS) body(first, Math.min(CALL_ROWS, total - first));
}

function run(name: KernelCase, sample: number): KernelReply {
  const scattered = name === 'dotLists' || name === 'records';
  const chosen = scattered ? chooseRecords(sample) : 0;
  if (name === 'sumLists') for (let id = 0; id < 2 * count; id++) u32[list / 4 + id] = id;
  if (name === 'attention' && format === 'q8') writeKvScales();
  const start = process.hrtime.bigint();
  const read = pass(name, chosen);
  return { begin: start, end: process.hrtime.bigint(), bytes: read };
}

/** @returns bytes of weights read */
function pass(name: KernelCase, chosen: number): number {
  switch (name) {
    case 'read': {
      const size = Math.floor((count * record) / 64) * 64;
      kernels.readProbe(records, size);
      return size;
    }
    case 'dot':
      inCalls(2 * count, (first, n) =>
        kernels.dot(format, records + first * row, row, n, x, 0, 1, out, n, cols),
      );
      return count * record;
    case 'dotLists':
      inCalls(chosen, (first, n) => {
        kernels.dotLists(format, records, record, ...listAt(first, n), x, 0, out, cols);
      });
      return chosen * row;
    case 'sumLists':
      inCalls(2 * count, (first, n) => {
        kernels.sumLists(format, records, row, ...listAt(first, n), coef, out, cols, cols);
      });
      return count * record;
    case 'records':
      inCalls(chosen, (first, n) => {
        kernels.dotLists(format, records, record, ...listAt(first, n), x, 0, out, cols);
        kernels.sumLists(format, records + row, record, ...listAt(first, n), coef, out, cols, cols);
      });
      return chosen * record;
    case 'attention': {
      const kv = format === 'f32' ? 'f32' : 'q8';
      const { heads, headBytes } = headsOf(kv);
      for (let page = 0; page < POSITIONS / KV_PAGE; page++) u32[pages / 4 + page] = page;
      for (const { keys, values } of heads) {
        // Any numbers do as a query; the scratch area has room for the scores.
        kernels.attention(
          kv,
          coef,
          ...([keys.data, keys.scales, values.data, values.scales, pages] as const),
          ...([out, scratch, 1, 0, POSITIONS, HEAD_DIM, HEAD_DIM ** -0.5] as const),
        );
      }
      return heads.length * headBytes;
    }
  }
}

/** One token's list: n entries of `list` from the first on. */
function listAt(first: number, n: number): [offsets: Ptr, ids: Ptr, nTokens: number] {
  u32.set([0, n], offsets / 4);
  return [offsets, list + first * 4, 1];
}

const DONE: KernelReply = { begin: 0n, end: 0n, bytes: 0 };
parentPort!.on('message', (message: KernelMessage) => {
  if (message.type === 'run') {
    parentPort!.postMessage(run(message.case, message.sample));
  } else {
    prepare(message.format);
    parentPort!.postMessage(DONE);
  }
});
