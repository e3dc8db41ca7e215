/**
 * Softmax attention over the pages of the cache, a work-group a query head and row. Positions are taken in spans of
 * as many as the group has threads: a thread a score, then a thread a column of the values (several where heads are
 * short). Spans are merged in their order as they come: a row's result depends on nothing but the row and its cache.
 *
 *     m, l, o = most, sum of exp(s - m), sum of exp(s - m) v    over the positions so far
 */
import type { KernelText } from '../kernel.js';
import { cacheConstants, type CacheShape } from './heads.js';
import { float, LARGEST, REDUCTION } from './text.js';

/** headDim: at most ATTENTION_SPAN. */
export interface AttentionShape extends CacheShape {
  /** Floats between rows of out. */
  outStride: number;
  scale: number;
  /** Positions that are seen, the row's own included; Infinity: all. */
  window: number;
}

/** Threads of a work-group, positions of a span: what every device of WebGPU can do. */
export const ATTENTION_SPAN = 256;

/** Bindings: step, qkv, keys, values, out. Dispatch: heads, rows. */
export function attentionKernel(shape: AttentionShape): KernelText {
  const { heads, kvHeads, headDim, kvFormat } = shape;
  const q8 = kvFormat === 'q8';
  const element = (rows: string, at: string, c: string): string =>
    q8
      ? `f32(extractBits(bitcast<i32>(${rows}[${at} + (${c}) / 4u]), 8u * ((${c}) % 4u), 8u))`
      : `bitcast<f32>(${rows}[${at} + ${c}])`;
  const code = /* wgsl */ `
/** Below every score. */
const LEAST = -3.4e38;
var<workgroup> q: array<f32, HEAD>;
var<workgroup> weights: array<f32, WG>;
var<workgroup> rowsAt: array<u32, WG>;
${REDUCTION}
${LARGEST}
@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let h = group.x;
  let t = group.y;
  let end = step[POSITION + t] + 1u;
  let table = TABLES + step[SLOT + t] * TABLE_PAGES;
  let begin = ${Number.isFinite(shape.window) ? `select(0u, end - ${shape.window}u, end > ${shape.window}u)` : '0u'};
  let head = (h / GROUP) * KV_ROWS;
  for (var i = lane; i < HEAD; i += WG) { q[i] = qkv[t * WIDTH + h * HEAD + i]; }
  workgroupBarrier();
  let column = lane % HEAD;
  let part = lane / HEAD;
  var most = LEAST;
  var weight = 0.0;
  var sum = 0.0;
  for (var first = begin - begin % WG; first < end; first += WG) {
    let p = first + lane;
    let seen = p >= begin && p < end;
    var score = LEAST;
    if (seen) {
      let row = (head + step[table + p / PAGE] * PAGE + p % PAGE) * ROW_WORDS;
      rowsAt[lane] = row;
      var product = 0.0;
${
  q8
    ? /* wgsl */ `      for (var w = 0u; w < HEAD / 4u; w++) {
        let word = bitcast<i32>(keys[row + w]);
        product += q[4u * w] * f32(extractBits(word, 0u, 8u)) + q[4u * w + 1u] * f32(extractBits(word, 8u, 8u))
          + q[4u * w + 2u] * f32(extractBits(word, 16u, 8u)) + q[4u * w + 3u] * f32(extractBits(word, 24u, 8u));
      }
      product *= bitcast<f32>(keys[row + HEAD / 4u]);`
    : /* wgsl */ `      for (var c = 0u; c < HEAD; c++) { product += q[c] * bitcast<f32>(keys[row + c]); }`
}
      score = product * SCALE;
    }
    let spanMost = largest(score, lane);
    var w = 0.0;
    if (seen) { w = exp(score - spanMost); }
    let spanWeight = total(w, lane);
${q8 ? /* wgsl */ `    if (seen) { w *= bitcast<f32>(values[rowsAt[lane] + HEAD / 4u]); }` : ''}
    weights[lane] = w;
    workgroupBarrier();
    // Columns: each part takes every COLUMN_GROUPS-th position.
    var spanSum = 0.0;
    if (part < COLUMN_GROUPS) {
      let last = min(WG, end - first);
      let skipped = select(0u, begin - first, begin > first);
      for (var j = skipped + part; j < last; j += COLUMN_GROUPS) {
        spanSum += weights[j] * ${element('values', 'rowsAt[j]', 'column')};
      }
    }
    workgroupBarrier();
    let higher = max(most, spanMost);
    let before = exp(most - higher);
    let now = exp(spanMost - higher);
    sum = sum * before + spanSum * now;
    weight = weight * before + spanWeight * now;
    most = higher;
  }
  weights[lane] = sum;
  workgroupBarrier();
  if (part == 0u) {
    var whole = 0.0;
    for (var g = 0u; g < COLUMN_GROUPS; g++) { whole += weights[g * HEAD + column]; }
    out[t * OUT_STRIDE + h * HEAD + column] = whole / weight;
  }
}`;
  return {
    name: 'attention',
    constants: {
      ...cacheConstants(shape),
      OUT_STRIDE: shape.outStride,
      GROUP: heads / kvHeads,
      WIDTH: (heads + 2 * kvHeads) * headDim,
      WG: ATTENTION_SPAN,
      COLUMN_GROUPS: Math.floor(ATTENTION_SPAN / headDim),
      SCALE: float(shape.scale),
    },
    bindings: [
      { name: 'step', access: 'read', type: 'array<u32>' },
      { name: 'qkv', access: 'read', type: 'array<f32>' },
      { name: 'keys', access: 'read', type: 'array<u32>' },
      { name: 'values', access: 'read', type: 'array<u32>' },
      { name: 'out', access: 'write', type: 'array<f32>' },
    ],
    code,
  };
}
