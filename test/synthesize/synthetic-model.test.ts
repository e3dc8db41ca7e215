import { mkdtempSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Engine } from '../../src/engine/engine.js';
import { createTokenizer } from '../../src/model/tokenizer.js';
import { convert } from '../../src/pack/convert.js';
import { openPack } from '../../src/pack/reader.js';
import { pointAtRecall, readPredictor, requireModel } from '../../src/predictor/artifact.js';
import type { PredictorFormat } from '../../src/predictor/types.js';
import { readProfile } from '../../src/profiler/artifact.js';
import { planOf } from '../../src/profiler/find-plan.js';
import { SHAPES } from '../../src/synthesize/shapes.js';
import { SyntheticModel, type SyntheticOptions } from '../../src/synthesize/synthetic-model.js';
import { syntheticPredictor, syntheticProfile } from '../../src/synthesize/synthetic-predictor.js';
import { writeSynthetic } from '../../src/synthesize/write-synthetic.js';
import { random } from '../helpers/tiny-models.js';

async function packed(model: SyntheticModel, quant: 'q4' | 'q8' = 'q8'): Promise<string> {
  const path = join(mkdtempSync(join(tmpdir(), 'synthetic-')), 'model.hpack');
  await convert(model, path, { quant, threads: 2 });
  return path;
}

/** Densities and inputs of a model over random tokens. */
async function measure(options: SyntheticOptions, format: PredictorFormat = 'q4') {
  const model = new SyntheticModel(options);
  const { config } = model;
  const pack = openPack(await packed(model));
  const artifact = await syntheticPredictor(model, pack.header, format);
  const plan = planOf(artifact, syntheticProfile(model, pack.header), {});
  const engine = await Engine.open(pack, {
    plan,
    ffn: 'predicted',
    contextLength: 128,
    threads: 2,
  });
  try {
    const next = random(1);
    const tokens = Array.from({ length: 96 }, () => Math.floor(next() * config.vocabSize));
    const result = await engine.logits({ tokens, measureRecall: true, trace: { inputs: true } });
    return { model, artifact, result, tokens: tokens.length };
  } finally {
    await engine.close();
  }
}

describe('a synthetic model', () => {
  const asked: [string, SyntheticOptions][] = [
    ['FATReLU', { shape: 'tiny-test' }],
    ['FATReLU, other densities', { shape: 'tiny-test', sparsity: 0.8, predictedSparsity: 0.6, recall: 0.95 }],
    ['FATReLU, all neurons alike', { shape: 'tiny-test', skew: 0 }],
  ];
  it.each(asked)('has the densities it was asked for in every layer (%s)', async (_, options) => {
    const { model, result } = await measure(options);
    for (const layer of result.layers) {
      expect(Math.abs(layer.sparsity - model.sparsity)).toBeLessThan(0.02);
      expect(Math.abs(layer.predictedSparsity! - model.plan.predictedSparsity)).toBeLessThan(0.02);
    }
    const recall = result.layers.reduce((sum, l) => sum + l.recall!, 0) / result.layers.length;
    expect(Math.abs(recall - model.plan.recall)).toBeLessThan(0.02);
  });

  it.each<PredictorFormat>(['q1', 'q2', 'q3'])(
    'reaches its recall with a sketch (%s) too',
    async (format) => {
      const { model, artifact, result } = await measure({ shape: 'tiny-test' }, format);
      for (const [l, layer] of result.layers.entries()) {
        const { predictor, heldOut } = artifact.layers[l];
        expect(predictor?.kind).toBe('sketch');
        expect(Math.abs(layer.predictedSparsity! - heldOut.predictedSparsity)).toBeLessThan(0.02);
      }
      const recall = result.layers.reduce((sum, l) => sum + l.recall!, 0) / result.layers.length;
      expect(Math.abs(recall - model.plan.recall)).toBeLessThan(0.02);
    },
  );

  it('keeps its activations stable from layer to layer, and tokens different', async () => {
    const { model, result, tokens } = await measure({ shape: 'tiny-test' });
    const { hiddenSize: d, layers } = model.config;
    for (let l = 0; l < layers; l++) {
      const x = (t: number) => result.inputs!.subarray((l * tokens + t) * d, (l * tokens + t + 1) * d);
      const energy = x(50).reduce((sum, v) => sum + v * v, 0) / d;
      expect(energy).toBeGreaterThan(0.8);
      expect(energy).toBeLessThan(1.2);
      const dot = x(50).reduce((sum, v, j) => sum + v * x(51)[j], 0) / d;
      expect(dot).toBeLessThan(0.3); // the constant part alone: 1/16
    }
    const spread = Math.sqrt(result.logits.reduce((sum, v) => sum + v * v, 0) / result.logits.length);
    expect(spread).toBeGreaterThan(0.5);
    expect(spread).toBeLessThan(2);
  });

  it('is the same for the same options, whatever reads it, and another for another seed', async () => {
    const bytes = async (seed: number) =>
      readFileSync(await packed(new SyntheticModel({ shape: 'tiny-test', seed, layers: 1 })));
    const [a, b, c] = [await bytes(1), await bytes(1), await bytes(2)];
    expect(a.equals(b)).toBe(true);
    expect(a.equals(c)).toBe(false);
    const model = new SyntheticModel({ shape: 'tiny-test' });
    const all = await model.readRows('layers.2.gate', 0, 20);
    await model.readRows('layers.0.gate', 5, 6); // another layer in between
    expect(await model.readRows('layers.2.gate', 7, 8)).toEqual(all.slice(7 * 512, 8 * 512));
  });

  it('has a tokenizer of the shape’s vocabulary', () => {
    const tokenizer = createTokenizer(new SyntheticModel({ shape: 'tiny-test' }).tokenizer);
    const text = 'the rain in spain — 123';
    expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
  });

  it.each(Object.keys(SHAPES))('can be planned with the published densities of %s', (shape) => {
    const { plan, config } = new SyntheticModel({ shape });
    expect(plan.rho).toBeLessThan(0.99);
    expect(config.heads % config.kvHeads).toBe(0);
  });

  it('refuses shapes it does not know', () => {
    expect(() => new SyntheticModel({ shape: '__proto__' })).toThrow(/unknown shape/);
  });
});

describe('writeSynthetic', () => {
  it('writes a pack and the profile and predictor that belong to it', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'synthetic-'));
    const made = await writeSynthetic({ shape: 'tiny-test', layers: 2 }, folder, { quant: 'q4' });
    const pack = openPack(made.pack);
    pack.close();
    const artifact = readPredictor(made.predictor);
    requireModel(made.predictor, artifact.model, pack.header.fingerprint, pack.header.name);
    const profile = readProfile(made.profile);
    requireModel(made.profile, profile.model, pack.header.fingerprint, pack.header.name);
    for (const layer of profile.layers) expect(layer.sparsity).toBeCloseTo(0.89, 2);
    for (const { curve, heldOut, threshold } of artifact.layers) {
      const at = pointAtRecall(curve, heldOut.recall - 1e-6);
      expect(curve.threshold[at]).toBeCloseTo(threshold, 5);
      expect(curve.predictedSparsity[at]).toBeCloseTo(0.78, 3);
      expect([...curve.recall]).toEqual([...curve.recall].sort((a, b) => b - a));
    }
  });
});
