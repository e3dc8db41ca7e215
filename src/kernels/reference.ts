/**
 * The reference kernels: scalar TypeScript, sums in float64, rounded to f32 when stored. This is the
 * definition of correct; the other backends are compared with it. Nothing here is fast on purpose.
 */
import {
  alignUp,
  GROUP,
  isSketch,
  KV_PAGE,
  paddedCols,
  q8aLayout,
  scaleOffset,
  sketchBits,
  type RowFormat,
} from './layout.js';
import { isSmooth, type ActivationKind, type Kernels, type KvFormat, type Ptr } from './kernels.js';
import { quantizeI8 } from './reference/rounding.js';
import { arenaViews } from './reference/views.js';
import { decodeSketchRow } from './reference/sketch-rows.js';
import { decodeCodes, decodeRow, encodeRow, rowScale } from './reference/weight-rows.js';

/** Kernels over `memory` (which must not grow afterwards). */
export function createReferenceKernels(memory: WebAssembly.Memory): Kernels {
  const mem = arenaViews(memory);
  const { f32, u32, i32, u8, i8 } = mem;
  const floats = (ptr: Ptr, n: number): Float32Array => f32.subarray(ptr / 4, ptr / 4 + n);

  /** One row times one activation vector: exact integers inside a group, float64 across groups. */
  const rowDot = (format: RowFormat, w: Ptr, stride: number, x: Ptr, cols: number): number => {
    if (isSketch(format)) return sketchDot(sketchBits(format), w, stride, x, cols);
    const codes = decodeCodes(mem, format, w, cols);
    let sum = 0;
    if (format === 'f32') {
      codes.forEach((value, c) => (sum += value * f32[x / 4 + c]));
      return sum;
    }
    const scales = w + scaleOffset(format, cols);
    const xScales = x + q8aLayout(cols).scales;
    for (let begin = 0, g = 0; begin < codes.length; begin += GROUP, g++) {
      let products = 0;
      for (let c = begin; c < Math.min(begin + GROUP, codes.length); c++) products += codes[c] * i8[x + c];
      sum += rowScale(mem, scales, g) * f32[xScales / 4 + g] * products;
    }
    return sum;
  };

  const sketchDot = (bits: 1 | 2 | 3, w: Ptr, stride: number, x: Ptr, cols: number): number => {
    const values = decodeSketchRow(bits, u8.subarray(w, w + stride), cols);
    const xScales = x + q8aLayout(cols).scales;
    let sum = 0;
    values.forEach((value, c) => (sum += value * i8[x + c] * f32[xScales / 4 + Math.floor(c / GROUP)]));
    return sum;
  };

  /** Calls `visit` for every entry of the tokens' lists. */
  const forEachEntry = (
    offsets: Ptr,
    ids: Ptr,
    nTokens: number,
    visit: (token: number, row: number, k: number) => void,
  ): void => {
    for (let t = 0; t < nTokens; t++) {
      for (let k = u32[offsets / 4 + t]; k < u32[offsets / 4 + t + 1]; k++) visit(t, u32[ids / 4 + k], k);
    }
  };

  const meanSquare = (x: Ptr, n: number): number =>
    floats(x, n).reduce((sum, value) => sum + value ** 2, 0) / n;

  /** Element c of row `row` of a KV head. */
  const kvValue = (
    format: KvFormat,
    data: Ptr,
    scales: Ptr,
    row: number,
    c: number,
    headDim: number,
  ): number =>
    format === 'f32'
      ? f32[data / 4 + row * headDim + c]
      : i8[data + row * headDim + c] * f32[scales / 4 + row];

  const kernels: Kernels = {
    name: 'reference',

    // ---- activations -------------------------------------------------------------------------------

    quantize(x, dst, n) {
      const layout = q8aLayout(n);
      const padded = new Float32Array(paddedCols('q8', n));
      padded.set(floats(x, n));
      for (let begin = 0, g = 0; begin < padded.length; begin += GROUP, g++) {
        const group = padded.subarray(begin, begin + GROUP);
        const codes = i8.subarray(dst + begin, dst + begin + group.length);
        f32[(dst + layout.scales) / 4 + g] = quantizeI8(group, codes);
        i32[(dst + layout.sums) / 4 + g] = codes.reduce((sum, code) => sum + code, 0);
      }
    },

    // ---- S1/S2: dot products with rows ---------------------------------------------------------------

    dot(format, w, stride, rows, x, xStride, nTokens, out, outStride, cols) {
      for (let t = 0; t < nTokens; t++) {
        for (let r = 0; r < rows; r++) {
          f32[out / 4 + t * outStride + r] = rowDot(format, w + r * stride, stride, x + t * xStride, cols);
        }
      }
    },

    dotLists(format, w, stride, offsets, ids, nTokens, x, xStride, out, cols) {
      forEachEntry(offsets, ids, nTokens, (token, row, k) => {
        f32[out / 4 + k] = rowDot(format, w + row * stride, stride, x + token * xStride, cols);
      });
    },

    // ---- S3: sums of scaled rows ---------------------------------------------------------------------

    sumLists(format, w, stride, offsets, ids, nTokens, coef, out, outStride, cols) {
      const n = paddedCols(format, cols);
      const sums = Array.from({ length: nTokens }, (_, t) =>
        Float64Array.from(floats(out + t * outStride * 4, n)),
      );
      forEachEntry(offsets, ids, nTokens, (token, row, k) => {
        const values = decodeRow(mem, format, w + row * stride, cols);
        values.forEach((value, c) => (sums[token][c] += f32[coef / 4 + k] * value));
      });
      sums.forEach((sum, t) => f32.set(sum, out / 4 + t * outStride));
    },

    // ---- choosing neurons ----------------------------------------------------------------------------

    activate(kind, threshold, gate, n, ids, firstId, weight, outIds, outAct) {
      let passed = 0;
      for (let i = 0; i < n; i++) {
        const id = ids === 0 ? firstId + i : u32[ids / 4 + i];
        const value = Math.fround(sigma(kind, Math.fround(threshold), f32[gate / 4 + i]));
        const size = Math.fround(Math.abs(value) * (weight === 0 ? 1 : f32[weight / 4 + i]));
        if (isSmooth(kind) ? size <= Math.fround(threshold) : value === 0) continue;
        u32[outIds / 4 + passed] = id;
        f32[outAct / 4 + passed] = value;
        passed++;
      }
      return passed;
    },

    gateUp(kind, act, up, n) {
      let nonZero = 0;
      for (let i = 0; i < n; i++) {
        const u = f32[up / 4 + i];
        f32[act / 4 + i] *= kind === 'drelu' && u <= 0 ? 0 : u;
        if (f32[act / 4 + i] !== 0) nonZero++;
      }
      return nonZero;
    },

    contribution(kind, gate, up, n) {
      for (let i = 0; i < n; i++) {
        const act = Math.fround(sigma(kind, 0, f32[gate / 4 + i]));
        const value = act * (up === 0 ? 1 : f32[up / 4 + i]);
        f32[gate / 4 + i] = Math.abs(value);
      }
    },

    keepLarge(act, times, ids, n, weight, least, outIds, outAct) {
      let kept = 0;
      for (let i = 0; i < n; i++) {
        const id = u32[ids / 4 + i];
        const value = f32[act / 4 + i];
        const size = Math.abs(times === 0 ? value : Math.fround(value * f32[times / 4 + i]));
        if (Math.fround(size * f32[weight / 4 + id]) < Math.fround(least)) continue;
        u32[outIds / 4 + kept] = id;
        f32[outAct / 4 + kept++] = value;
      }
      return kept;
    },

    selectAbove(score, cut, n, firstId, outIds) {
      let selected = 0;
      for (let i = 0; i < n; i++) {
        if (f32[score / 4 + i] >= f32[cut / 4 + i]) u32[outIds / 4 + selected++] = firstId + i;
      }
      return selected;
    },

    biasRelu(x, bias, n) {
      for (let i = 0; i < n; i++) {
        f32[x / 4 + i] = Math.max(0, f32[x / 4 + i] + (bias === 0 ? 0 : f32[bias / 4 + i]));
      }
    },

    addListed(x, bias, ids, n) {
      for (let i = 0; i < n; i++) f32[x / 4 + i] += f32[bias / 4 + u32[ids / 4 + i]];
    },

    // ---- the rest of the layer -----------------------------------------------------------------------

    rmsNorm(x, weight, out, n, eps) {
      const mean = meanSquare(x, n);
      const factor = 1 / Math.sqrt(mean + eps);
      for (let i = 0; i < n; i++) f32[out / 4 + i] = f32[x / 4 + i] * factor * f32[weight / 4 + i];
      return mean;
    },

    layerNorm(x, weight, bias, out, n, eps) {
      const square = meanSquare(x, n);
      const values = floats(x, n);
      const mean = values.reduce((sum, value) => sum + value, 0) / n;
      const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / n;
      const factor = 1 / Math.sqrt(variance + eps);
      for (let i = 0; i < n; i++) {
        const shift = bias === 0 ? 0 : f32[bias / 4 + i];
        f32[out / 4 + i] = (f32[x / 4 + i] - mean) * factor * f32[weight / 4 + i] + shift;
      }
      return square;
    },

    rope(x, cos, sin, headDim) {
      const half = headDim / 2;
      for (let i = 0; i < half; i++) {
        const a = f32[x / 4 + i];
        const b = f32[x / 4 + half + i];
        const c = f32[cos / 4 + i];
        const s = f32[sin / 4 + i];
        f32[x / 4 + i] = a * c - b * s;
        f32[x / 4 + half + i] = b * c + a * s;
      }
    },

    addScaled(x, y, scale, n) {
      for (let i = 0; i < n; i++) f32[x / 4 + i] += Math.fround(scale) * f32[y / 4 + i];
    },

    softmax(x, n) {
      const values = floats(x, n);
      let max = -Infinity;
      for (const value of values) max = Math.max(max, value);
      const exps = Float64Array.from(values, (value) => Math.exp(value - max));
      const sum = exps.reduce((a, b) => a + b, 0);
      exps.forEach((value, i) => (values[i] = value / sum));
    },

    // ---- attention -----------------------------------------------------------------------------------

    storeKv(format, x, data, scales, row, headDim) {
      const values = floats(x, headDim);
      if (format === 'f32') {
        f32.set(values, data / 4 + row * headDim);
      } else {
        const begin = data + row * headDim;
        f32[scales / 4 + row] = quantizeI8(values, i8.subarray(begin, begin + headDim));
      }
    },

    attention(
      ...[format, q, kData, kScales, vData, vScales, table, out, scores, group, begin, nPos, headDim, scale]
    ) {
      const rowOf = (p: number): number => u32[table / 4 + Math.floor(p / KV_PAGE)] * KV_PAGE + (p % KV_PAGE);
      for (let h = 0; h < group; h++) {
        const head = h * headDim;
        const probabilities = scores + h * alignUp(nPos, 16) * 4;
        for (let p = begin; p < nPos; p++) {
          let product = 0;
          for (let c = 0; c < headDim; c++) {
            product += f32[q / 4 + head + c] * kvValue(format, kData, kScales, rowOf(p), c, headDim);
          }
          f32[probabilities / 4 + p] = product * scale;
        }
        kernels.softmax(probabilities + begin * 4, Math.max(0, nPos - begin));
        for (let c = 0; c < headDim; c++) {
          let sum = 0;
          for (let p = begin; p < nPos; p++) {
            sum += f32[probabilities / 4 + p] * kvValue(format, vData, vScales, rowOf(p), c, headDim);
          }
          f32[out / 4 + head + c] = sum;
        }
      }
    },

    // ---- making rows (convert) -----------------------------------------------------------------------

    quantizeRows(format, x, xStride, rows, dst, dstStride, cols) {
      for (let r = 0; r < rows; r++) {
        encodeRow(mem, format, floats(x + r * xStride, cols), dst + r * dstStride, cols);
      }
    },

    dequantizeRow(format, w, out, cols) {
      f32.set(decodeRow(mem, format, w, cols).subarray(0, cols), out / 4);
    },

    readProbe(begin, bytes) {
      let sum = 0;
      for (let at = begin / 4; at < (begin + bytes) / 4; at++) sum = (sum + u32[at]) >>> 0;
      return sum;
    },
  };
  return kernels;
}

/**
 * sigma(g). Written so that NaN passes through (NaN <= 0 is false): a fault upstream reaches the logits,
 * where it is checked, instead of looking like an inactive neuron.
 */
export function sigma(kind: ActivationKind, threshold: number, g: number): number {
  switch (kind) {
    case 'relu':
    case 'drelu':
      return g <= 0 ? 0 : g;
    case 'fatrelu':
      return g <= threshold ? 0 : g;
    case 'relu2':
      return g <= 0 ? 0 : g * g;
    case 'silu':
      return g / (1 + Math.exp(-g));
    case 'gelu':
      return (g * (1 + erf(g * Math.SQRT1_2))) / 2;
    case 'gelu_tanh':
      return g / (1 + Math.exp(-2 * Math.sqrt(2 / Math.PI) * (g + 0.044715 * g ** 3)));
    case 'gelu_quick':
      return g / (1 + Math.exp(-1.702 * g));
  }
}

/** erf(x) = 2/sqrt(pi) e^(-x^2) sum over n of 2^n x^(2n+1) / (1 3 5 ... (2n+1)): all terms have one sign. */
export function erf(x: number): number {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x;
  let sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return ((2 * Math.exp(-x * x)) / Math.sqrt(Math.PI)) * sum;
}
