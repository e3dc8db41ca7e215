import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { PagePool, PageTable, type Salt } from '../../src/engine/pages.js';

const table = (most = 8): PageTable => new PageTable(new Uint32Array(most));
const ids = (t: PageTable): number[] => Array.from(t.ids.subarray(0, t.pages));
const text = (n: number, from = 0): number[] => Array.from({ length: n }, (_, i) => from + i);

/** A sequence that has computed and published `tokens`. */
function run(pool: PagePool, tokens: number[], salt: Salt = 'a'): PageTable {
  const t = table();
  const known = pool.begin(t, tokens, salt);
  expect(pool.extend(t, tokens.length - known)).toBe(true);
  pool.publish(t, tokens, tokens.length);
  return t;
}

describe('PagePool', () => {
  it('gives the lowest free page first', () => {
    const pool = new PagePool(4, 2);
    const [a, b] = [table(), table()];
    pool.extend(a, 4);
    pool.extend(b, 2);
    expect([ids(a), ids(b)]).toEqual([[0, 1], [2]]);
    pool.release(a);
    pool.extend(b, 2);
    expect(ids(b)).toEqual([2, 0]);
  });

  it('takes a page only when a position needs it', () => {
    const pool = new PagePool(4, 2);
    const t = table();
    pool.extend(t, 1);
    pool.extend(t, 1);
    expect(pool.stats().used).toBe(1);
    pool.extend(t, 1);
    expect(pool.stats().used).toBe(2);
  });

  it('changes nothing when there are not enough pages', () => {
    const pool = new PagePool(2, 2);
    const t = table();
    pool.extend(t, 2);
    expect(pool.extend(t, 3)).toBe(false);
    expect([t.pages, t.length, pool.stats().free]).toEqual([1, 2, 1]);
  });

  it('refuses to outgrow the table', () => {
    expect(() => new PagePool(4, 2).extend(table(1), 3)).toThrow(/3 positions need 2 pages/);
  });

  it('shares the full pages of a known prefix', () => {
    const pool = new PagePool(8, 2);
    const a = run(pool, text(5));
    const b = table();
    expect(pool.begin(b, text(5), 'a')).toBe(4);
    expect(ids(b)).toEqual(ids(a).slice(0, 2));
  });

  it('always leaves the last token of a prompt to be computed', () => {
    const pool = new PagePool(8, 2);
    run(pool, text(4));
    expect(pool.match(text(4), 'a')).toBe(2);
    expect(pool.match(text(5), 'a')).toBe(4);
    expect(pool.match([0], 'a')).toBe(0);
    expect(pool.match([], 'a')).toBe(0);
  });

  it('does not take a page with equal tokens behind another beginning or salt', () => {
    const pool = new PagePool(8, 2);
    run(pool, [1, 2, 3, 4, 9]);
    expect(pool.match([7, 2, 3, 4, 9], 'a')).toBe(0);
    expect(pool.match([3, 4, 9], 'a')).toBe(0);
    expect(pool.match([1, 2, 3, 4, 9], 'b')).toBe(0);
    expect(pool.match([1, 2, 3, 5, 9], 'a')).toBe(2);
  });

  it('keeps both pages when two sequences computed the same one', () => {
    const pool = new PagePool(8, 2);
    const [a, b] = [table(), table()];
    for (const t of [a, b]) pool.begin(t, text(3), 'a');
    for (const t of [a, b]) pool.extend(t, 3);
    for (const t of [a, b]) pool.publish(t, text(3), 3);
    expect(ids(a)).not.toEqual(ids(b));
    pool.release(b);
    expect(pool.stats()).toEqual({ total: 8, used: 2, cached: 0, free: 6 });
    pool.release(a);
    expect(pool.stats()).toEqual({ total: 8, used: 0, cached: 1, free: 7 });
  });

  it('evicts the least recently used page, the end of a text before its beginning', () => {
    const pool = new PagePool(4, 2);
    const [a, b] = [run(pool, [1, 1, 1, 1]), run(pool, [2, 2, 2, 2])];
    pool.release(a);
    pool.release(b);
    pool.release(run(pool, [1, 1, 1])); // the page of 1 1 and, for the third token, the end of `a` evicted
    expect(pool.match([1, 1, 1], 'a')).toBe(2);
    expect(pool.match([1, 1, 1, 1, 0], 'a')).toBe(2);
    expect(pool.match([2, 2, 2, 2, 0], 'a')).toBe(4);
  });

  it('frees what hangs on an evicted page', () => {
    // b computed the page of 1 1 itself, so its second page hangs on a's.
    const pool = new PagePool(4, 2);
    const [a, b] = [table(), table()];
    for (const t of [a, b]) pool.extend(t, 2);
    for (const t of [a, b]) pool.publish(t, [1, 1], 2);
    pool.extend(b, 2);
    pool.publish(b, [1, 1, 2, 2], 4);
    pool.release(a);
    expect(pool.stats()).toEqual({ total: 4, used: 2, cached: 1, free: 1 });
    pool.extend(b, 4); // takes a's page, too
    expect(pool.match([1, 1, 2, 2, 3], '')).toBe(0);
    pool.publish(b, [1, 1, 2, 2, 3, 3, 4, 4], 8); // enters b's own pages, from the first on
    expect(pool.match([1, 1, 2, 2, 3, 3, 4, 4, 5], '')).toBe(8);
  });

  it('gives back the pages of rejected positions, and never opens a sealed page', () => {
    const pool = new PagePool(8, 2);
    const t = run(pool, text(5));
    pool.extend(t, 3);
    pool.truncate(t, 5);
    expect([t.pages, pool.stats().used]).toEqual([3, 3]);
    expect(() => pool.truncate(t, 3)).toThrow(/sealed page; the nearest cut is 2/);
    pool.truncate(t, 2);
    expect(pool.stats()).toEqual({ total: 8, used: 1, cached: 1, free: 6 });
  });

  it('forks by sharing full pages and naming the partial one to copy', () => {
    const pool = new PagePool(4, 2);
    const a = run(pool, text(3));
    const [b, c, d] = [table(), table(), table()];
    expect(pool.fork(a, b)).toEqual([{ from: 1, to: 2 }]);
    expect(ids(b)).toEqual([0, 2]);
    expect(pool.fork(a, c)).toEqual([{ from: 1, to: 3 }]);
    expect(pool.fork(a, d)).toBeNull();
    expect(d.pages).toBe(0);
    expect(() => pool.truncate(c, 1)).toThrow(/sealed/);
  });
});

// ---- laws -----------------------------------------------------------------------------------------------

interface Running {
  table: PageTable;
  salt: Salt;
  tokens: number[];
}

const PAGES = 7;
const SIZE = 2;
type Hash = ConstructorParameters<typeof PagePool>[2];
const HASHES: Record<string, Hash> = {
  fnv: undefined,
  constant: () => 5,
  weak: (seed, t, at) => (seed + t[at]) & 1,
};

/**
 * The pool with the memory it stands for: every position of a page holds the text that its keys and values
 * were computed from. Nothing here knows how the pool counts.
 */
class World {
  readonly pool: PagePool;
  readonly memory = Array.from({ length: PAGES * SIZE }, () => '');
  readonly running: Running[] = [];

  constructor(hash: Hash) {
    this.pool = new PagePool(PAGES, SIZE, hash);
  }

  private static past = (s: Running, position: number): string =>
    `${s.salt}:${s.tokens.slice(0, position + 1).join()}`;
  private static at = (t: PageTable, position: number): number =>
    t.ids[Math.floor(position / SIZE)] * SIZE + (position % SIZE);

  private compute(s: Running, from: number, to: number): void {
    for (let p = from; p < to; p++) this.memory[World.at(s.table, p)] = World.past(s, p);
  }

  begin(tokens: number[], salt: Salt): void {
    const s = { table: table(PAGES + 3), salt, tokens: [...tokens] };
    const expected = this.pool.match(tokens, salt);
    const known = this.pool.begin(s.table, tokens, salt);
    expect(known).toBe(expected);
    expect(known).toBeLessThan(tokens.length);
    this.running.push(s);
    if (!this.extend(s, tokens.slice(known))) this.release(s);
  }

  /** Computes `tokens` behind what is there. */
  extend(s: Running, tokens: number[]): boolean {
    const before = JSON.stringify([s.table, this.pool.stats()]);
    const from = s.table.length;
    const held = s.table.pages;
    const needed = Math.ceil((from + tokens.length) / SIZE) - held;
    const free = Array.from({ length: PAGES }, (_, i) => i).filter((id) => this.pool.usersOf(id) === 0);
    const unused = PAGES - new Set(this.running.flatMap((r) => ids(r.table))).size;
    if (s.table.length + tokens.length > s.table.ids.length * SIZE) return true;
    const done = this.pool.extend(s.table, tokens.length);
    expect(done).toBe(needed <= unused); // whatever nobody uses can be had
    if (!done) expect(JSON.stringify([s.table, this.pool.stats()])).toBe(before);
    else {
      expect(ids(s.table).slice(held, held + free.length)).toEqual(free.slice(0, Math.max(0, needed)));
      s.tokens.splice(from, s.tokens.length, ...tokens);
      this.compute(s, from, s.table.length);
    }
    return done;
  }

  publish(s: Running): void {
    const full = Math.floor(s.table.length / SIZE) * SIZE;
    const grown = full > s.table.indexed * SIZE;
    this.pool.publish(s.table, s.tokens, s.table.length);
    // Nodes lost with an evicted page come back when the next page is full, not before.
    if (grown) expect(this.pool.match([...s.tokens.slice(0, full), 0], s.salt)).toBe(full);
  }

  truncate(s: Running, length: number): void {
    if (length > s.table.length) return;
    const cut = length < s.table.sealed * SIZE ? Math.floor(length / SIZE) * SIZE : length;
    if (cut !== length) expect(() => this.pool.truncate(s.table, length)).toThrow(RangeError);
    this.pool.truncate(s.table, cut);
    s.tokens.length = cut;
  }

  fork(s: Running): void {
    const child = { table: table(PAGES + 3), salt: s.salt, tokens: [...s.tokens] };
    const copies = this.pool.fork(s.table, child.table);
    if (!copies) return;
    for (const { from, to } of copies)
      for (let i = 0; i < SIZE; i++) this.memory[to * SIZE + i] = this.memory[from * SIZE + i];
    this.running.push(child);
  }

  release(s: Running): void {
    this.pool.release(s.table);
    this.running.splice(this.running.indexOf(s), 1);
  }

  check(): void {
    const users = new Array<number>(PAGES).fill(0);
    for (const s of this.running) {
      expect(s.table.pages).toBe(Math.ceil(s.table.length / SIZE));
      for (let p = 0; p < s.table.length; p++)
        expect(this.memory[World.at(s.table, p)], 'a position holds its own text').toBe(World.past(s, p));
      ids(s.table).forEach((id) => users[id]++);
      if (s.table.length % SIZE > 0) {
        const last = s.table.ids[s.table.pages - 1];
        const holders = this.running.filter((r) => ids(r.table).includes(last));
        expect(holders, 'only full pages are shared').toHaveLength(1);
      }
    }
    const { total, used, cached, free } = this.pool.stats();
    expect(used + cached + free).toBe(total);
    expect(used).toBe(users.filter((n) => n > 0).length);
    const kept = users.map((n, id) => this.pool.usersOf(id) - n);
    expect(kept.every((n) => n === 0 || n === 1)).toBe(true);
    expect(cached).toBe(kept.filter((n, id) => n === 1 && users[id] === 0).length);
    expect(free).toBe(users.filter((_, id) => this.pool.usersOf(id) === 0).length);
  }
}

type Command = (w: World) => void;
const tokens = (most: number): fc.Arbitrary<number[]> =>
  fc.array(fc.nat(1), { minLength: 1, maxLength: most, size: 'max' });
const pick = (w: World, n: number): Running | undefined => w.running[n % Math.max(1, w.running.length)];
const onOne = <T>(value: fc.Arbitrary<T>, act: (w: World, s: Running, v: T) => void): fc.Arbitrary<Command> =>
  fc.tuple(fc.nat(20), value).map(([n, v]) => (w) => {
    const s = pick(w, n);
    if (s) act(w, s, v);
  });
const command: fc.Arbitrary<Command> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.tuple(tokens(9), fc.constantFrom<Salt>('a', 1)).map(
      ([t, s]) =>
        (w: World) =>
          w.begin(t, s),
    ),
  },
  { weight: 4, arbitrary: onOne(tokens(5), (w, s, t) => void w.extend(s, t)) },
  { weight: 4, arbitrary: onOne(fc.constant(0), (w, s) => w.publish(s)) },
  { weight: 2, arbitrary: onOne(fc.nat(16), (w, s, length) => w.truncate(s, length)) },
  { weight: 2, arbitrary: onOne(fc.constant(0), (w, s) => w.fork(s)) },
  { weight: 3, arbitrary: onOne(fc.constant(0), (w, s) => w.release(s)) },
  { weight: 1, arbitrary: fc.constant<Command>((w) => w.pool.clearCache()) },
);

describe('the laws of pages', () => {
  it.each(Object.keys(HASHES))('hold under any commands, hash %s', (hash) => {
    fc.assert(
      fc.property(fc.array(command, { maxLength: 60, size: 'max' }), (commands) => {
        const world = new World(HASHES[hash]);
        for (const act of commands) {
          act(world);
          world.check();
        }
        while (world.running.length > 0) world.release(world.running[0]);
        world.pool.clearCache();
        expect(world.pool.stats()).toEqual({ total: PAGES, used: 0, cached: 0, free: PAGES });
      }),
      { numRuns: 150 },
    );
  });

  it('hand out every page again after everything was released', () => {
    const pool = new PagePool(PAGES, SIZE);
    for (let round = 0; round < 3; round++) {
      const t = table(PAGES);
      expect(pool.extend(t, PAGES * SIZE)).toBe(true);
      expect(ids(t)).toEqual([0, 1, 2, 3, 4, 5, 6]);
      pool.publish(t, text(PAGES * SIZE, 100 * round), PAGES * SIZE);
      pool.release(t);
      pool.clearCache();
    }
  });
});
