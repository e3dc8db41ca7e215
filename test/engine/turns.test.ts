import { describe, expect, it } from 'vitest';
import { Turns } from '../../src/engine/turns.js';

/** Work that ends when told to. */
function task(log: string[], name: string): { work: () => Promise<void>; end: () => void } {
  let end!: () => void;
  const ended = new Promise<void>((resolve) => (end = resolve));
  return {
    work: async () => {
      log.push(`${name} begins`);
      await ended;
      log.push(`${name} ends`);
    },
    end,
  };
}
const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe('Turns', () => {
  it('runs shared work side by side, and exclusive work alone, in the order they came', async () => {
    const turns = new Turns();
    const log: string[] = [];
    const [a, b, x, c] = ['a', 'b', 'x', 'c'].map((name) => task(log, name));
    const all = [
      turns.run(false, undefined, a.work),
      turns.run(false, undefined, b.work),
      turns.run(true, undefined, x.work),
      turns.run(false, undefined, c.work),
    ];
    await settle();
    expect(log).toEqual(['a begins', 'b begins']);
    b.end();
    await settle();
    expect(log).toHaveLength(3); // x waits for a, and c behind x
    a.end();
    await settle();
    expect(log.at(-1)).toBe('x begins');
    x.end();
    await settle();
    expect(log.slice(-2)).toEqual(['x ends', 'c begins']);
    c.end();
    await Promise.all(all);
  });

  it('lets what was aborted while waiting go at once, with null', async () => {
    const turns = new Turns();
    const log: string[] = [];
    const [a, x, b] = ['a', 'x', 'b'].map((name) => task(log, name));
    const controller = new AbortController();
    const first = turns.run(false, undefined, a.work);
    const exclusive = turns.run(true, controller.signal, x.work);
    const behind = turns.run(false, undefined, b.work);
    await settle();
    controller.abort();
    expect(await exclusive).toBeNull();
    await settle();
    expect(log).toEqual(['a begins', 'b begins']); // nothing exclusive stands between them any more
    a.end();
    b.end();
    await Promise.all([first, behind]);
  });

  it('goes on after work that fails', async () => {
    const turns = new Turns();
    await expect(turns.run(true, undefined, () => Promise.reject(new Error('no')))).rejects.toThrow('no');
    expect(await turns.run(false, undefined, () => Promise.resolve(7))).toBe(7);
  });

  it('says when nothing runs or waits any more', async () => {
    const turns = new Turns();
    const log: string[] = [];
    const a = task(log, 'a');
    const run = turns.run(false, undefined, a.work);
    let drained = false;
    const waiting = turns.drained().then(() => (drained = true));
    await settle();
    expect(drained).toBe(false);
    a.end();
    await run;
    await waiting;
    expect(drained).toBe(true);
  });
});
