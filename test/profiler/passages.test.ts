import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { planSamples, selfWrittenPassages, splitPassages } from '../../src/profiler/passages.js';
import { samplePositions, shuffled } from '../../src/profiler/seeded.js';

/** Ids that say where they stood. */
const text = (begin: number, length: number): number[] => Array.from({ length }, (_, i) => begin + i);

describe('passages', () => {
  it('are windows of the texts, each id at most once, training first', () => {
    const { windows, chooseFrom, reportFrom } = splitPassages(
      [text(0, 5000), text(10_000, 3000)],
      16,
      1e9,
      1,
    );
    const ids = windows.flat();
    expect(new Set(ids).size).toBe(ids.length);
    expect(windows.every((w) => w.length === 16 && w.every((id, i) => id === w[0] + i))).toBe(true);
    expect(windows.length).toBe(Math.floor(5000 / 16) + Math.floor(3000 / 16));
    for (const count of [reportFrom - chooseFrom, windows.length - reportFrom]) {
      expect(count / windows.length).toBeGreaterThan(0.05);
      expect(count / windows.length).toBeLessThan(0.15);
    }
  });

  it('never share between training, choosing and figures', () => {
    const { windows, chooseFrom, reportFrom } = splitPassages([text(0, 16 * 400)], 16, 1e9, 3);
    const passageOf = (w: readonly number[]): number => Math.floor(w[0] / (16 * 4));
    const training = new Set(windows.slice(0, chooseFrom).map(passageOf));
    const choosing = new Set(windows.slice(chooseFrom, reportFrom).map(passageOf));
    expect(windows.slice(chooseFrom).some((w) => training.has(passageOf(w)))).toBe(false);
    expect(windows.slice(reportFrom).some((w) => choosing.has(passageOf(w)))).toBe(false);
  });

  it('come from the whole text when only part of it is wanted', () => {
    const { windows } = splitPassages([text(0, 100_000)], 10, 5000, 1);
    expect(windows.length).toBeGreaterThan(450);
    expect(windows.length).toBeLessThanOrEqual(500);
    expect(Math.max(...windows.map((w) => w[0]))).toBeGreaterThan(95_000);
  });

  it('depend on the seed and nothing else', () => {
    const make = (seed: number) => splitPassages([text(0, 5000)], 16, 1e9, seed);
    expect(make(1)).toEqual(make(1));
    expect(make(1)).not.toEqual(make(2));
  });

  it('of too short a text are refused with its length', () => {
    expect(() => splitPassages([text(0, 47)], 16, 1e9, 1)).toThrow('47 tokens');
    expect(() => splitPassages([[]], 16, 1e9, 1)).toThrow('0 tokens');
  });

  it('of self-written text are single windows', () => {
    const { windows, chooseFrom, reportFrom } = selfWrittenPassages(
      [text(0, 8), text(10, 8), text(20, 8)],
      1,
    );
    expect([windows.length, chooseFrom, reportFrom]).toEqual([3, 1, 2]);
  });
});

describe('samples', () => {
  it('are distinct, ascending, and spread over all tokens', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 5000 }), fc.nat(6000), fc.nat(), (total, count, seed) => {
        const positions = samplePositions(total, count, seed);
        expect(positions.length).toBe(Math.min(total, count));
        positions.forEach((p, i) => {
          expect(p).toBeLessThan(total);
          if (i > 0) expect(p).toBeGreaterThan(positions[i - 1]);
        });
      }),
    );
  });

  it('are taken from all three parts in proportion', () => {
    const passages = splitPassages([text(0, 32_000)], 16, 1e9, 1);
    const { train, choose, report } = planSamples(passages, 4000, 1);
    const [first, second] = [passages.chooseFrom * 16, passages.reportFrom * 16];
    expect(train.every((p) => p < first)).toBe(true);
    expect(choose.every((p) => p >= first && p < second)).toBe(true);
    expect(report.every((p) => p >= second && p < 32_000)).toBe(true);
    const all = train.length + choose.length + report.length;
    expect(train.length / all).toBeCloseTo(first / 32_000, 2);
    expect(choose.length / all).toBeCloseTo((second - first) / 32_000, 2);
  });

  it('a shuffle has every number once', () => {
    expect([...shuffled(100, 5)].sort((a, b) => a - b)).toEqual(text(0, 100));
  });
});
