import { describe, expect, it } from 'vitest';
import { fitLayer, type FitJob } from '../../src/predictor/fit-layer.js';
import { unpackRows } from '../../src/predictor/rows.js';
import { syntheticLayer } from './synthetic-layer.js';

const layer = syntheticLayer(6000, 64, 96, 12);
const { samples, gateRows, norms, threshold } = layer;
const PARTS = {
  train: { begin: 0, end: 4096 },
  choose: { begin: 4096, end: 5048 },
  report: { begin: 5048, end: 6000 },
};

const fit = (job: Partial<FitJob>) =>
  fitLayer(
    {
      layer: 3,
      kind: 'auto',
      recall: 0.98,
      maxBits: 8,
      epochs: 3,
      seed: 7,
      gateRows,
      downNorms: norms,
      gateThreshold: threshold,
      gateRowBytes: 272,
      recordBytes: 544,
      provider: 'cpu',
      ...job,
    },
    samples,
    PARTS,
  );

describe('fitLayer', () => {
  it('lists every neuron that ever fired, once', async () => {
    const { predictor } = await fit({ kind: 'sketch' });
    expect(predictor.layer).toBe(3);
    expect(predictor.scoredIds).not.toContain(0); // never fires
    expect(predictor.always).toContain(1); // always fires
    const listed = [...predictor.scoredIds, ...predictor.always].sort((a, b) => a - b);
    expect(listed).toEqual([...new Set(listed)]);
    expect(predictor.fc2.rows).toBe(predictor.scoredIds.length);
    expect(predictor.cut).toHaveLength(predictor.scoredIds.length);
  });

  it('keeps the cheapest of what it tried', async () => {
    const { predictor, attempts } = await fit({ kind: 'auto' });
    const best = attempts.reduce((a, b) => (b.cost < a.cost ? b : a));
    expect([predictor.kind, predictor.rank]).toEqual([best.kind, best.rank]);
    expect(new Set(attempts.map((a) => a.kind))).toContain('lowrank');
  });

  it('makes the same predictor again', async () => {
    const [a, b] = [await fit({ kind: 'mlp', ranks: [32] }), await fit({ kind: 'mlp', ranks: [32] })];
    expect(Buffer.from(a.predictor.fc2.data).equals(Buffer.from(b.predictor.fc2.data))).toBe(true);
    expect(a.predictor.cut).toEqual(b.predictor.cut);
    expect(a.attempts).toEqual(b.attempts);
  });

  it('stays within the bits it may use', async () => {
    const { attempts, predictor } = await fit({ kind: 'sketch', maxBits: 3.2 });
    const within = attempts.filter((a) => a.bits <= 3.2);
    expect(within.length).toBeGreaterThan(0);
    expect(within.map((a) => a.rank)).toContain(predictor.rank);
    expect((8 * predictor.fc2.data.length) / (96 * 64)).toBeLessThan(3.2);
  });

  it('starts far ahead of a random network when whitened', async () => {
    const options = { kind: 'mlp', ranks: [32], epochs: 3 } as const;
    const whitened = await fit(options);
    const random = await fit({ ...options, start: 'random' });
    const best = (of: typeof whitened): number => Math.max(...of.attempts.map((a) => a.predictedSparsity));
    expect(best(whitened)).toBeGreaterThan(best(random) + 0.05);
  });

  it('gives a ReLU layer the scores of the linear one before training', async () => {
    const relu = await fit({ kind: 'mlp', ranks: [32], epochs: 0 });
    const linear = await fit({ kind: 'mlp', hidden: 'linear', ranks: [32], epochs: 0 });
    expect(linear.predictor.b1).toBeNull();
    const bias = relu.predictor.b1!;
    const fc1 = unpackRows(relu.predictor.fc1!);
    let lowest = Infinity;
    for (let t = 0; t < samples.samples; t += 7) {
      for (let r = 0; r < 32; r++) {
        let sum = bias[r];
        for (let c = 0; c < 64; c++) sum += fc1[r * 64 + c] * samples.values[t * 64 + c];
        // A unit without a direction left has no lift and adds nothing.
        if (bias[r] > 0) lowest = Math.min(lowest, sum / bias[r]);
      }
    }
    expect(lowest).toBeGreaterThan(-0.3); // (almost) every unit is on for every input
    const [a] = relu.attempts;
    const [b] = linear.attempts;
    expect(a.predictedSparsity).toBeCloseTo(b.predictedSparsity, 2);
  });

  it('ends at the next product when asked to', async () => {
    let products = 0;
    const check = (): void => {
      if (++products === 5) throw new Error('stop now');
    };
    await expect(fit({ check })).rejects.toThrow('stop now');
    expect(products).toBe(5);
  });

  it('gives the same bytes with any number of threads', async () => {
    const wide = syntheticLayer(1200, 576, 600, 40);
    const parts = {
      train: { begin: 0, end: 900 },
      choose: { begin: 900, end: 1050 },
      report: { begin: 1050, end: 1200 },
    };
    const made = [];
    for (const threads of [1, 2, 4]) {
      const { predictor, attempts } = await fitLayer(
        {
          layer: 0,
          kind: 'auto',
          recall: 0.98,
          maxBits: 3.25,
          epochs: 0,
          seed: 1,
          gateRows: wide.gateRows,
          downNorms: wide.norms,
          gateThreshold: wide.threshold,
          gateRowBytes: 600,
          recordBytes: 1200,
          provider: 'cpu',
          threads,
        },
        wide.samples,
        parts,
      );
      made.push({ predictor, attempts });
    }
    expect(made[1]).toEqual(made[0]);
    expect(made[2]).toEqual(made[0]);
    // More neurons than a sample has: something was left out by it, with its error.
    const left = made[0].attempts.filter((attempt) => attempt.from !== 'all');
    expect(left.length).toBeGreaterThan(0);
    for (const { from, over, overError } of left) {
      expect(over).toBeGreaterThan(overError);
      if (from === 'sample') expect(overError).toBeGreaterThan(0);
    }
  });

  it('chooses from a sample what it would choose from all neurons', async () => {
    const wide = syntheticLayer(1500, 96, 700, 30, 5);
    const job = {
      layer: 0,
      kind: 'sketch' as const,
      recall: 0.98,
      maxBits: 4,
      epochs: 0,
      seed: 1,
      gateRows: wide.gateRows,
      downNorms: wide.norms,
      gateThreshold: wide.threshold,
      gateRowBytes: 144,
      recordBytes: 288,
      provider: 'cpu',
    };
    const parts = {
      train: { begin: 0, end: 1100 },
      choose: { begin: 1100, end: 1300 },
      report: { begin: 1300, end: 1500 },
    };
    const { predictor } = await fitLayer(job, wide.samples, parts);
    const costs = [];
    for (const format of ['q1', 'q2', 'q3'] as const) {
      const { attempts } = await fitLayer({ ...job, sketches: [format] }, wide.samples, parts);
      costs.push({ format, cost: attempts[0].cost });
    }
    const best = costs.reduce((a, b) => (b.cost < a.cost ? b : a));
    expect(predictor.fc2.format).toBe(best.format);
  });
});
