/**
 * The kernel table: one declaration per kernel. From it follow the TypeScript interface (`KernelFunctions`), the
 * functions of the wasm and native loaders (call.ts), and what the native addon checks before each call
 * (native/declarations.ts): a pointer's declaration says how far it reaches. The addon refuses to bind when its
 * own functions take other arguments or it was built for another table.
 *
 * How far a pointer reaches is `times` items (default 1) of `size` (default 1) elements each, `stride` apart:
 *
 *     f32, u32, byte    `size` of them
 *     row               a weight or sketch row of `format` with `size` columns
 *     storedRow         the same with its padding
 *     vector            what rows of `format` are multiplied with: f32 or Q8A
 *     q8a               a Q8A vector
 *     sums              f32, as many as `format` pads `size` columns to
 *     kvRow, kvScale    a row of a KV head of `size` elements; its scale (q8 only)
 *
 * A measure is the value of an argument (`n`), or derived from one: `n + 1`; `aligned(n)`, n up to a multiple
 * of 16; `half(n)`; `pages(n)`, the KV pages of n positions; `last(offsets)`, the last of nTokens + 1 offsets,
 * which must ascend; `reach(ids)`, the largest id of the lists plus one; `rows(table)`, the rows of the largest
 * page that is read: from the position in the argument before the one that measures the table (begin, nPos).
 */
import type { ActivationKind, KvFormat, Ptr } from './kernels.js';
import type { RowFormat, WeightFormat } from './layout.js';

/** Types of arguments that are no pointers. `count`: a whole number from 0; `real`: any number. */
export interface ScalarTypes {
  rowFormat: RowFormat;
  weightFormat: WeightFormat;
  kvFormat: KvFormat;
  activation: ActivationKind;
  count: number;
  real: number;
}

export type Item =
  'f32' | 'u32' | 'byte' | 'row' | 'storedRow' | 'vector' | 'q8a' | 'sums' | 'kvRow' | 'kvScale';

export interface Pointer {
  of: Item;
  size?: string;
  times?: string;
  /** The argument that holds the bytes (floatStride: floats) from one item to the next. */
  stride?: string;
  floatStride?: string;
  /** 0 stands for "none". */
  optional?: true;
}

export type Argument = readonly [name: string, type: keyof ScalarTypes | Pointer];
export type Result = 'nothing' | 'count' | 'real';

export interface Declaration {
  readonly result: Result;
  readonly args: readonly Argument[];
}

const kernel = <const R extends Result, const A extends readonly Argument[]>(
  result: R,
  ...args: A
): { result: R; args: A } => ({ result, args });

export const KERNELS = {
  // ---- activations ---------------------------------------------------------------------------------

  /** x [n] f32 -> Q8A vector (layout.ts) at dst; columns past n up to the padding are zero. */
  quantize: kernel(
    'nothing',
    ['x', { of: 'f32', size: 'n' }],
    ['dst', { of: 'q8a', size: 'n' }],
    ['n', 'count'],
  ),

  // ---- S1/S2: dot products with rows -----------------------------------------------------------------

  /** out[t * outStride + r] = W[r] . X[t]. `stride` and `xStride` are bytes, outStride counts floats. */
  dot: kernel(
    'nothing',
    ['format', 'rowFormat'],
    ['w', { of: 'row', size: 'cols', times: 'rows', stride: 'stride' }],
    ['stride', 'count'],
    ['rows', 'count'],
    ['x', { of: 'vector', size: 'cols', times: 'nTokens', stride: 'xStride' }],
    ['xStride', 'count'],
    ['nTokens', 'count'],
    ['out', { of: 'f32', size: 'rows', times: 'nTokens', floatStride: 'outStride' }],
    ['outStride', 'count'],
    ['cols', 'count'],
  ),
  /**
   * Each token's list of rows, compressed by token: for k in offsets[t] .. offsets[t + 1] - 1,
   * out[k] = W[ids[k]] . X[t]. A token's ids ascend. ids, out and offsets are 4-byte aligned.
   */
  dotLists: kernel(
    'nothing',
    ['format', 'rowFormat'],
    ['w', { of: 'row', size: 'cols', times: 'reach(ids)', stride: 'stride' }],
    ['stride', 'count'],
    ['offsets', { of: 'u32', size: 'nTokens + 1' }],
    ['ids', { of: 'u32', size: 'last(offsets)' }],
    ['nTokens', 'count'],
    ['x', { of: 'vector', size: 'cols', times: 'nTokens', stride: 'xStride' }],
    ['xStride', 'count'],
    ['out', { of: 'f32', size: 'last(offsets)' }],
    ['cols', 'count'],
  ),

  // ---- S3: sums of scaled rows -------------------------------------------------------------------------

  /** out[t * outStride + c] += sum of coef[k] * W[ids[k]][c] over the token's list (as in dotLists). */
  sumLists: kernel(
    'nothing',
    ['format', 'weightFormat'],
    ['w', { of: 'row', size: 'cols', times: 'reach(ids)', stride: 'stride' }],
    ['stride', 'count'],
    ['offsets', { of: 'u32', size: 'nTokens + 1' }],
    ['ids', { of: 'u32', size: 'last(offsets)' }],
    ['nTokens', 'count'],
    ['coef', { of: 'f32', size: 'last(offsets)' }],
    ['out', { of: 'sums', size: 'cols', times: 'nTokens', floatStride: 'outStride' }],
    ['outStride', 'count'],
    ['cols', 'count'],
  ),

  // ---- choosing neurons --------------------------------------------------------------------------------

  /**
   * sigma and compaction. For i < n, neuron id = ids ? ids[i] : firstId + i. Where sigma(gate[i]) != 0 (smooth
   * kinds: |sigma(gate[i])| > threshold, or with weight |sigma(gate[i])| weight[i] > threshold; NaN passes), append
   * its id to outIds and sigma(gate[i]) to outAct. Returns how many passed.
   * `drelu` filters by the gate here and applies relu to up in `gateUp`. outIds may be ids, outAct may be gate.
   * The threshold is rounded to f32 first.
   */
  activate: kernel(
    'count',
    ['kind', 'activation'],
    ['threshold', 'real'],
    ['gate', { of: 'f32', size: 'n' }],
    ['n', 'count'],
    ['ids', { of: 'u32', size: 'n', optional: true }],
    ['firstId', 'count'],
    ['weight', { of: 'f32', size: 'n', optional: true }],
    ['outIds', { of: 'u32', size: 'n' }],
    ['outAct', { of: 'f32', size: 'n' }],
  ),
  /** act[i] *= up[i] (drelu: relu(up[i])) for i < n. Returns how many products are not zero. */
  gateUp: kernel(
    'count',
    ['kind', 'activation'],
    ['act', { of: 'f32', size: 'n' }],
    ['up', { of: 'f32', size: 'n' }],
    ['n', 'count'],
  ),
  /** gate[i] = |sigma(gate[i]) * up[i]| for i < n (up 0: |sigma(gate[i])|; thresholds are 0). */
  contribution: kernel(
    'nothing',
    ['kind', 'activation'],
    ['gate', { of: 'f32', size: 'n' }],
    ['up', { of: 'f32', size: 'n', optional: true }],
    ['n', 'count'],
  ),
  /**
   * Where |act[i] * times[i]| * weight[ids[i]] >= least for i < n (times 0: all ones; NaN passes), append ids[i] to
   * outIds and act[i] to outAct. Returns how many passed. outIds may be ids or stand before it, outAct likewise.
   */
  keepLarge: kernel(
    'count',
    ['act', { of: 'f32', size: 'n' }],
    ['times', { of: 'f32', size: 'n', optional: true }],
    ['ids', { of: 'u32', size: 'n' }],
    ['n', 'count'],
    ['weight', { of: 'f32', size: 'reach(ids)' }],
    ['least', 'real'],
    ['outIds', { of: 'u32', size: 'n' }],
    ['outAct', { of: 'f32', size: 'n' }],
  ),
  /** Append firstId + i to outIds where score[i] >= cut[i]; cut is f32 [n]. Returns how many. */
  selectAbove: kernel(
    'count',
    ['score', { of: 'f32', size: 'n' }],
    ['cut', { of: 'f32', size: 'n' }],
    ['n', 'count'],
    ['firstId', 'count'],
    ['outIds', { of: 'u32', size: 'n' }],
  ),
  /** x[i] = max(0, x[i] + bias[i]) for i < n (bias 0: none). */
  biasRelu: kernel(
    'nothing',
    ['x', { of: 'f32', size: 'n' }],
    ['bias', { of: 'f32', size: 'n', optional: true }],
    ['n', 'count'],
  ),
  /** x[i] += bias[ids[i]] for i < n. */
  addListed: kernel(
    'nothing',
    ['x', { of: 'f32', size: 'n' }],
    ['bias', { of: 'f32', size: 'reach(ids)' }],
    ['ids', { of: 'u32', size: 'n' }],
    ['n', 'count'],
  ),

  // ---- the rest of the layer ---------------------------------------------------------------------------

  /** out = x / sqrt(mean(x^2) + eps) * weight. Returns mean(x^2), so that the caller sees NaN for free. */
  rmsNorm: kernel(
    'real',
    ['x', { of: 'f32', size: 'n' }],
    ['weight', { of: 'f32', size: 'n' }],
    ['out', { of: 'f32', size: 'n' }],
    ['n', 'count'],
    ['eps', 'real'],
  ),
  /**
   * out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias (bias 0: none), var the mean squared distance from
   * the mean. Returns mean(x^2), as rmsNorm does.
   */
  layerNorm: kernel(
    'real',
    ['x', { of: 'f32', size: 'n' }],
    ['weight', { of: 'f32', size: 'n' }],
    ['bias', { of: 'f32', size: 'n', optional: true }],
    ['out', { of: 'f32', size: 'n' }],
    ['n', 'count'],
    ['eps', 'real'],
  ),
  /** Rotate-half RoPE in place on one head: pairs (i, i + headDim/2); cos and sin are f32 [headDim/2]. */
  rope: kernel(
    'nothing',
    ['x', { of: 'f32', size: 'headDim' }],
    ['cos', { of: 'f32', size: 'half(headDim)' }],
    ['sin', { of: 'f32', size: 'half(headDim)' }],
    ['headDim', 'count'],
  ),
  /** x[i] += scale * y[i] */
  addScaled: kernel(
    'nothing',
    ['x', { of: 'f32', size: 'n' }],
    ['y', { of: 'f32', size: 'n' }],
    ['scale', 'real'],
    ['n', 'count'],
  ),
  /** softmax in place over x[0..n) */
  softmax: kernel('nothing', ['x', { of: 'f32', size: 'n' }], ['n', 'count']),

  // ---- attention ---------------------------------------------------------------------------------------

  /** Write one head vector (f32 [headDim]) as row `row` of a KV head: data, and for q8 its scale. */
  storeKv: kernel(
    'nothing',
    ['format', 'kvFormat'],
    ['x', { of: 'f32', size: 'headDim' }],
    ['data', { of: 'kvRow', size: 'headDim', times: 'row + 1' }],
    ['scales', { of: 'kvScale', times: 'row + 1' }],
    ['row', 'count'],
    ['headDim', 'count'],
  ),
  /**
   * Attention of `group` query heads that share one KV head, over positions begin .. nPos - 1. Position p stands
   * in row table[floor(p / KV_PAGE)] * KV_PAGE + p % KV_PAGE; table is u32, and its pages before that of `begin`
   * are not read. q, out: [group][headDim] f32; scores: scratch [group][alignUp(nPos, 16)] f32. A head's result
   * does not depend on the others of its group.
   */
  attention: kernel(
    'nothing',
    ['format', 'kvFormat'],
    ['q', { of: 'f32', size: 'headDim', times: 'group' }],
    ['kData', { of: 'kvRow', size: 'headDim', times: 'rows(table)' }],
    ['kScales', { of: 'kvScale', times: 'rows(table)' }],
    ['vData', { of: 'kvRow', size: 'headDim', times: 'rows(table)' }],
    ['vScales', { of: 'kvScale', times: 'rows(table)' }],
    ['table', { of: 'u32', size: 'pages(nPos)' }],
    ['out', { of: 'f32', size: 'headDim', times: 'group' }],
    ['scores', { of: 'f32', size: 'aligned(nPos)', times: 'group' }],
    ['group', 'count'],
    ['begin', 'count'],
    ['nPos', 'count'],
    ['headDim', 'count'],
    ['scale', 'real'],
  ),

  // ---- making rows (convert) ---------------------------------------------------------------------------

  /** Quantise f32 rows [rows][cols] (xStride bytes apart) into `format` rows at dst (dstStride bytes apart). */
  quantizeRows: kernel(
    'nothing',
    ['format', 'weightFormat'],
    ['x', { of: 'f32', size: 'cols', times: 'rows', stride: 'xStride' }],
    ['xStride', 'count'],
    ['rows', 'count'],
    ['dst', { of: 'storedRow', size: 'cols', times: 'rows', stride: 'dstStride' }],
    ['dstStride', 'count'],
    ['cols', 'count'],
  ),
  /** Row -> f32 [cols]: the embedding look-up. */
  dequantizeRow: kernel(
    'nothing',
    ['format', 'weightFormat'],
    ['w', { of: 'storedRow', size: 'cols' }],
    ['out', { of: 'f32', size: 'cols' }],
    ['cols', 'count'],
  ),

  /** Sum of all bytes of [begin, begin + bytes) as u32 words: the read probe of `bench`. bytes: multiple of 64. */
  readProbe: kernel('count', ['begin', { of: 'byte', size: 'bytes' }], ['bytes', 'count']),
};

export type KernelName = keyof typeof KERNELS;
export const KERNEL_NAMES = Object.keys(KERNELS) as KernelName[];

type ArgumentType<A> = A extends readonly [string, infer T]
  ? T extends keyof ScalarTypes
    ? ScalarTypes[T]
    : Ptr
  : never;
type ArgumentTypes<A extends readonly Argument[]> = { [I in keyof A]: ArgumentType<A[I]> };

/** The kernels as functions: positional arguments in the order of their declarations. */
export type KernelFunctions = {
  [K in KernelName]: (
    ...args: ArgumentTypes<(typeof KERNELS)[K]['args']>
  ) => (typeof KERNELS)[K]['result'] extends 'nothing' ? void : number;
};
