import { describe, expect, it } from 'vitest';
import type { LayerCurve } from '../../src/predictor/artifact.js';
import { chooseMode, densitiesAt } from '../../src/profiler/plan.js';
import { searchRecall } from '../../src/profiler/search.js';
import { equalSlopes } from '../../src/profiler/thresholds.js';
import { sampleLayer } from '../predictor/sample-artifact.js';

/** recall falls with sparsity as 1 - share * s^power. */
function curve(share: number, power: number): LayerCurve {
  const s = Array.from({ length: 101 }, (_, i) => i / 100);
  return {
    threshold: Float32Array.from(s, (_, i) => i - 50),
    recall: Float32Array.from(s, (v) => 1 - share * v ** power),
    weightedRecall: Float32Array.from(s, (v) => 1 - (share / 2) * v ** power),
    predictedSparsity: Float32Array.from(s),
  };
}
const mean = (curves: LayerCurve[], at: number[], pick: keyof LayerCurve): number =>
  at.reduce((sum, i, l) => sum + curves[l][pick][i], 0) / curves.length;

describe('thresholds for a mean recall', () => {
  const curves = [curve(0.5, 8), curve(0.5, 16), curve(0.2, 4)];

  it.each([0.9, 0.97, 0.99, 0.999])('reach %d and stay close to it', (target) => {
    const at = equalSlopes(curves, target);
    const recall = mean(curves, at, 'recall');
    expect(recall).toBeGreaterThanOrEqual(target);
    expect(recall).toBeLessThan(target + 0.3 * (1 - target) + 0.002);
  });

  it('predict more sparsity than the same recall for every layer', () => {
    const at = equalSlopes(curves, 0.97);
    const same = curves.map(({ recall }) => recall.findLastIndex((r) => r >= 0.97));
    expect(mean(curves, at, 'predictedSparsity')).toBeGreaterThanOrEqual(
      mean(curves, same, 'predictedSparsity'),
    );
  });

  it('no other choice with that recall has fewer candidates', () => {
    const two = curves.slice(0, 2);
    const at = equalSlopes(two, 0.95);
    let best = 0;
    for (let i = 0; i <= 100; i++) {
      for (let j = 0; j <= 100; j++) {
        if (mean(two, [i, j], 'recall') >= 0.95)
          best = Math.max(best, mean(two, [i, j], 'predictedSparsity'));
      }
    }
    expect(mean(two, at, 'predictedSparsity')).toBeGreaterThan(best - 0.006);
  });

  it('keep every layer above the floor, also where the others leave much to spare', () => {
    // Nine layers lose nothing, so the mean allows the tenth a recall of 0.7; its floor is 0.97 - 3 * 0.03.
    const uneven = [...Array.from({ length: 9 }, () => curve(0, 1)), curve(1, 1)];
    const at = equalSlopes(uneven, 0.97);
    expect(uneven[9].recall[at[9]]).toBeGreaterThanOrEqual(0.88);
    expect(mean(uneven, at, 'recall')).toBeGreaterThanOrEqual(0.97);
  });

  it('are the most careful ones where the target is out of reach', () => {
    const low = { ...curve(0.5, 8), recall: new Float32Array(101).fill(0.5) };
    expect(low.recall[equalSlopes([low], 0.99)[0]]).toBe(0.5);
  });
});

describe('the search by perplexity', () => {
  it('finds the lowest recall within the limit', async () => {
    let runs = 0;
    const found = await searchRecall(0.005, async (recall) => {
      runs++;
      return (1 - recall) * 0.5;
    });
    expect(found.met).toBe(true);
    expect((1 - found.recall) * 0.5).toBeLessThanOrEqual(0.005);
    expect(1 - found.recall).toBeGreaterThan(0.009);
    expect(runs).toBeLessThan(12);
  });

  it('says when nothing keeps the limit', async () => {
    expect((await searchRecall(0.001, async () => 0.5)).met).toBe(false);
  });
});

describe('the plan', () => {
  const sizes = { nFf: 24, met: 24, routed: [1], gateRowBytes: 1000, recordBytes: 2000 };
  const { predictor } = sampleLayer(0);
  const choose = (at: number, sparsity: number, of = sizes) => {
    const densities = densitiesAt(curve(0.5, 16), at, sparsity);
    return chooseMode(predictor, 0, of, densities, densities);
  };

  it('predicts where that reads least, and says what it saves', () => {
    const { mode, reason, bytes } = choose(80, 0.9);
    expect(mode).toBe('predicted');
    expect(bytes.exact).toBeCloseTo(24 * 1000 + 0.1 * 24 * 2000);
    expect(bytes.predicted).toBeCloseTo(
      bytes.predictor + 0.2 * 24 * 1000 + curve(0.5, 16).recall[80] * 0.1 * 24 * 2000,
      0,
    );
    expect(reason).toContain(`${Math.round((100 * bytes.predicted) / bytes.exact)} %`);
  });

  it('stays exact where the predictor costs more than it saves', () => {
    const small = { nFf: 24, met: 24, routed: [1], gateRowBytes: 16, recordBytes: 32 };
    expect(choose(80, 0.9, small).mode).toBe('exact');
  });

  it('decides by the samples to choose by, and tells the others', () => {
    const chosenBy = densitiesAt(curve(0.5, 16), 80, 0.9);
    const figures = { sparsity: 0.5, predictedSparsity: 0.1, recall: 0.9, weightedRecall: 0.95 };
    const { mode, heldOut, bytes } = chooseMode(predictor, 0.25, sizes, chosenBy, figures);
    expect(mode).toBe('predicted');
    expect(heldOut).toEqual(figures);
    expect(bytes.exact).toBe(24 * 1000 + 0.5 * 24 * 2000);
  });

  it('is dense where nearly every neuron fires', () => {
    expect(choose(0, 0).mode).toBe('dense');
  });
});
