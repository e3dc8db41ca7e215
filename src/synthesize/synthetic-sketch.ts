/**
 * A synthetic model's gates as a sketch (predictor/sketch.ts). Inputs are white beside the constants, so that
 * plain rounding is the best there is: score = gate - error, the error's variance is the squared rounding error
 * of the row's content, and what rounding does to the constants' weights is a known shift of the cut.
 */
import { bf16ToNumber, GROUP, groupCount } from '../kernels/layout.js';
import { levels, packRows, scaleBits, selectRows } from '../predictor/rows.js';
import { FACTORS, type SketchFormat } from '../predictor/sketch.js';
import type { LayerPredictor, RowMatrix } from '../predictor/types.js';
import { cautionFor, cutOf, type DensityPlan } from './densities.js';
import { upperTail } from './normal.js';
import type { SyntheticModel } from './synthetic-model.js';

/** Rows of W_gate that are made and rounded at a time. */
const BLOCK_ROWS = 256;

export interface SketchedLayer {
  predictor: LayerPredictor;
  /** The densities with the sketch's own share of the gate's variance, and the caution that gives the recall. */
  plan: DensityPlan;
}

/** @param alwaysFrom neurons that would be candidates this often have no row */
export async function sketchedLayer(
  model: SyntheticModel,
  layer: number,
  format: SketchFormat,
  alwaysFrom: number,
): Promise<SketchedLayer> {
  const { hiddenSize: d, intermediateSize: nFf, activation } = model.config;
  const variance = new Float32Array(nFf);
  const shift = new Float32Array(nFf);
  const packed: RowMatrix[] = [];
  for (let begin = 0; begin < nFf; begin += BLOCK_ROWS) {
    const end = Math.min(nFf, begin + BLOCK_ROWS);
    const weights = await model.readRows(`layers.${layer}.gate`, begin, end);
    const error = { variance: variance.subarray(begin, end), shift: shift.subarray(begin, end) };
    packed.push(roundRows(format, weights, model.constants, error));
  }
  const rho = 1 - variance.reduce((a, b) => a + b, 0) / nFf;
  const plan = cautionFor({ ...model.plan, rho });
  const tau = model.tau(layer);
  const ids = Array.from(tau.keys());
  const often = (i: number): boolean => upperTail(cutOf(plan, tau[i])) >= alwaysFrom;
  const scored = Uint32Array.from(ids.filter((i) => !often(i)));
  const rows = { ...packed[0], rows: nFf, data: new Uint8Array(nFf * packed[0].stride) };
  packed.forEach(({ data }, i) => rows.data.set(data, i * BLOCK_ROWS * rows.stride));
  return {
    plan,
    predictor: {
      layer,
      kind: 'sketch',
      rank: d,
      fc1: null,
      b1: null,
      fc2: selectRows(rows, scored),
      scoredIds: scored,
      cut: Float32Array.from(scored, (i) => activation.threshold - shift[i]),
      cutScale: Float32Array.from(scored, (i) => Math.sqrt(variance[i])),
      always: Uint32Array.from(ids.filter(often)),
    },
  };
}

/**
 * Rows to odd levels of their groups' scales.
 * @param constants [d] (SyntheticModel.constants)
 * @param error of gate - score, added to: its variance, and what the constants make of it, [rows] each
 */
function roundRows(
  format: SketchFormat,
  weights: Float32Array,
  constants: Float32Array,
  error: { variance: Float32Array; shift: Float32Array },
): RowMatrix {
  const d = constants.length;
  const rows = weights.length / d;
  const groups = groupCount(d);
  const code = new Int8Array(weights.length);
  const scales = new Uint16Array(rows * groups);
  const { max } = levels(format);
  const factor = FACTORS[format][FACTORS[format].length >> 1];
  for (let r = 0; r < rows; r++) {
    for (let g = 0; g < groups; g++) {
      const [begin, end] = [r * d + g * GROUP, r * d + Math.min(d, (g + 1) * GROUP)];
      let squares = 0;
      for (let at = begin; at < end; at++) squares += weights[at] ** 2;
      const bits = scaleBits(factor * Math.sqrt(squares / (end - begin)));
      scales[r * groups + g] = bits;
      const scale = bf16ToNumber(bits);
      for (let at = begin; at < end; at++) {
        const odd = scale === 0 ? 1 : 2 * Math.floor((0.5 * weights[at]) / scale) + 1;
        code[at] = Math.max(-max, Math.min(max, odd));
        const lost = weights[at] - code[at] * scale;
        const constant = constants[at - r * d];
        if (constant === 0) error.variance[r] += lost * lost;
        else error.shift[r] += constant * lost;
      }
    }
  }
  return packRows(format, code, scales, rows, d);
}
