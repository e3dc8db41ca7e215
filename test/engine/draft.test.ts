import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { DraftLength, NgramIndex, RowPrice } from '../../src/engine/draft.js';

function proposal(tokens: number[], most: number): number[] {
  const index = new NgramIndex(Math.max(1, tokens.length));
  tokens.forEach((token) => index.append(token));
  const out = new Int32Array(most);
  return Array.from(out.subarray(0, index.propose(most, out)));
}

/** Where `tokens[from ..]` of length n begins in `tokens`, all of them. */
function occurrences(tokens: number[], gram: number[]): number[] {
  return tokens.map((_, at) => at).filter((at) => gram.every((token, i) => tokens[at + i] === token));
}

describe('NgramIndex', () => {
  it('proposes what followed the last tokens before', () => {
    expect(proposal([1, 2, 3, 4, 5, 9, 1, 2], 3)).toEqual([3, 4, 5]);
  });

  it('prefers the longest suffix, and of equal ones the latest', () => {
    expect(proposal([0, 1, 2, 3, 7, 8, 2, 3, 9, 8, 0, 1, 2, 3], 1)).toEqual([7]);
    expect(proposal([2, 3, 7, 2, 3, 9, 2, 3], 1)).toEqual([9]);
  });

  it('goes on with its own beginning in text of a short period', () => {
    expect(proposal([5, 5, 5], 4)).toEqual([5, 5, 5, 5]);
    expect(proposal([1, 2, 1, 2], 5)).toEqual([1, 2, 1, 2, 1]);
  });

  it('proposes nothing for what is new, for one token, and for no room', () => {
    expect(proposal([1, 2, 3, 4], 3)).toEqual([]);
    expect(proposal([1, 2, 3, 2], 3)).toEqual([]);
    expect(proposal([1, 1, 1], 0)).toEqual([]);
    expect(proposal([], 3)).toEqual([]);
  });

  it('refuses more tokens than it has room for', () => {
    const index = new NgramIndex(1);
    index.append(0);
    expect(() => index.append(0)).toThrow(/holds 1 tokens/);
  });

  it('proposes only what followed an earlier occurrence of the text’s end', () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat(3), { maxLength: 200, size: 'max' }),
        fc.integer({ min: 1, max: 9 }),
        (tokens, most) => {
          const drafts = proposal(tokens, most);
          if (drafts.length === 0) return;
          expect(drafts).toHaveLength(most);
          const extended = [...tokens, ...drafts];
          const followed = [2, 3, 4].some((n) =>
            occurrences(extended, [...tokens.slice(-n), ...drafts]).some((at) => at + n < tokens.length),
          );
          expect(followed).toBe(true);
        },
      ),
      { numRuns: 300 },
    );
  });

  it('finds a repetition wherever it is: a text that comes twice is proposed from its fifth token on', () => {
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.nat(100_000), { minLength: 6, maxLength: 40, size: 'max' }),
        fc.array(fc.integer({ min: 200_000, max: 300_000 }), { maxLength: 20 }),
        (text, between) => {
          // The slots of a small table collide; with room they do so too rarely to matter here.
          const index = new NgramIndex(50_000);
          for (const token of [...text, ...between, ...text.slice(0, 4)]) index.append(token);
          const out = new Int32Array(2);
          expect(index.propose(2, out)).toBe(2);
          expect(Array.from(out)).toEqual(text.slice(4, 6));
        },
      ),
    );
  });
});

describe('DraftLength', () => {
  const steps = (length: DraftLength, n: number, accept: (proposed: number) => number): number[] =>
    Array.from({ length: n }, () => {
      const proposed = length.next(0);
      length.report(proposed, accept(proposed));
      return proposed;
    });

  it('grows to its maximum while everything is accepted', () => {
    expect(steps(new DraftLength(12), 5, (n) => n)).toEqual([2, 4, 8, 12, 12]);
  });

  it('falls to 0 when nothing is accepted, and tries again ever more rarely', () => {
    const tried = steps(new DraftLength(12), 1000, () => 0).flatMap((n, i) => (n > 0 ? [[i, n]] : []));
    expect(tried).toEqual([
      [0, 2],
      [1, 1],
      [34, 1],
      [99, 1],
      [228, 1],
      [485, 1],
      [742, 1],
      [999, 1],
    ]);
  });

  it('comes back when a try is accepted', () => {
    const length = new DraftLength(8);
    steps(length, 34, () => 0);
    expect(steps(length, 4, (n) => n)).toEqual([1, 2, 4, 8]);
  });

  it('keeps near what is accepted', () => {
    expect(steps(new DraftLength(16), 6, (n) => Math.min(n, 3)).slice(2)).toEqual([4, 4, 4, 4]);
  });

  it('does not wait for steps that had nothing to propose while it is not pausing', () => {
    const length = new DraftLength(4);
    for (let i = 0; i < 100; i++) length.report(0, 0);
    expect(length.next(0)).toBe(2);
  });

  it('never costs more than it is expected to give', () => {
    // Two of three are right: with rows that cost as much as a step nothing is gained by any draft.
    expect(new DraftLength(8).next(1)).toBe(0);
    expect(new DraftLength(8).next(0.5)).toBe(1);
    expect(new DraftLength(8).next(0)).toBe(2);
  });

  it('rests while drafts do not pay, and tries one now and then', () => {
    const length = new DraftLength(8);
    const proposed = Array.from({ length: 70 }, () => {
      const n = length.next(2);
      length.report(n, n);
      return n;
    });
    expect(proposed.flatMap((n, i) => (n > 0 ? [i] : []))).toEqual([32, 65]);
  });

  it('stays within its maximum, and wastes few rows', () => {
    fc.assert(
      fc.property(
        fc.nat(16),
        fc.constantFrom(0, 0.1, 0.5, 1),
        fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 500, size: 'max' }),
        (most, price, luck) => {
          const length = new DraftLength(most);
          let [wasted, won] = [0, 0];
          for (const share of luck) {
            const proposed = length.next(price);
            expect(proposed).toBeGreaterThanOrEqual(0);
            expect(proposed).toBeLessThanOrEqual(most);
            const accepted = Math.floor(share * (proposed + 0.999));
            length.report(proposed, accepted);
            wasted += proposed - accepted;
            won += accepted;
          }
          // Each accepted token doubles the length at most; falling from L to 0 wastes less than 2 L.
          expect(wasted).toBeLessThanOrEqual(3 + luck.length / 32 + 4 * won);
        },
      ),
    );
  });
});

describe('RowPrice', () => {
  it('becomes what a row more costs, in steps of one row', () => {
    const price = new RowPrice();
    price.report(4, 250);
    expect(price.value).toBe(0); // nothing to compare with yet
    price.report(1, 100);
    price.report(4, 250);
    expect(price.value).toBeCloseTo(0.05);
    for (let i = 0; i < 100; i++) price.report(3, 300);
    expect(price.value).toBeCloseTo(1, 3);
  });

  it('does not learn from steps that were interrupted, or from prompts', () => {
    const price = new RowPrice();
    price.report(1, 100);
    price.report(2, 150);
    price.report(1, 10_000);
    price.report(2, 50_000);
    price.report(64, 6400);
    expect(price.value).toBeCloseTo(0.05);
  });
});
