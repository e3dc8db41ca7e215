import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { controlWords, shareBegin } from '../../src/engine/control.js';
import { Work } from '../../src/engine/work.js';

const MiB = 2 ** 20;

function lanesOf(lanes: number): Work[] {
  const control = new Int32Array(controlWords(lanes));
  return Array.from({ length: lanes }, (_, lane) => new Work(control, lane, lanes));
}

/** One phase: lanes take blocks in the order that `turns` says, then all that is left. @returns who took each unit */
function phase(all: Work[], units: number, bytes: number, turns: number[]): number[][] {
  const takers: number[][] = Array.from({ length: units }, () => []);
  const busy = new Set(all.keys());
  const take = (lane: number): void => {
    if (!busy.has(lane)) return;
    if (!all[lane].take()) return void busy.delete(lane);
    for (let u = all[lane].first; u < all[lane].end; u++) takers[u].push(lane);
  };
  for (const work of all) work.begin(units, bytes);
  for (const turn of turns) take(turn % all.length);
  for (const lane of all.keys()) while (busy.has(lane)) take(lane);
  return takers;
}

const phases = fc.array(
  fc.record({
    units: fc.integer({ min: 0, max: 300 }),
    bytes: fc.constantFrom(0, 16, MiB),
    turns: fc.array(fc.nat(7), { maxLength: 60 }),
  }),
  { minLength: 1, maxLength: 6 },
);

describe('a phase’s work', () => {
  it('is done once, whoever is faster, phase after phase', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 5 }), phases, (lanes, list) => {
        const all = lanesOf(lanes);
        for (const { units, bytes, turns } of list) {
          expect(phase(all, units, bytes, turns).every((takers) => takers.length === 1)).toBe(true);
        }
      }),
    );
  });

  it('is shared out evenly when it is small, whoever is faster', () => {
    const takers = phase(lanesOf(3), 10, 100, [0, 0, 0, 0, 0, 0]);
    takers.forEach((lanes, unit) => {
      const owner = [0, 1, 2].find((lane) => unit < shareBegin(10, lane + 1, 3));
      expect(lanes).toEqual([owner]);
    });
  });

  it('is taken over from a lane that does not come', () => {
    const all = lanesOf(2);
    const takers = phase(
      all,
      96,
      MiB,
      Array.from({ length: 60 }, () => 1),
    );
    expect(takers.filter(([lane]) => lane === 1)).toHaveLength(96);
  });

  it('leaves a lane that stopped at most a third of its share', () => {
    const all = lanesOf(2);
    const takers = phase(all, 96, MiB, [0, ...Array.from({ length: 60 }, () => 1)]);
    expect(takers.filter(([lane]) => lane === 0)).toHaveLength(16);
  });

  it('is whole again in a job after one that was left in the middle', () => {
    const all = lanesOf(3);
    all[0].begin(50, MiB);
    all[0].take();
    all[0].begin(50, MiB);
    all[0].take();
    all[1].begin(50, MiB);
    all[1].take();
    for (const work of all) work.reset();
    for (let k = 0; k < 3; k++)
      for (const takers of phase(all, 50, MiB, [2, 1, 0])) expect(takers).toHaveLength(1);
  });
});
