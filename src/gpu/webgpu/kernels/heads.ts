/**
 * Heads of q, k and v as attention wants them, a work-group a head and row: bias, RMS norm of the head, RoPE; then
 * q goes back where it stood, k and v go to their page of the cache.
 *
 * A layer's keys (and values) are [kvHeads][rows][words of a row]. A row is headDim floats, or, in q8, headDim codes
 * in -127..127, four in a word, and then their scale.
 */
import type { KvFormat } from '../../../kernels/kernels.js';
import { KV_PAGE } from '../../../kernels/layout.js';
import type { KernelText } from '../kernel.js';
import { float, LARGEST, REDUCTION } from './text.js';

/** Heads, their cache, and where a step says which row of it is whose. */
export interface CacheShape {
  heads: number;
  kvHeads: number;
  headDim: number;
  /** Positions of one head in the cache. */
  kvRows: number;
  kvFormat: KvFormat;
  /** Word offsets in the step: positions and slots of rows, page tables and their length. */
  position: number;
  slot: number;
  tables: number;
  tablePages: number;
}

export interface HeadsShape extends CacheShape {
  /** The first dimensions of q and k that rotate; 0: none. */
  rotaryDims: number;
  /** Offsets in the layer's vectors; -1: none. */
  bias: number;
  qNorm: number;
  kNorm: number;
  /** The bias of q and k was added before, with the norm of all heads. */
  biasOnValuesOnly: boolean;
  epsilon: number;
}

/** Words of a row of the cache. */
export const kvRowWords = (format: KvFormat, headDim: number): number =>
  format === 'f32' ? headDim : headDim / 4 + 1;

export const cacheConstants = (shape: CacheShape): KernelText['constants'] => ({
  HEAD: shape.headDim,
  KV_ROWS: shape.kvRows,
  ROW_WORDS: kvRowWords(shape.kvFormat, shape.headDim),
  PAGE: KV_PAGE,
  POSITION: shape.position,
  SLOT: shape.slot,
  TABLES: shape.tables,
  TABLE_PAGES: shape.tablePages,
});

const WORKGROUP = 64;

/** Bindings: step, vectors, angles, qkv, keys, values. Dispatch: heads + 2 kvHeads, rows. */
export function headsKernel(shape: HeadsShape): KernelText {
  const { heads, kvHeads, rotaryDims, bias, qNorm, kNorm } = shape;
  const normed = qNorm >= 0;
  const store = (into: string): string =>
    shape.kvFormat === 'f32'
      ? /* wgsl */ `for (var i = lane; i < HEAD; i += WG) { ${into}[at + i] = bitcast<u32>(v[i]); }`
      : /* wgsl */ `if (lane == 0u) { ${into}[at + HEAD / 4u] = bitcast<u32>(scale); }
      for (var i = lane; i < HEAD / 4u; i += WG) { ${into}[at + i] = codes(i, inverse); }`;
  const code = /* wgsl */ `
var<workgroup> v: array<f32, HEAD>;
${REDUCTION}
${LARGEST}
/** Four codes of v, rounded to nearest. */
fn codes(i: u32, inverse: f32) -> u32 {
  var word = 0u;
  for (var j = 0u; j < 4u; j++) {
    word |= (bitcast<u32>(i32(round(v[4u * i + j] * inverse))) & 255u) << (8u * j);
  }
  return word;
}
@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let unit = group.x;
  let t = group.y;
  let start = t * (HEADS + 2u * KV_HEADS) * HEAD + unit * HEAD;
  let isValue = unit >= HEADS + KV_HEADS;
  for (var i = lane; i < HEAD; i += WG) { v[i] = qkv[start + i]; }
${bias < 0 ? '' : /* wgsl */ `  if (${shape.biasOnValuesOnly ? 'isValue' : 'true'}) { for (var i = lane; i < HEAD; i += WG) { v[i] += vectors[${bias}u + unit * HEAD + i]; } }`}
${
  normed
    ? /* wgsl */ `  if (!isValue) {
    var squares = 0.0;
    for (var i = lane; i < HEAD; i += WG) { squares += v[i] * v[i]; }
    let factor = 1.0 / sqrt(total(squares, lane) / f32(HEAD) + EPSILON);
    let weight = select(${kNorm}u, ${qNorm}u, unit < HEADS);
    for (var i = lane; i < HEAD; i += WG) { v[i] = v[i] * factor * vectors[weight + i]; }
  }`
    : ''
}
  workgroupBarrier();
${
  rotaryDims > 0
    ? /* wgsl */ `  if (!isValue) {
    let turn = step[POSITION + t] * HALF;
    for (var i = lane; i < HALF; i += WG) {
      let angle = angles[turn + i];
      let a = v[i];
      let b = v[i + HALF];
      v[i] = a * angle.x - b * angle.y;
      v[i + HALF] = b * angle.x + a * angle.y;
    }
  }
  workgroupBarrier();`
    : ''
}
  if (unit < HEADS) {
    for (var i = lane; i < HEAD; i += WG) { qkv[start + i] = v[i]; }
    return;
  }
  let position = step[POSITION + t];
  let page = step[TABLES + step[SLOT + t] * TABLE_PAGES + position / PAGE];
  let head = select(unit - HEADS, unit - HEADS - KV_HEADS, isValue);
  let at = (head * KV_ROWS + page * PAGE + position % PAGE) * ROW_WORDS;
${
  shape.kvFormat === 'f32'
    ? ''
    : /* wgsl */ `  var most = 0.0;
  for (var i = lane; i < HEAD; i += WG) { most = max(most, abs(v[i])); }
  let scale = largest(most, lane) / 127.0;
  let inverse = select(1.0 / scale, 0.0, scale == 0.0);`
}
  if (isValue) { ${store('values')} } else { ${store('keys')} }
}`;
  return {
    name: 'heads',
    constants: {
      ...cacheConstants(shape),
      HEADS: heads,
      KV_HEADS: kvHeads,
      HALF: rotaryDims / 2,
      WG: WORKGROUP,
      EPSILON: float(shape.epsilon),
    },
    bindings: [
      { name: 'step', access: 'read', type: 'array<u32>' },
      { name: 'vectors', access: 'read', type: 'array<f32>' },
      { name: 'angles', access: 'read', type: 'array<vec2f>' },
      { name: 'qkv', access: 'write', type: 'array<f32>' },
      { name: 'keys', access: 'write', type: 'array<u32>' },
      { name: 'values', access: 'write', type: 'array<u32>' },
    ],
    code,
  };
}
