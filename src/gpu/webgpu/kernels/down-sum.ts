/**
 * S3: the down projection over records that are listed, out[t] (+)= sum over k of coef[k] * down[ids[k]], in two
 * dispatches. Records whose coefficient is zero are not read.
 *
 *   1. Entries are cut into slices of 128. A work-group takes a slice and a tile of columns: it drops the zeros of
 *      the slice, keeping the order, and its four teams add every fourth of what is left; (t0 + t1) + (t2 + t3) is the
 *      slice's partial sum.
 *   2. The partial sums of a token are added in the order of the slices.
 *
 * So the order depends on a token's own entries alone: not on the tile, on the device, or on other tokens.
 */
import {
  GROUP,
  alignUp,
  COLUMN_MULTIPLE,
  Q4_OFFSET,
  Q8_OFFSET,
  scaleOffset,
  type WeightFormat,
} from '../../../kernels/layout.js';
import type { GpuDevice } from '../device.js';
import type { BufferPart, Dispatch, KernelBinding, KernelText } from '../kernel.js';
import { bytesOfRow, operation, partUniforms, PART_TYPE, type Operation } from '../operation.js';
import { vectorStride, type GpuRows } from '../rows.js';
import type { Tuning } from '../tuning.js';
import { LIST_BINDINGS } from './text.js';

/** Entries of a slice. Part of the order of addition: not to be tuned. */
export const SLICE = 128;
/** Teams of a work-group, and their threads: together 256. The number of teams is part of the order. */
const TEAMS = 4;
const TEAM = 64;

export const sliceCount = (entries: number): number => Math.ceil(entries / SLICE);

export interface DownSumShape {
  format: WeightFormat;
  /** Bytes from one record to the next, and to its down row. */
  stride: number;
  offset: number;
  /** Length of the sum. */
  cols: number;
  /** Entries from one token to the next. */
  entryStride: number;
  /** Entries are a list with ids and counts, or all neurons. */
  listed: boolean;
  /** Columns from one partial sum to the next, and slices of a token. */
  slices: number;
  cut?: boolean;
  /** 4-byte words of a record that a thread takes. @default 1 */
  words?: 1 | 2 | 4;
}

const VECTORS: Record<WeightFormat, number> = { f32: 1, q8: 1, q4: 2 };

/** Vectors of four columns whose codes are in one word (f32: four words), and where they belong. */
function wordText(shape: DownSumShape): { load: string; code: string; vectors: number } {
  const { format, cols } = shape;
  const words = shape.words ?? 1;
  if (format === 'f32') {
    return { load: 'vec4<u32>', vectors: 1, code: `fn column(word: u32, i: u32) -> u32 { return word; }` };
  }
  const load = words === 1 ? 'u32' : `vec${words}<u32>`;
  const padded = alignUp(cols, COLUMN_MULTIPLE);
  const groups = Math.ceil(padded / GROUP);
  const last = padded - (groups - 1) * GROUP;
  // A word has four columns of q8; in q4 four, and four more half a group later. Counted in vec4s.
  const column =
    format === 'q8'
      ? 'return word;'
      : `let g = word / 16u;
  let half = select(${GROUP / 8}u, ${last / 8}u, g == ${groups - 1}u);
  return g * 32u + word % 16u + i * half;`;
  return { load, vectors: VECTORS[format], code: `fn column(word: u32, i: u32) -> u32 { ${column} }` };
}

export function downSumText(shape: DownSumShape): KernelText {
  const { format, cols, listed, cut } = shape;
  const { load, code, vectors } = wordText(shape);
  const words = format === 'f32' ? 1 : (shape.words ?? 1);
  const elementBytes = format === 'f32' ? 16 : 4 * words;
  const padded = format === 'f32' ? alignUp(cols, 4) : alignUp(cols, COLUMN_MULTIPLE);
  // Threads have `words` words each; a record has so many of them.
  const elements = format === 'f32' ? padded / 4 : padded / (format === 'q4' ? 8 : 4) / words;
  const perThread = words * vectors;
  const list = (n: number, text: (i: number) => string, separator = '\n    '): string =>
    Array.from({ length: n }, (_, i) => text(i)).join(separator);
  const bindings: KernelBinding[] = [
    { name: 'w', access: 'read', type: `array<${load}>` },
    ...(format === 'f32' ? [] : [{ name: 'scales', access: 'read', type: 'array<u32>' } as const]),
    { name: 'coef', access: 'read', type: 'array<f32>' },
    { name: 'part', access: 'uniform', type: PART_TYPE },
    ...(listed ? LIST_BINDINGS : []),
    { name: 'partial', access: 'write', type: 'array<vec4<f32>>' },
  ];
  const word = (k: number): string => (words === 1 ? 'v' : `v[${k}]`);
  const magic = (bits: string, offset: number): string =>
    `bitcast<vec4<f32>>((${bits}) | vec4<u32>(0x4B000000u)) - vec4<f32>(${8_388_608 + offset}.0)`;
  const codes = (k: number, i: number): string => {
    if (format === 'f32') return 'bitcast<vec4<f32>>(v)';
    if (format === 'q8')
      return magic(`(vec4<u32>(${word(k)}) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u)`, Q8_OFFSET);
    const shifts = [0, 8, 16, 24].map((s) => `${s + 4 * i}u`).join(', ');
    return magic(`(vec4<u32>(${word(k)}) >> vec4<u32>(${shifts})) & vec4<u32>(15u)`, Q4_OFFSET);
  };
  const scale =
    format === 'f32'
      ? ''
      : `let pair = scales[record * ${shape.stride / 4}u + ${(shape.offset + scaleOffset(format, cols)) / 4}u + g / 2u];
        c *= bitcast<f32>(select(pair << 16u, pair & 0xffff0000u, g % 2u == 1u));`;
  const groupOf = format === 'q4' ? 16 : 32;
  return {
    name: `down-sum ${format}${listed ? ' list' : ''}`,
    constants: {
      SLICE,
      TEAMS,
      TEAM,
      ENTRY_STRIDE: shape.entryStride,
      SLICES: shape.slices,
      ELEMENTS: elements,
      OUT: vectorStride(cols) / 4,
    },
    bindings,
    code: `
${code}
var<workgroup> mask: array<atomic<u32>, SLICE / 32u>;
var<workgroup> records: array<u32, SLICE>;
var<workgroup> factors: array<f32, SLICE>;
var<workgroup> teams: array<vec4<f32>, ${TEAMS * TEAM * perThread}>;
fn is_nan(value: f32) -> bool { return (bitcast<u32>(value) & 0x7fffffffu) > 0x7f800000u; }
@compute @workgroup_size(${TEAMS * TEAM})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let slice = group.y;
  let token = group.z;
  let count = ${listed ? 'counts[token]' : 'part.y'};
  let lane = thread % TEAM;
  let team = thread / TEAM;
  let element = group.x * TEAM + lane;
  if (slice * SLICE >= count) { return; }

  // ---- the slice's entries that are not zero
  var kept = 0u;
  var factor = 0.0;
  var id = 0u;
  if (thread < SLICE) {
    let k = slice * SLICE + thread;
    if (k < count) {
      id = ${listed ? 'ids[token * ENTRY_STRIDE + k]' : 'part.x + k'};
      factor = coef[token * ENTRY_STRIDE + ${listed ? 'k' : 'id'}];
      kept = select(0u, 1u, factor != 0.0 || is_nan(factor));
      ${listed && cut ? 'if (id - part.x >= part.y) { kept = 0u; }' : ''}
    }
    if (kept == 1u) { atomicOr(&mask[thread / 32u], 1u << (thread % 32u)); }
  }
  workgroupBarrier();
  // An entry's place is how many of those before it are kept.
  var entries = 0u;
  var place = 0u;
  for (var word = 0u; word < SLICE / 32u; word++) {
    let bits = atomicLoad(&mask[word]);
    if (word < thread / 32u) { place += countOneBits(bits); }
    if (word == thread / 32u) { place += countOneBits(bits & ((1u << (thread % 32u)) - 1u)); }
    entries += countOneBits(bits);
  }
  if (kept == 1u) {
    records[place] = id - part.x;
    factors[place] = factor;
  }
  workgroupBarrier();

  // ---- their sum: a team takes every fourth
  ${list(perThread, (i) => `var sum_${i} = vec4<f32>();`, '\n  ')}
  if (element < ELEMENTS) {
    let g = element * ${words}u / ${groupOf}u;
    for (var e = team; e < entries; e += TEAMS) {
      let record = records[e];
      var c = factors[e];
      let v = w[record * ${shape.stride / elementBytes}u + ${shape.offset / elementBytes}u + element];
      ${scale}
      ${list(perThread, (i) => `sum_${i} = fma(vec4<f32>(c), ${codes(Math.floor(i / vectors), i % vectors)}, sum_${i});`, '\n      ')}
    }
  }
  ${list(perThread, (i) => `teams[${i}u * ${TEAMS * TEAM}u + thread] = sum_${i};`, '\n  ')}
  workgroupBarrier();
  if (team == 0u && element < ELEMENTS) {
    let out = (token * SLICES + ${listed ? 'slice' : 'part.z + slice'}) * OUT;
    ${list(perThread, (i) => {
      const of = (t: number): string => `teams[${i}u * ${TEAMS * TEAM}u + ${t * TEAM}u + lane]`;
      const at = `out + column(element * ${words}u + ${Math.floor(i / vectors)}u, ${i % vectors}u)`;
      const sum = `(${of(0)} + ${of(1)}) + (${of(2)} + ${of(3)})`;
      return listed && cut
        ? `{ let at = ${at}; let sum = ${sum}; if (part.x == 0u) { partial[at] = sum; } else { partial[at] += sum; } }`
        : `partial[${at}] = ${sum};`;
    })}
  }
}`,
  };
}

/** out[t][c] (+)= the partial sums of token t: one thread for four columns. */
export function addSlicesText(shape: {
  cols: number;
  slices: number;
  outStride: number;
  listed: boolean;
  add: boolean;
  bias: boolean;
}): KernelText {
  const { cols, slices, outStride, listed, add, bias } = shape;
  return {
    name: 'add-slices',
    constants: { SLICE, SLICES: slices, COLS: cols, WIDTH: vectorStride(cols) / 4, OUT_STRIDE: outStride },
    bindings: [
      { name: 'partial', access: 'read', type: 'array<vec4<f32>>' },
      listed
        ? { name: 'counts', access: 'read', type: 'array<u32>' }
        : { name: 'part', access: 'uniform', type: 'vec4<u32>' },
      ...(bias ? [{ name: 'bias', access: 'read', type: 'array<f32>' } as const] : []),
      { name: 'out', access: 'write', type: 'array<f32>' },
    ],
    code: `
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let at = group.x * 64u + thread;
  if (at >= WIDTH) { return; }
  let used = ${listed ? '(counts[group.y] + SLICE - 1u) / SLICE' : 'part.x'};
  var sum = vec4<f32>();
  for (var s = 0u; s < used; s++) { sum += partial[(group.y * SLICES + s) * WIDTH + at]; }
  for (var i = 0u; i < 4u; i++) {
    let c = at * 4u + i;
    if (c < COLS) {
      let value = sum[i]${bias ? ' + bias[c]' : ''};
      out[group.y * OUT_STRIDE + c] = ${add ? 'out[group.y * OUT_STRIDE + c] + ' : ''}value;
    }
  }
}`,
  };
}

export interface DownSumBuffers {
  /** f32 [tokens][entryStride] */
  coef: BufferPart;
  ids?: BufferPart;
  counts?: BufferPart;
  /** downSumScratch floats: [tokens][slices][vectorStride(cols)] */
  partial: BufferPart;
  bias?: BufferPart;
  out: BufferPart;
}

/** Floats of `partial` for so many tokens. */
export const downSumScratch = (entries: number, cols: number, tokens: number): number =>
  tokens * (sliceCount(entries) + 1) * vectorStride(cols);

/** What was tuned, or less: records begin at whole loads, and the teams' sums fit into work-group memory. */
function wordsFor(
  { facts }: GpuDevice,
  { downWords }: Tuning,
  format: WeightFormat,
  stride: number,
  offset: number,
): 1 | 2 | 4 {
  if (format === 'f32') return 1;
  const bytes = (words: number): number => TEAMS * TEAM * 16 * words * VECTORS[format] + 12 * SLICE;
  const fits = (words: number): boolean =>
    stride % (4 * words) === 0 && offset % (4 * words) === 0 && bytes(words) <= facts.maxWorkgroupBytes;
  return ([4, 2] as const).find((words) => words <= downWords && fits(words)) ?? 1;
}

/** Prepares S3. @param shape.offset bytes from a record's beginning to its down row */
export async function downSum(
  gpu: GpuDevice,
  tuning: Tuning,
  records: GpuRows,
  shape: { offset: number; entryStride: number; outStride: number; listed: boolean; add?: boolean },
  buffers: DownSumBuffers,
): Promise<Operation> {
  const { cols, stride, parts } = records;
  const format = records.format as WeightFormat;
  const { listed, offset, entryStride, outStride, add = false } = shape;
  const cut = parts.length > 1;
  // A range's parts have slices of their own, the last of each perhaps a short one.
  const partSlices = parts.map(({ rows }) => sliceCount(rows));
  const slices = listed
    ? sliceCount(Math.min(records.rows, entryStride))
    : partSlices.reduce((sum, n) => sum + n, 0);
  const words = wordsFor(gpu, tuning, format, stride, offset);
  const { coef, ids, counts, partial, bias, out } = buffers;
  const kernel = await gpu.kernel(
    downSumText({ format, stride, offset, cols, entryStride, listed, slices, cut, words }),
  );
  const adding = await gpu.kernel(
    addSlicesText({ cols, slices, outStride, listed, add, bias: bias !== undefined }),
  );
  const columns = Math.ceil(vectorStride(cols) / 4 / (VECTORS[format] * words * TEAM));
  const bound: { bindings: GPUBindGroup; slices: number }[] = [];
  let before = 0;
  for (const [p, part] of parts.entries()) {
    const [{ uniform }] = await partUniforms(gpu, kernel.name, { ...records, parts: [part] }, [before, 0]);
    const weights = format === 'f32' ? [part.buffer] : [part.buffer, part.buffer];
    const lists = listed ? [ids!, counts!] : [];
    bound.push({
      bindings: kernel.bind(...weights, coef, uniform, ...lists, partial),
      slices: listed ? slices : partSlices[p],
    });
    before += partSlices[p];
  }
  const [{ uniform: used }] = await partUniforms(gpu, adding.name, {
    ...records,
    parts: [{ ...parts[0], first: slices }],
  });
  const addBindings = adding.bind(partial, listed ? counts! : used, ...(bias ? [bias] : []), out);
  return operation(
    kernel.name,
    (tokens) => [
      ...bound.map((part): Dispatch => ({
        kernel,
        bindings: part.bindings,
        workgroups: [columns, part.slices, tokens],
      })),
      { kernel: adding, bindings: addBindings, workgroups: [Math.ceil(vectorStride(cols) / 4 / 64), tokens] },
    ],
    ({ active }) => active * bytesOfRow(records),
  );
}
