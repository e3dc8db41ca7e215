import { describe, expect, it } from 'vitest';
import { ropeTable } from '../../src/model/rope.js';
import type { RopeScaling } from '../../src/model/types.js';
import { tinyModelConfig } from '../pack/memory-source.js';

const table = (ropeScaling: RopeScaling, contextLength?: number, rotaryDims: number | null = null) => {
  const config = tinyModelConfig({ headDim: 32, ropeScaling, maxContext: 1024 });
  config.block = { ...config.block, attention: { ...config.block.attention, rotaryDims } };
  return ropeTable(config, contextLength);
};
const plain = [...table(null).frequencies];

describe('rotary frequencies', () => {
  it('fall from one to nearly the inverse of theta', () => {
    expect(plain).toHaveLength(16);
    expect(plain[0]).toBe(1);
    expect(plain[15]).toBeCloseTo(10000 ** (-30 / 32), 12);
  });

  it('are those of the part that rotates', () => {
    expect([...table(null, undefined, 16).frequencies]).toEqual(plain.filter((_, i) => i % 2 === 0));
    expect(table(null, undefined, 0).frequencies).toHaveLength(0);
  });

  it('keep fast pairs and divide slow ones with YaRN', () => {
    const yarn = {
      type: 'yarn',
      factor: 4,
      originalMaxPosition: 64,
      betaFast: 32,
      betaSlow: 1,
      attentionFactor: 1.1,
      truncate: true,
    } as const;
    const { frequencies, magnitude } = table(yarn);
    expect(magnitude).toBe(1.1);
    // pair 0 turns 10 times in 64 positions: the ramp begins there; pairs from 5 on turn less than once.
    expect(frequencies[0]).toBe(1);
    for (let i = 5; i < 16; i++) expect(frequencies[i]).toBeCloseTo(plain[i] / 4, 12);
    for (let i = 1; i < 5; i++) {
      expect(frequencies[i]).toBeLessThan(plain[i]);
      expect(frequencies[i]).toBeGreaterThan(plain[i] / 4);
    }
  });

  it('are divided pair by pair with longrope, by the set of the opened context', () => {
    const [shortFactors, longFactors] = [1, 4].map((by) => plain.map((_, i) => by + i / 8));
    const longrope = { type: 'longrope', shortFactors, longFactors, originalMaxPosition: 256, attentionFactor: 1.2 } as const; // prettier-ignore
    expect(table(longrope, 256).magnitude).toBe(1.2);
    plain.forEach((f, i) => {
      expect(table(longrope, 256).frequencies[i]).toBeCloseTo(f / (1 + i / 8), 12);
      expect(table(longrope, 257).frequencies[i]).toBeCloseTo(f / (4 + i / 8), 12);
    });
  });

  it('do not change with dynamic scaling inside the original context, and slow down beyond it', () => {
    const dynamic = { type: 'dynamic', factor: 2, originalMaxPosition: 256 } as const;
    expect([...table(dynamic, 256).frequencies]).toEqual(plain);
    const beyond = table(dynamic, 512).frequencies;
    expect(beyond[0]).toBe(1);
    // theta grows by (2 * 2 - 1)^(32 / 30).
    expect(beyond[15]).toBeCloseTo((10000 * 3 ** (32 / 30)) ** (-30 / 32), 12);
  });
});
