/** What a token dispatches and reads, and what a model takes on the device: computed without one. */
import { afterAll, describe, expect, it } from 'vitest';
import type { FfnMode, FfnPlan } from '../../../src/engine/ffn-plan.js';
import { wholeBytes } from '../../../src/gpu/webgpu/fits.js';
import { tokenOnPaper } from '../../../src/gpu/webgpu/on-paper.js';
import { rowBytes, type WeightFormat } from '../../../src/kernels/layout.js';
import { openPack } from '../../../src/pack/reader.js';
import { packRows } from '../../../src/predictor/rows.js';
import { baseConfig, writeModel } from '../../helpers/any-model.js';
import { writeTinyFolder } from '../../helpers/tiny-models.js';
import { packOf, removePacks } from '../../engine/open.js';
import { contributionPlan, sketchPlan } from '../../engine/plans.js';

afterAll(removePacks);

const SHAPE = { contextLength: 128, slots: 2, kvPages: 5, kvFormat: 'q8' as const };
const LOAD = { context: 100, candidates: 30, scored: 20, passed: 10, active: 8 };
const LOADS = { dense: LOAD, exact: LOAD, predicted: LOAD };
const NO_CUTS = { exact: { gate: 0, contribution: 0 }, predicted: { gate: 0, contribution: 0 } };

async function onPaper(folder: string, quant: WeightFormat, plan: FfnPlan | null, batchTokens = 1) {
  const pack = openPack(await packOf(folder, quant));
  const { header } = pack;
  const options = { ...SHAPE, header, fd: pack.fd, packPath: pack.path, batchTokens, plan };
  const { operations, deviceBytes } = await tokenOnPaper(options, LOADS);
  pack.close();
  const total = (mode: FfnMode) => operations[mode].reduce((sum, { dispatches }) => sum + dispatches, 0);
  const bytes = (mode: FfnMode, name: string) => operations[mode].find((o) => o.name === name)?.bytes;
  return { header, total, bytes, deviceBytes, planned: wholeBytes(header, SHAPE, batchTokens, plan) };
}

/** As a predictor's two layers stand in an artifact. */
async function networkPlan(folder: string): Promise<FfnPlan> {
  const plan = await sketchPlan(folder);
  const matrix = (rows: number, cols: number) =>
    packRows('q4', new Int8Array(rows * cols), new Uint16Array(rows * Math.ceil(cols / 128)), rows, cols);
  return {
    layers: plan.layers.map((layer) => {
      const { fc2, cut } = layer.predictor!;
      const network = { fc1: matrix(40, fc2.cols), b1: new Float32Array(40), fc2: matrix(fc2.rows, 40) };
      return { ...layer, predictor: { rank: 40, ...network, cut } };
    }),
  };
}

describe('a token on paper', () => {
  const relu = writeTinyFolder({ layers: 3 });
  const silu = writeTinyFolder({ layers: 3, hiddenAct: 'silu' });
  const plain = writeModel(baseConfig('FalconForCausalLM', { activation: 'gelu', bias: true }));

  it.each<[string, string, (folder: string) => Promise<FfnPlan>]>([
    ['a network', relu, networkPlan],
    ['a sketch', relu, (folder) => sketchPlan(folder)],
    ['contributions behind the gate', silu, (folder) => contributionPlan(folder, NO_CUTS, 0.1)],
    ['contributions of a plain FFN', plain, (folder) => contributionPlan(folder, NO_CUTS, 0.1)],
  ])('has at most three dispatches a layer more than dense: %s', async (_, folder, planOf) => {
    const { header, total } = await onPaper(folder, 'q4', await planOf(folder));
    const { layers } = header.config;
    expect(total('exact')).toBe(total('dense'));
    expect(total('predicted')).toBeGreaterThan(total('dense'));
    expect(total('predicted') - total('dense')).toBeLessThanOrEqual(3 * layers);
  });

  it('reads the rows that the mode needs, and no others', async () => {
    const { header, bytes } = await onPaper(relu, 'q4', await sketchPlan(relu));
    const { layers, hiddenSize: d, intermediateSize: n, vocabSize, kvHeads, headDim } = header.config;
    const row = rowBytes('q4', d);
    expect(bytes('dense', 'q, k, v')).toBe(layers * header.layers[0].qkv.bytes);
    expect(bytes('dense', 'head')).toBe(vocabSize * rowBytes('q8', d));
    expect(bytes('dense', 'attention')).toBe(layers * LOAD.context * 2 * kvHeads * (headDim + 4));
    expect(bytes('dense', 'gate and up')).toBe(layers * 2 * n * row);
    expect(bytes('exact', 'gate and up')).toBe(layers * (n + LOAD.passed) * row);
    expect(bytes('predicted', 'gate and up')).toBe(layers * (LOAD.candidates + LOAD.passed) * row);
    for (const mode of ['exact', 'predicted'] as const)
      expect(bytes(mode, 'down')).toBe(layers * LOAD.active * row);
  });

  it('reads sketches of up where the gate allows them, and up of the candidates', async () => {
    const { header, bytes } = await onPaper(silu, 'q4', await contributionPlan(silu, NO_CUTS, 0.1));
    const { layers, hiddenSize: d, intermediateSize: n } = header.config;
    const [row, sketch] = [rowBytes('q4', d), rowBytes('f32', d)];
    expect(bytes('predicted', 'gates and sketches of up')).toBe(layers * (n * row + LOAD.scored * sketch));
    expect(bytes('predicted', 'gate and up')).toBe(layers * LOAD.candidates * row);
  });

  it.each<[string, string, (folder: string) => Promise<FfnPlan | null>]>([
    ['without a plan', relu, () => Promise.resolve(null)],
    ['with networks', relu, networkPlan],
    ['with sketches of up', silu, (folder) => contributionPlan(folder, NO_CUTS, 0.1)],
  ])('takes on the device what was planned: %s', async (_, folder, planOf) => {
    const { deviceBytes, planned } = await onPaper(folder, 'q8', await planOf(folder), 8);
    // Uniforms and the way back are small change.
    expect(Math.abs(deviceBytes - planned) / planned).toBeLessThan(0.15);
  });
});
