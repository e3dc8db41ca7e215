import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  factorsOf,
  gateEnergy,
  hiddenBasis,
  leadingDirections,
  neuronImportance,
  type Factors,
} from '../../src/predictor/lowrank.js';
import { createMatrices, type Matrices } from '../../src/predictor/matrix.js';
import { inputMoments, type Moments } from '../../src/predictor/moments.js';
import { roundingBasis, type RoundingBasis } from '../../src/predictor/sketch.js';
import { syntheticLayer } from './synthetic-layer.js';

const D = 64;
const NFF = 96;
const layer = syntheticLayer(2000, D, NFF);
let matrices: Matrices;
let moments: Moments;
let basis: RoundingBasis;
beforeAll(async () => {
  matrices = await createMatrices();
  moments = await inputMoments(layer.samples, { begin: 0, end: 2000 }, matrices);
  basis = await roundingBasis(moments, matrices);
});
afterAll(() => matrices.release());

const product = ({ a, b, rank }: Factors): Float64Array => {
  const out = new Float64Array(NFF * D);
  for (let i = 0; i < NFF; i++)
    for (let r = 0; r < rank; r++)
      for (let c = 0; c < D; c++) out[i * D + c] += a[i * rank + r] * b[r * D + c];
  return out;
};

/** Factors of several ranks, each from the directions of the one before. */
async function whitenedFactors(importance: Float64Array, ranks: number[]): Promise<Factors[]> {
  const energy = await gateEnergy(layer.gateRows, importance, basis, matrices);
  const made: Factors[] = [];
  let directions;
  for (const rank of ranks) {
    directions = await leadingDirections(energy, rank, matrices, directions);
    made.push(await factorsOf(layer.gateRows, await hiddenBasis(directions, basis, matrices), matrices));
  }
  return made;
}

/** Share of the gates' variance that the product misses. */
function missed(factors: Factors): number {
  const approx = product(factors);
  let [error, total] = [0, 0];
  for (let i = 0; i < NFF; i++) {
    for (let a = 0; a < D; a++) {
      for (let b = 0; b < D; b++) {
        const w = (c: number): number => layer.gateRows[i * D + c];
        const e = (c: number): number => approx[i * D + c] - w(c);
        error += e(a) * moments.covariance[a * D + b] * e(b);
        total += w(a) * moments.covariance[a * D + b] * w(b);
      }
    }
  }
  return error / total;
}

describe('whitened factors', () => {
  const even = new Float64Array(NFF).fill(1);

  it('of full rank give W_gate back', async () => {
    const [full] = await whitenedFactors(even, [D]);
    const values = product(full);
    layer.gateRows.forEach((w, i) => expect(Math.abs(values[i] - w)).toBeLessThan(1e-3));
  });

  it('find the directions the inputs vary in', async () => {
    // The inputs have 12 strong directions.
    const ranks = [4, 8, 12];
    const [four, eight, twelve] = await whitenedFactors(even, ranks);
    expect(missed(twelve)).toBeLessThan(0.06);
    expect(missed(eight)).toBeGreaterThan(missed(twelve));
    expect(missed(four)).toBeGreaterThan(missed(eight));
  });

  it('spend their rank on the neurons that matter', async () => {
    const few = even.map((_, i) => (i < 10 ? 1 : 1e-3));
    const errorOfFirst = async (importance: Float64Array): Promise<number> => {
      const [factors] = await whitenedFactors(importance, [6]);
      const approx = product(factors);
      let sum = 0;
      for (let i = 2; i < 10; i++)
        for (let a = 0; a < D; a++)
          for (let b = 0; b < D; b++) {
            const e = (c: number): number => approx[i * D + c] - layer.gateRows[i * D + c];
            sum += e(a) * moments.covariance[a * D + b] * e(b);
          }
      return sum;
    };
    expect(await errorOfFirst(few)).toBeLessThan(0.7 * (await errorOfFirst(even)));
  });
});

describe('neuron importance', () => {
  it('is small where nothing is decided', () => {
    const frequency = new Float64Array(NFF).fill(0.2);
    frequency[5] = 0;
    const importance = neuronImportance(new Float64Array(NFF).fill(2), frequency);
    expect(importance.every((v) => v > 0 && Number.isFinite(v))).toBe(true);
    expect(importance[5]).toBeLessThan(0.3 * importance[6]);
  });
});
