/** Recall, weighted recall and predicted sparsity, counted again here from the raw samples. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createMatrices, type Matrices } from '../../src/predictor/matrix.js';
import { inputMoments } from '../../src/predictor/moments.js';
import { unpackRows } from '../../src/predictor/rows.js';
import { activeCounts } from '../../src/predictor/samples.js';
import { Scorer, type Network } from '../../src/predictor/scorer.js';
import {
  candidateRates,
  countMargins,
  fitCuts,
  measureAtRecall,
  NEURON_GROUPS,
  sampleGates,
  type Cuts,
  type Margins,
} from '../../src/predictor/scores.js';
import { roundingBasis, sketchRows } from '../../src/predictor/sketch.js';
import { syntheticLayer } from './synthetic-layer.js';

const layer = syntheticLayer(3000);
const { samples, gateRows, norms, threshold, gates } = layer;
const { d, nFf } = samples;
const training = { begin: 0, end: 2000 };
const heldOut = { begin: 2000, end: 3000 };
const everyNeuron = Uint32Array.from({ length: nFf }, (_, i) => i);
let matrices: Matrices;
let network: Network;
let cuts: Cuts;
let margins: Margins;
beforeAll(async () => {
  matrices = await createMatrices();
  const basis = await roundingBasis(await inputMoments(samples, training, matrices), matrices);
  network = { fc1: null, b1: null, fc2: (await sketchRows('q2', gateRows, basis, matrices)).matrix };
  const scorer = new Scorer(network, d);
  cuts = fitCuts(scorer, everyNeuron, await sampleGates(samples, training, gateRows, matrices), threshold);
  margins = countMargins(scorer, everyNeuron, cuts, samples, heldOut, norms);
});
afterAll(() => matrices.release());

describe('measureAtRecall', () => {
  it('agrees with counting by hand', () => {
    const measured = measureAtRecall(margins, 0.98);
    const rows = unpackRows(network.fc2);
    let [active, hit, weight, hitWeight, candidates] = [0, 0, 0, 0, 0];
    for (let t = heldOut.begin; t < heldOut.end; t++) {
      let m = samples.magnitudeAt[t];
      for (let i = 0; i < nFf; i++) {
        let score = 0;
        for (let c = 0; c < d; c++) score += rows[i * d + c] * samples.values[t * d + c];
        const isCandidate = score >= cuts.cut[i] + measured.threshold * cuts.cutScale[i];
        if (isCandidate) candidates++;
        if (gates[t * nFf + i] <= threshold) continue;
        const w = samples.magnitudes[m++] * norms[i];
        active++;
        weight += w;
        if (!isCandidate) continue;
        hit++;
        hitWeight += w;
      }
    }
    const neurons = nFf * (heldOut.end - heldOut.begin);
    // Kernels round inputs to 8 bits: scores near a cut may fall on its other side.
    expect(Math.abs(measured.recall - hit / active)).toBeLessThan(3e-3);
    expect(Math.abs(measured.weightedRecall - hitWeight / weight)).toBeLessThan(3e-3);
    expect(Math.abs(measured.predictedSparsity - (1 - candidates / neurons))).toBeLessThan(3e-3);
    expect(measured.sparsity).toBeCloseTo(1 - active / neurons, 12);
    expect(measured.recall).toBeGreaterThanOrEqual(0.98);
    const rates = candidateRates(margins, measured.bin);
    expect(rates.reduce((a, b) => a + b, 0) / nFf).toBeCloseTo(1 - measured.predictedSparsity, 1);
  });

  it('finds all active neurons when asked to', () => {
    const all = measureAtRecall(margins, 1);
    expect(all.recall).toBe(1);
    expect(all.weightedRecall).toBeCloseTo(1, 12);
  });

  it('without a group of neurons is what the others give', () => {
    const others = everyNeuron.filter((i) => i % NEURON_GROUPS !== 3);
    const pick = (values: Float32Array): Float32Array => Float32Array.from(others, (i) => values[i]);
    const { stride } = network.fc2;
    const data = new Uint8Array(others.length * stride);
    others.forEach((id, row) =>
      data.set(network.fc2.data.subarray(id * stride, (id + 1) * stride), row * stride),
    );
    const fewer = { fc1: null, b1: null, fc2: { ...network.fc2, rows: others.length, data } };
    const some = { cut: pick(cuts.cut), cutScale: pick(cuts.cutScale) };
    const alone = measureAtRecall(
      countMargins(new Scorer(fewer, d), others, some, samples, heldOut, norms),
      0.97,
    );
    const without = measureAtRecall(margins, 0.97, 3);
    expect(without.threshold).toBe(alone.threshold);
    expect(without.recall).toBe(alone.recall);
    expect(without.predictedSparsity).toBeCloseTo(alone.predictedSparsity, 12);
  });
});

describe('fitCuts', () => {
  it('puts the cut where the gate is expected at its threshold', async () => {
    // The scores' own rows as gates: nothing but the rounding of inputs is left to err.
    const sample = await sampleGates(samples, training, unpackRows(network.fc2), matrices);
    const { cut, cutScale } = fitCuts(new Scorer(network, d), everyNeuron, sample, 0.7);
    cut.forEach((c, i) => {
      expect(Math.abs(c - 0.7)).toBeLessThan(0.02);
      expect(cutScale[i]).toBeLessThan(0.03);
    });
  });
});

describe('activeCounts', () => {
  it('counts what fired', () => {
    const counts = activeCounts(samples, training);
    for (const i of [0, 1, 2, 50, 95]) {
      let expected = 0;
      for (let t = 0; t < 2000; t++) if (gates[t * nFf + i] > threshold) expected++;
      expect(counts[i]).toBe(expected);
    }
    expect(counts[0]).toBe(0);
    expect(counts[1]).toBe(2000);
  });
});
