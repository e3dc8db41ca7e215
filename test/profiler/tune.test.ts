/** `tune` on a tiny model: the trade-off is measured, the chosen point is what the artifact then holds. */
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { packFor } from '../../src/pack/cache.js';
import { openPack } from '../../src/pack/reader.js';
import type { Pack } from '../../src/pack/types.js';
import { readPredictor } from '../../src/predictor/artifact.js';
import { profile } from '../../src/profiler/profile.js';
import { tune } from '../../src/profiler/tune.js';
import { random, writeTinyFolder } from '../helpers/tiny-models.js';

const folder = mkdtempSync(join(tmpdir(), 'hybrid-infer-tune-'));
const cache = process.env.HYBRID_INFER_CACHE;
process.env.HYBRID_INFER_CACHE = join(folder, 'cache');
const next = random(11);
const ids = Array.from({ length: 640 }, () => 2 + Math.floor(next() * 250));
let pack: Pack;
let made: string;
const predictor = join(folder, 'tuned', 'a.predictor');

beforeAll(async () => {
  const model = writeTinyFolder();
  const text = Array.from({ length: 3000 }, () => String.fromCharCode(97 + Math.floor(next() * 26))).join('');
  const texts = [{ name: 't', text }];
  const { artifacts } = await profile(model, join(folder, 'out'), 'q8', {
    texts,
    window: 32,
    threads: 1,
    predictor: 'sketch',
  });
  made = artifacts.predictor;
  mkdirSync(join(folder, 'tuned'));
  copyFileSync(made, predictor);
  pack = openPack(await packFor(model, 'q8'));
});
afterAll(() => {
  pack.close();
  rmSync(folder, { recursive: true, force: true });
  if (cache === undefined) delete process.env.HYBRID_INFER_CACHE;
  else process.env.HYBRID_INFER_CACHE = cache;
});

describe('tune', () => {
  const options = { predictor, window: 32, threads: 1, targets: [0.8, 0.95, 0.999] };

  it('measures every target and stores table and choice', async () => {
    const { curve, chosen, layers } = await tune(pack, ids, { ...options, choose: { recall: 0.95 } }).then(
      (r) => ({ ...r, layers: r.predictor.layers }),
    );
    expect(curve.map((point) => point.target)).toEqual([0.8, 0.95, 0.999]);
    expect(chosen.target).toBe(0.95);
    for (const point of curve) {
      expect(point.decodeTokensPerSecond).toBeGreaterThan(0);
      expect(point.perplexity).toBeGreaterThan(1);
    }
    const stored = readPredictor(predictor);
    expect(stored.tuning).toEqual(curve);
    expect(stored.layers.map((layer) => layer.threshold)).toEqual(layers.map((layer) => layer.threshold));
    // Weights are those of the profile: only thresholds and modes move.
    expect(stored.layers[0].predictor).toEqual(readPredictor(made).layers[0].predictor);
  });

  it('takes the cheapest point within a limit on perplexity', async () => {
    const { curve, chosen } = await tune(pack, ids, { ...options, choose: { maxPerplexityIncrease: 10 } });
    expect(chosen.ffnBytesPerToken).toBe(Math.min(...curve.map((point) => point.ffnBytesPerToken)));
  });

  it('lets the model write the text when there is none', async () => {
    const { evaluation, curve } = await tune(pack, null, { ...options, tokens: 192 });
    // Six windows: four choose, two give the figures.
    expect(evaluation.tokens).toBe(2 * 31);
    expect(curve).toHaveLength(3);
  });

  it('tells figures of text that did not choose', async () => {
    const { predictor: tuned, evaluation } = await tune(pack, ids, { ...options, choose: { recall: 0.95 } });
    expect(evaluation.tokens).toBe(Math.floor(640 / 32 / 3) * 31);
    tuned.layers.forEach(({ mode, heldOut }, l) => {
      if (mode !== 'predicted') return;
      expect(heldOut.recall).toBe(evaluation.layers[l].recall);
      expect(heldOut.predictedSparsity).toBe(evaluation.layers[l].predictedSparsity);
    });
  });

  it('leaves the artifact alone when the text is too short', async () => {
    const before = readFileSync(predictor);
    await expect(tune(pack, ids.slice(0, 8), options)).rejects.toMatchObject({ code: 'USAGE' });
    expect(readFileSync(predictor).equals(before)).toBe(true);
  });
});
