import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createMatrices, type Matrices } from '../../src/predictor/matrix.js';
import { inputMoments, type Moments } from '../../src/predictor/moments.js';
import { roundRows } from '../../src/predictor/rounding.js';
import { unpackRows } from '../../src/predictor/rows.js';
import {
  roundingBasis,
  sketchRows,
  type RoundingBasis,
  type SketchFormat,
} from '../../src/predictor/sketch.js';
import { syntheticLayer } from './synthetic-layer.js';

const D = 64;
const layer = syntheticLayer(3000, D);
let matrices: Matrices;
let moments: Moments;
let basis: RoundingBasis;
beforeAll(async () => {
  matrices = await createMatrices();
  moments = await inputMoments(layer.samples, { begin: 0, end: 3000 }, matrices);
  basis = await roundingBasis(moments, matrices);
});
afterAll(() => matrices.release());

/** Mean squared error of the scores, by the covariance. */
function scoreError(values: Float32Array): number {
  const rows = values.length / D;
  let total = 0;
  for (let r = 0; r < rows; r++) {
    const e = Array.from({ length: D }, (_, c) => values[r * D + c] - layer.gateRows[r * D + c]);
    for (let i = 0; i < D; i++)
      for (let j = 0; j < D; j++) total += e[i] * moments.covariance[i * D + j] * e[j];
  }
  return total / rows;
}

/** Every weight to its nearest level, with the best of many scales for each row. */
function plainRounding(max: number): Float32Array {
  const out = new Float32Array(layer.gateRows.length);
  for (let r = 0; r < layer.samples.nFf; r++) {
    const row = layer.gateRows.subarray(r * D, (r + 1) * D);
    let least = Infinity;
    for (let s = 0.005; s < 0.3; s *= 1.05) {
      const rounded = row.map((w) => s * Math.max(-max, Math.min(max, 2 * Math.floor(w / (2 * s)) + 1)));
      const error = row.reduce((sum, w, c) => sum + (w - rounded[c]) ** 2, 0);
      if (error >= least) continue;
      least = error;
      out.set(rounded, r * D);
    }
  }
  return out;
}

const sketch = async (format: SketchFormat, rows = layer.gateRows): Promise<Float32Array> =>
  unpackRows((await sketchRows(format, rows, basis, matrices)).matrix);

describe('a sketch', () => {
  it('errs less in its scores than weights rounded one by one', async () => {
    for (const [format, max] of [
      ['q1', 1],
      ['q2', 3],
      ['q3', 7],
    ] as [SketchFormat, number][]) {
      const error = scoreError(await sketch(format));
      const plain = scoreError(plainRounding(max));
      expect(error, `${format}: sketch ${error}, plain ${plain}`).toBeLessThan(0.7 * plain);
    }
  });

  it('errs less with every bit', async () => {
    const one = scoreError(await sketch('q1'));
    const two = scoreError(await sketch('q2'));
    expect(two).toBeLessThan(one / 2);
    expect(scoreError(await sketch('q3'))).toBeLessThan(two / 2);
  });

  it('of rows of zeros is defined', async () => {
    expect((await sketch('q2', new Float32Array(2 * D))).every((v) => v === 0)).toBe(true);
  });
});

describe('rounding in blocks', () => {
  it('decides column after column as error feedback says, and knows its loss', async () => {
    // Wider than two blocks, so that products carry errors from one to the next.
    const d = 200;
    const wide = syntheticLayer(1200, d, 40, 20, 3);
    const of = await roundingBasis(
      await inputMoments(wide.samples, { begin: 0, end: 1200 }, matrices),
      matrices,
    );
    const { covariance } = of.moments;
    const rows = 40;
    const scale = 0.06;
    const w = new Float32Array(d * rows);
    of.order.forEach((column, j) => {
      for (let r = 0; r < rows; r++) w[j * rows + r] = wide.gateRows[r * d + column];
    });
    const scales = new Float32Array(2 * rows).fill(scale);
    const groupOf = Uint16Array.from(of.order, (c) => Math.floor(c / 128));
    const { levels, loss } = await roundRows(w, scales, groupOf, 3, of.triangle, matrices);
    // The same by its definition: each level is the best given those decided before it.
    const l = plainCholesky(covariance, of.order);
    for (const r of [0, 7, 39]) {
      const error = new Float64Array(d);
      let plain = 0;
      for (let j = d - 1; j >= 0; j--) {
        let carried = 0;
        for (let i = j + 1; i < d; i++) carried += error[i] * l[i * d + j];
        const target = w[j * rows + r] - carried / l[j * d + j];
        const level = levels[j * rows + r];
        const best = Math.max(-3, Math.min(3, 2 * Math.floor(target / (2 * scale)) + 1));
        // At the border of two levels f32 and f64 may differ; then both are as good.
        const border = Math.abs(target / (2 * scale) - Math.round(target / (2 * scale)));
        if (border > 1e-3) expect(level).toBe(best);
        error[j] = level * scale - w[j * rows + r];
        plain += ((level * scale - target) * l[j * d + j]) ** 2;
      }
      expect(loss[r] / plain).toBeCloseTo(1, 3);
    }
  });
});

/** L of the covariance in another order of its columns, f64. */
function plainCholesky(covariance: Float32Array, order: Uint32Array): Float64Array {
  const d = order.length;
  const l = new Float64Array(d * d);
  for (let i = 0; i < d; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = covariance[order[i] * d + order[j]];
      for (let k = 0; k < j; k++) sum -= l[i * d + k] * l[j * d + k];
      l[i * d + j] = i === j ? Math.sqrt(sum) : sum / l[j * d + j];
    }
  }
  return l;
}

describe('input moments', () => {
  it('are the mean and the covariance of the samples', () => {
    const { values: inputs } = layer.samples;
    const mean = (c: number): number => {
      let sum = 0;
      for (let t = 0; t < 3000; t++) sum += inputs[t * D + c];
      return sum / 3000;
    };
    for (const [a, b] of [
      [3, 3],
      [7, 20],
      [63, 1],
    ]) {
      let sum = 0;
      for (let t = 0; t < 3000; t++) sum += (inputs[t * D + a] - mean(a)) * (inputs[t * D + b] - mean(b));
      expect(moments.mean[a]).toBeCloseTo(mean(a), 6);
      // The diagonal is damped by 0.2 % of its mean.
      expect(Math.abs(moments.covariance[a * D + b] - sum / 3000)).toBeLessThan(5e-3);
    }
  });
});
