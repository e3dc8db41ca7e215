import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { chunksFor, dealNeurons, type LayerPlan } from '../../src/engine/ffn-plan.js';

const plan = (always: number[], scored: number[], frequency: number[] | null = null): LayerPlan => ({
  mode: 'predicted',
  always: Uint32Array.from(always),
  scored: Uint32Array.from(scored),
  predictor: null,
  frequency: frequency && Float32Array.from(frequency),
});

describe('dealNeurons', () => {
  it('keeps the model’s order without a plan and splits it evenly', () => {
    const { order, chunks } = dealNeurons(10, null, 3);
    expect(order).toBeNull();
    expect(chunks.map((l) => [l.begin, l.rest])).toEqual([[0, 3], [3, 3], [6, 4]]); // prettier-ignore
  });

  it('stores each chunk’s neurons hot first: always, scored, rest', () => {
    const frequency = [0.1, 0.9, 0.2, 0.8, 0, 0.3, 1, 0.95];
    const { order, chunks, scoredRows } = dealNeurons(8, plan([6, 7], [0, 1, 2, 3, 5], frequency), 2);
    expect(Array.from(order!)).toEqual([6, 1, 5, 0, 7, 3, 2, 4]);
    expect(chunks).toEqual([
      { begin: 0, always: 1, scored: 3, rest: 0 },
      { begin: 4, always: 1, scored: 2, rest: 1 },
    ]);
    expect(Array.from(scoredRows)).toEqual([1, 4, 0, 3, 2]); // rows of fc2 in dealt order
  });

  it('is a permutation that puts every neuron in exactly one chunk, for any plan and number of chunks', () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat(2), { minLength: 1, maxLength: 70 }),
        fc.integer({ min: 1, max: 9 }),
        (kinds, n) => {
          const of = (kind: number): number[] => kinds.flatMap((k, id) => (k === kind ? [id] : []));
          const { order, chunks, scoredRows } = dealNeurons(
            kinds.length,
            plan(
              of(0),
              of(1),
              kinds.map((k) => k / 2),
            ),
            n,
          );
          expect(Array.from(order!).sort((a, b) => a - b)).toEqual(kinds.map((_, id) => id));
          let at = 0;
          let row = 0;
          for (const chunk of chunks) {
            expect(chunk.begin).toBe(at);
            for (let i = 0; i < chunk.always; i++) expect(kinds[order![at++]]).toBe(0);
            for (let i = 0; i < chunk.scored; i++) expect(of(1)[scoredRows[row++]]).toBe(order![at++]);
            for (let i = 0; i < chunk.rest; i++) expect(kinds[order![at++]]).toBe(2);
          }
          expect(at).toBe(kinds.length);
          const sizes = chunks.map((l) => l.always + l.scored + l.rest);
          expect(Math.max(...sizes) - Math.min(...sizes)).toBeLessThanOrEqual(2);
        },
      ),
    );
  });
});

describe('chunksFor', () => {
  it('is a property of the model: more chunks for wider FFNs, never more than 16', () => {
    expect([96, 1024, 4096, 11008, 14336].map(chunksFor)).toEqual([4, 4, 8, 16, 16]);
  });
});
