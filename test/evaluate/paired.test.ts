import { describe, expect, it } from 'vitest';
import { alternate, deviation, median, pairedRatio } from '../../src/evaluate/paired.js';

describe('paired measurement', () => {
  it('takes turns and does not record the warm-up', async () => {
    const order: string[] = [];
    const contestant = (name: string) => ({
      run: async (round: number) => {
        order.push(`${name}${round}`);
        return round;
      },
    });
    const results = await alternate([contestant('a'), contestant('b')], { rounds: 2, warmups: 1 });
    expect(order).toEqual(['a-1', 'b-1', 'a0', 'b0', 'a1', 'b1']);
    expect(results).toEqual([
      [0, 1],
      [0, 1],
    ]);
  });

  it('stops between turns when aborted', async () => {
    const controller = new AbortController();
    const run = async () => controller.abort();
    await expect(alternate([{ run }], { rounds: 5, signal: controller.signal })).rejects.toThrow('abort');
  });

  it('median and deviation of known values', () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 2, 3])).toBe(2.5);
    expect(() => median([])).toThrow(RangeError);
    expect(deviation([2, 4, 4, 4, 5, 5, 7, 9])).toBeCloseTo(2.138, 3);
    expect(deviation([5])).toBe(0);
  });

  it('the paired ratio ignores what slows a whole round', () => {
    expect(pairedRatio([10, 5, 2], [5, 2.5, 1])).toBe(2);
  });
});
