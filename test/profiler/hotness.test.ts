import { describe, expect, it } from 'vitest';
import { coActivation, COVER_AT, layerHotness, type Activity } from '../../src/profiler/hotness.js';

describe('hot and cold', () => {
  it('counts dead and always-on neurons apart, and sparsity over all', () => {
    const hot = layerHotness(Uint32Array.of(100, 99, 50, 0, 0, 1), 100);
    expect(hot.dead).toBe(2);
    expect(hot.alwaysOn).toBe(2);
    expect(hot.sparsity).toBeCloseTo(1 - 250 / 600);
  });

  it('covers everything with all neurons, and more with hotter ones', () => {
    const { covered } = layerHotness(
      Uint32Array.from({ length: 1000 }, (_, i) => i % 97),
      100,
    );
    expect(covered[COVER_AT.length - 1]).toBeCloseTo(1);
    covered.forEach((share, i) => expect(share).toBeGreaterThanOrEqual(COVER_AT[i] - 1e-9));
  });

  it('finds the pair that always fires together', () => {
    const tokens = 400;
    const active = (t: number): boolean[] => [t % 3 === 0, t % 5 === 0, t % 3 === 0, t % 7 === 0];
    const counts = new Uint32Array(8);
    for (let t = 0; t < tokens; t++) {
      active(t).forEach((on, i) => on && counts[i]++);
    }
    const samples: Activity = {
      samples: tokens,
      eachActive: (t, visit) => active(t).forEach((on, i) => on && visit(i)),
    };
    const { strongest, neurons, jaccard, independent } = coActivation(
      samples,
      counts,
      Uint32Array.of(tokens),
    );
    expect(neurons).toBe(4);
    expect(strongest[0]).toEqual({ a: 0, b: 2, jaccard: 1 });
    expect(jaccard).toBeGreaterThan(independent);
  });
});
