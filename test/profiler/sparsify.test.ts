/** `profile --sparsify` on tiny models: limits, artifacts in use, refusals. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { evaluate } from '../../src/evaluate/evaluate.js';
import { HybridModel } from '../../src/index.js';
import { openPack } from '../../src/pack/reader.js';
import { packFor } from '../../src/pack/cache.js';
import { readPredictor } from '../../src/predictor/artifact.js';
import { findPlan } from '../../src/profiler/find-plan.js';
import { splitPassages } from '../../src/profiler/passages.js';
import { profile, type ProfileResult } from '../../src/profiler/profile.js';
import { tune } from '../../src/profiler/tune.js';
import { ownCache } from '../helpers/own-cache.js';
import { random, writeTinyFolder } from '../helpers/tiny-models.js';

const folder = ownCache('sparsify');

const next = random(7);
const letters = (n: number): string =>
  Array.from({ length: n }, () => String.fromCharCode(97 + Math.floor(next() * 26))).join('');
const options = {
  texts: [{ name: 'letters.txt', text: letters(5000) }],
  window: 32,
  threads: 1,
  seed: 5,
  sparsify: 0.02,
};

describe.each(['silu', 'gelu'])('a model with %s', (hiddenAct) => {
  const model = writeTinyFolder({ hiddenAct, gain: 2 });
  const out = join(folder, hiddenAct);
  let result: ProfileResult;
  beforeAll(async () => {
    result = await profile(model, out, 'q8', options);
  });

  it('is told side by side with dense', () => {
    const { alternatives, limit } = result.sparsified!;
    expect(limit).toBe(0.02);
    expect(alternatives.map(({ name }) => name)).toEqual(['dense', 'gate', 'contribution', 'predicted']);
    const [dense, gate, contribution, predicted] = alternatives;
    expect([dense.skipped, dense.increase, dense.speedup]).toEqual([0, 0, 1]);
    for (const a of [gate, contribution, predicted]) {
      expect(a.skipped).toBeGreaterThan(0);
      expect(a.perplexity).toBeCloseTo(dense.perplexity * (1 + a.increase), 6);
    }
    expect(gate.ffnBytes).toBeLessThan(dense.ffnBytes);
    expect(contribution.tokensPerSecond).toBeNull();
    expect(predicted.tokensPerSecond).toBeGreaterThan(0);
  });

  it('has cuts and predictors of contributions in its artifact, as written', () => {
    const read = readPredictor(result.artifacts.predictor);
    expect(read).toEqual(result.predictor);
    read.layers.forEach(({ cuts, predictor }) => {
      expect(predictor.kind).toBe('up');
      expect(predictor.reach!.length).toBe(predictor.scoredIds.length);
      expect(cuts!.exact.gate).toBeGreaterThan(0);
      expect(cuts!.predicted.contribution).toBeGreaterThan(0);
    });
  });

  it('keeps its limit on the held-out text that it was chosen by', async () => {
    const { met, limit } = result.sparsified!;
    expect(met).toBe(true);
    const loaded = await HybridModel.load(await packFor(model, 'q8'), {
      threads: 1,
      findPlan: (of) => findPlan(of, { predictor: result.artifacts.predictor }),
    });
    try {
      const ids = loaded.tokenizer.encode(options.texts[0].text, { addSpecial: false });
      const { windows, chooseFrom, reportFrom } = splitPassages([ids], 32, 65_536, 5);
      const chooseText = windows.slice(chooseFrom, reportFrom).flat();
      const { perplexity, densePerplexity } = await evaluate(loaded.engine, chooseText, { window: 32 });
      expect(perplexity / densePerplexity! - 1).toBeLessThanOrEqual(limit);
    } finally {
      await loaded.close();
    }
  });

  it('runs with what was found', async () => {
    const pack = await packFor(model, 'q8');
    const predictor = result.artifacts.predictor;
    const loaded = await HybridModel.load(pack, {
      threads: 1,
      findPlan: (of) => findPlan(of, { predictor, profile: result.artifacts.profile }),
    });
    try {
      const { chosen } = result.sparsified!;
      expect(loaded.engine.modes).toEqual([chosen, chosen]);
      await loaded.engine.setModes(['exact', 'exact']);
      const tokens = loaded.tokenizer.encode(letters(64), { addSpecial: false }).slice(0, 32);
      const { layers } = await loaded.engine.logits({ tokens });
      for (const { sparsity } of layers) expect(sparsity).toBeGreaterThan(0);
    } finally {
      await loaded.close();
    }
  });

  it('is not tuned: its thresholds were chosen by perplexity', async () => {
    const pack = openPack(await packFor(model, 'q8'));
    const { predictor } = result.artifacts;
    await expect(tune(pack, null, { predictor })).rejects.toThrow(/--sparsify/);
    pack.close();
  });
});

it('a ReLU model is refused by name: it is sparse already', async () => {
  const out = join(folder, 'relu');
  await expect(profile(writeTinyFolder(), out, 'q8', options)).rejects.toThrow(
    'this model is sparse already: its activation is relu',
  );
  expect(existsSync(out)).toBe(false);
});
