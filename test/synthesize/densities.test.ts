import { describe, expect, it } from 'vitest';
import { activationShare, cutOf, planDensities, tauAt } from '../../src/synthesize/densities.js';
import { fillNormal, upperQuantile, upperTail } from '../../src/synthesize/normal.js';

describe('the normal distribution', () => {
  it('has the tails of the tables', () => {
    expect(upperTail(0)).toBeCloseTo(0.5, 12);
    expect(upperTail(1)).toBeCloseTo(0.158655253931457, 12);
    expect(upperTail(-1)).toBeCloseTo(0.841344746068543, 12);
    expect(upperTail(3.5)).toBeCloseTo(2.32629079035525e-4, 14);
    expect(upperTail(6)).toBeCloseTo(9.86587645037698e-10, 18);
  });

  it('has quantiles that invert the tail', () => {
    for (const p of [1e-6, 0.01, 0.3, 0.5, 0.9, 0.9999])
      expect(upperTail(upperQuantile(p)) / p).toBeCloseTo(1, 9);
  });

  it('is generated with its mean, variance and tails, the same for the same seed', () => {
    const a = new Float32Array(100_001);
    const b = new Float32Array(100_001);
    fillNormal(a, 7, 2);
    fillNormal(b, 7, 2);
    expect(a).toEqual(b);
    const mean = a.reduce((s, x) => s + x, 0) / a.length;
    const variance = a.reduce((s, x) => s + x * x, 0) / a.length;
    expect(Math.abs(mean)).toBeLessThan(0.02);
    expect(variance / 4).toBeCloseTo(1, 1);
    expect(a.filter((x) => x > 2).length / a.length).toBeCloseTo(upperTail(1), 2);
    fillNormal(b, 8, 2);
    const correlation = a.reduce((s, x, i) => s + x * b[i], 0) / a.length / 4;
    expect(Math.abs(correlation)).toBeLessThan(0.02);
  });
});

describe('planDensities', () => {
  it('gives what it was asked for, by simulation', () => {
    const target = { gateSparsity: 0.8932, predictedSparsity: 0.7875, recall: 0.9234, skew: 1 };
    const plan = planDensities(target);
    const noise = new Float32Array(400_000);
    fillNormal(noise, 3, 1);
    let active = 0;
    let candidates = 0;
    let hits = 0;
    const n = noise.length / 2;
    for (let i = 0; i < n; i++) {
      const tau = tauAt(plan, (i + 0.5) / n);
      const [z, e] = [noise[2 * i], noise[2 * i + 1]];
      const isActive = Math.sqrt(plan.rho) * z + Math.sqrt(1 - plan.rho) * e > tau;
      const isCandidate = z >= cutOf(plan, tau);
      if (isActive) active++;
      if (isCandidate) candidates++;
      if (isActive && isCandidate) hits++;
    }
    expect(1 - active / n).toBeCloseTo(target.gateSparsity, 2);
    expect(1 - candidates / n).toBeCloseTo(target.predictedSparsity, 2);
    expect(hits / active).toBeCloseTo(target.recall, 2);
  });

  it('says which recalls are possible when the asked one is not', () => {
    const ask = (gateSparsity: number, predictedSparsity: number) => () =>
      planDensities({ gateSparsity, predictedSparsity, recall: 0.92, skew: 1 });
    expect(ask(0.89, 0.95)).toThrow(/recall 0.92 is impossible/);
    expect(ask(0.5, 0.9)).toThrow(/recall 0.92 is impossible/); // a tenth of the neurons, half of them active
  });

  it('refuses shares outside 0..1', () => {
    expect(() => planDensities({ gateSparsity: 1.2, predictedSparsity: 0.8, recall: 0.9, skew: 1 })).toThrow(
      /gateSparsity/,
    );
  });

  it('concentrates activations on hot neurons as the skew grows', () => {
    const share = (skew: number) =>
      activationShare(
        planDensities({ gateSparsity: 0.89, predictedSparsity: 0.78, recall: 0.92, skew }),
        0.26,
      );
    expect(share(0)).toBeCloseTo(0.26, 2);
    expect(share(0.5)).toBeGreaterThan(share(0));
    expect(share(1)).toBeGreaterThan(0.7);
  });
});
