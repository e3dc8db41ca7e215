import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { PagePool, PageTable } from '../../src/engine/pages.js';
import { Schedule, type ScheduleLimits, type StepPlan } from '../../src/engine/schedule.js';

const SIZE = 2;

interface Job {
  id: number;
  tokens: number[];
  prompt: number;
  target: number; // tokens when it is finished
  table: PageTable;
}

/** An engine without a model: pages are real, tokens are numbers, and the laws are checked at every step. */
class Engine {
  readonly pool: PagePool;
  readonly schedule: Schedule;
  readonly jobs = new Map<number, Job>();
  readonly finished: number[] = [];
  readonly firstAdmitted: number[] = [];
  private readonly decoding = new Set<number>();

  constructor(
    readonly limits: ScheduleLimits,
    pages: number,
  ) {
    this.pool = new PagePool(pages, SIZE);
    this.schedule = new Schedule(limits, {
      begin: (id) => this.pool.begin(this.job(id).table, this.job(id).tokens, ''),
      room: (id) => this.pool.room(this.job(id).table),
      spare: () => this.pool.available * SIZE,
      extend: (id, positions) => expect(this.pool.extend(this.job(id).table, positions)).toBe(true),
      release: (id) => this.pool.release(this.job(id).table),
    });
  }

  private job = (id: number): Job => this.jobs.get(id) as Job;

  add(id: number, prompt: number, answer: number, same = false): void {
    const tokens = Array.from({ length: prompt }, (_, i) => (same ? i : 1000 * id + i));
    const table = new PageTable(new Uint32Array(64));
    this.jobs.set(id, { id, tokens, prompt, target: prompt + answer, table });
    this.schedule.add(id, prompt);
  }

  remove(id: number): void {
    this.schedule.remove(id);
    this.jobs.delete(id);
    this.decoding.delete(id);
  }

  /** One step; each job gets a token, and as many of its drafts as `accept` says. */
  step(drafts = 0, accept = 0): StepPlan {
    for (const id of this.decoding) this.schedule.setDrafts(id, drafts);
    const plan = this.schedule.plan();
    this.check(plan);
    for (const id of plan.admitted) if (!this.firstAdmitted.includes(id)) this.firstAdmitted.push(id);
    for (const id of plan.paused) this.decoding.delete(id);
    for (const { sequence: id, firstPosition, count, wantsLogits } of plan.rows) {
      const job = this.job(id);
      const proposed = this.decoding.has(id) ? count - 1 : 0;
      const accepted = Math.min(proposed, accept, job.target - job.tokens.length - 1);
      const computed = firstPosition + count - proposed + accepted;
      this.pool.truncate(job.table, computed);
      const generated = wantsLogits === 'none' ? 0 : accepted + 1;
      for (let i = 0; i < generated; i++) job.tokens.push(1000 * id + job.tokens.length);
      this.pool.publish(job.table, job.tokens, computed);
      this.schedule.report(id, computed, generated);
      if (generated > 0) this.decoding.add(id);
      if (job.tokens.length < job.target) continue;
      this.finished.push(id);
      this.remove(id);
    }
    return plan;
  }

  private check(plan: StepPlan): void {
    const { batchTokens, slots, promptRowsBeside } = this.limits;
    const count = (decoding: boolean): number =>
      plan.rows.filter((r) => this.decoding.has(r.sequence) === decoding).reduce((n, r) => n + r.count, 0);
    expect(plan.rowCount).toBe(count(true) + count(false));
    expect(plan.rowCount).toBeLessThanOrEqual(batchTokens);
    if (count(true) > 0) expect(count(false)).toBeLessThanOrEqual(promptRowsBeside);
    expect(plan.rows.length).toBeLessThanOrEqual(slots);
    const planned = plan.rows.map((r) => r.sequence);
    expect(new Set(planned).size).toBe(planned.length);
    for (const id of this.decoding)
      expect(
        planned.includes(id) || plan.paused.includes(id) || plan.exhausted === id,
        'decodes or waits',
      ).toBe(true);
    for (const { sequence: id, firstPosition, count: rows, wantsLogits } of plan.rows) {
      const job = this.job(id);
      expect(rows).toBeGreaterThan(0);
      expect(plan.paused).not.toContain(id);
      expect(job.table.length, 'its pages are there').toBe(firstPosition + rows);
      const last = firstPosition + rows >= job.tokens.length;
      expect(wantsLogits).toBe(last ? (this.decoding.has(id) && rows > 1 ? 'all' : 'last') : 'none');
    }
    const oldest = Math.min(...this.jobs.keys());
    if (this.jobs.size > 0 && plan.exhausted === null)
      expect(planned, 'the oldest goes on').toContain(oldest);
  }
}

const rowsOf = (plan: StepPlan): [number, number, number, string][] =>
  plan.rows.map((r) => [r.sequence, r.firstPosition, r.count, r.wantsLogits]);

describe('Schedule', () => {
  it('cuts a prompt into pieces of the budget and wants the last one’s logits', () => {
    const engine = new Engine({ batchTokens: 4, slots: 2, promptRowsBeside: 2 }, 32);
    engine.add(0, 10, 2);
    expect(rowsOf(engine.step())).toEqual([[0, 0, 4, 'none']]);
    expect(rowsOf(engine.step())).toEqual([[0, 4, 4, 'none']]);
    expect(rowsOf(engine.step())).toEqual([[0, 8, 2, 'last']]);
    expect(rowsOf(engine.step())).toEqual([[0, 10, 1, 'last']]);
    expect(rowsOf(engine.step())).toEqual([]);
  });

  it('bounds the prompt rows beside decoding ones', () => {
    const engine = new Engine({ batchTokens: 16, slots: 2, promptRowsBeside: 3 }, 32);
    engine.add(0, 2, 9);
    engine.step();
    engine.add(1, 12, 2);
    expect(rowsOf(engine.step())).toEqual([
      [0, 2, 1, 'last'],
      [1, 0, 3, 'none'],
    ]);
  });

  it('lets several prompts share a step, the oldest first', () => {
    const engine = new Engine({ batchTokens: 8, slots: 3, promptRowsBeside: 4 }, 32);
    engine.add(0, 5, 2);
    engine.add(1, 9, 2);
    expect(rowsOf(engine.step())).toEqual([
      [0, 0, 5, 'last'],
      [1, 0, 3, 'none'],
    ]);
  });

  it('gives draft rows what the others leave', () => {
    const engine = new Engine({ batchTokens: 6, slots: 2, promptRowsBeside: 3 }, 32);
    engine.add(0, 1, 9);
    engine.step();
    expect(rowsOf(engine.step(8))).toEqual([[0, 1, 6, 'all']]);
    engine.add(1, 9, 2);
    expect(rowsOf(engine.step(8))).toEqual([
      [0, 2, 3, 'all'],
      [1, 0, 3, 'none'],
    ]);
  });

  it('never pauses anybody for draft tokens', () => {
    const engine = new Engine({ batchTokens: 16, slots: 2, promptRowsBeside: 8 }, 4);
    engine.add(0, 3, 4);
    engine.add(1, 3, 4);
    engine.step();
    const plan = engine.step(8);
    expect([plan.paused, plan.rows.map((r) => r.count)]).toEqual([[], [1, 1]]);
  });

  it('pauses the youngest when pages run out, and computes it again with its answer so far', () => {
    const engine = new Engine({ batchTokens: 16, slots: 2, promptRowsBeside: 16 }, 5);
    engine.add(0, 3, 5);
    engine.add(1, 3, 4);
    const paused: number[] = [];
    let again: unknown;
    for (let i = 0; i < 20; i++) {
      const plan = engine.step();
      paused.push(...plan.paused);
      if (paused.length > 0 && plan.admitted.includes(1)) again = engine.schedule.size;
    }
    expect(paused).toEqual([1]);
    expect(again).toBe(1);
    expect(engine.finished).toEqual([0, 1]);
  });

  it('does not admit what fits only without the others', () => {
    const engine = new Engine({ batchTokens: 16, slots: 4, promptRowsBeside: 16 }, 4);
    engine.add(0, 4, 2);
    engine.add(1, 6, 2);
    engine.add(2, 1, 1); // would fit, but is not the next
    expect(engine.step().admitted).toEqual([0]);
  });

  it('says when a sequence alone has used up all pages', () => {
    const engine = new Engine({ batchTokens: 16, slots: 1, promptRowsBeside: 16 }, 2);
    engine.add(0, 4, 5);
    expect(engine.step().exhausted).toBeNull();
    const plan = engine.step();
    expect([plan.exhausted, plan.rows]).toEqual([0, []]);
  });

  it('computes only what the prefix index does not know', () => {
    const engine = new Engine({ batchTokens: 16, slots: 1, promptRowsBeside: 16 }, 16);
    engine.add(0, 7, 1, true);
    engine.step();
    engine.add(1, 9, 1, true);
    expect(rowsOf(engine.step())).toEqual([[1, 6, 3, 'last']]);
  });

  it('wants all logits of a sequence that was added so', () => {
    const pages = { begin: () => 0, room: () => 99, spare: () => 99, extend: () => {}, release: () => {} };
    const schedule = new Schedule({ batchTokens: 4, slots: 1, promptRowsBeside: 1 }, pages);
    schedule.add(0, 6, 'all');
    expect(rowsOf(schedule.plan())).toEqual([[0, 0, 4, 'all']]);
  });

  it('forks a sequence whose prompt was just computed, while there is a slot', () => {
    const pages = { begin: () => 0, room: () => 99, spare: () => 99, extend: () => {}, release: () => {} };
    const schedule = new Schedule({ batchTokens: 8, slots: 2, promptRowsBeside: 1 }, pages);
    schedule.add(0, 6);
    schedule.plan();
    schedule.report(0, 6, 0);
    expect([schedule.fork(0, 1), schedule.fork(0, 2)]).toEqual([true, false]);
    for (const id of [0, 1]) schedule.report(id, 6, 1);
    expect(rowsOf(schedule.plan())).toEqual([
      [0, 6, 1, 'last'],
      [1, 6, 1, 'last'],
    ]);
  });

  it('takes a row back when an older prompt needs its pages', () => {
    const rooms = new Map([[0, 2], [1, 2]]); // prettier-ignore
    const schedule = new Schedule(
      { batchTokens: 8, slots: 2, promptRowsBeside: 8 },
      {
        begin: () => 0,
        room: (id) => rooms.get(id)!,
        spare: () => 99,
        extend: (id, n) => rooms.set(id, rooms.get(id)! - n),
        release: () => rooms.set(0, 4),
      },
    );
    schedule.add(0, 6);
    schedule.add(1, 2);
    schedule.plan();
    schedule.report(0, 2, 0);
    schedule.report(1, 2, 1);
    rooms.set(1, 1); // the rest of its page; there is no other
    const plan = schedule.plan();
    expect([rowsOf(plan), plan.rowCount, plan.paused]).toEqual([[[0, 2, 4, 'last']], 4, [1]]);
  });

  it('refuses counts that cannot be', () => {
    const engine = new Engine({ batchTokens: 4, slots: 1, promptRowsBeside: 1 }, 4);
    engine.add(0, 3, 1);
    expect(() => engine.schedule.report(0, 2, 1)).toThrow(/2 computed of 3 \+ 1 tokens/);
    expect(() => new Engine({ batchTokens: 4, slots: 5, promptRowsBeside: 1 }, 4)).toThrow(/5 slots/);
  });
});

describe('the laws of the schedule', () => {
  const event = fc.oneof(
    {
      weight: 3,
      arbitrary: fc.record({
        kind: fc.constant('add' as const),
        prompt: fc.integer({ min: 1, max: 12 }),
        answer: fc.integer({ min: 1, max: 8 }),
        same: fc.boolean(),
      }),
    },
    {
      weight: 6,
      arbitrary: fc.record({ kind: fc.constant('step' as const), drafts: fc.nat(4), accept: fc.nat(4) }),
    },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('cancel' as const), which: fc.nat(9) }) },
  );

  it('hold under random arrivals and cancellations with few pages', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 4 }),
        fc.integer({ min: 0, max: 8 }),
        fc.integer({ min: 1, max: 6 }),
        fc.integer({ min: 10, max: 14 }), // the longest job, 20 positions, fits alone
        fc.array(event, { maxLength: 50, size: 'max' }),
        (slots, more, promptRowsBeside, pages, events) => {
          const engine = new Engine({ batchTokens: slots + more, slots, promptRowsBeside }, pages);
          let arrivals = 0;
          const cancelled = new Set<number>();
          let work = 0;
          for (const e of events) {
            if (e.kind === 'step') engine.step(e.drafts, e.accept);
            else if (e.kind === 'add') {
              engine.add(arrivals++, e.prompt, e.answer, e.same);
              work += e.prompt + e.answer;
            } else {
              const ids = [...engine.jobs.keys()];
              if (ids.length === 0) continue;
              const id = ids[e.which % ids.length];
              cancelled.add(id);
              engine.remove(id);
            }
          }
          for (let steps = 0; engine.jobs.size > 0; steps++) {
            expect(steps, 'at least one row of the oldest per step').toBeLessThanOrEqual(work);
            expect(engine.step().exhausted, 'what fits alone is never given up').toBeNull();
          }
          const expected = Array.from({ length: arrivals }, (_, id) => id).filter((id) => !cancelled.has(id));
          expect([...engine.finished].sort((a, b) => a - b)).toEqual(expected);
          const order = engine.firstAdmitted;
          expect(order).toEqual([...order].sort((a, b) => a - b));
          engine.pool.clearCache();
          expect(engine.pool.stats()).toEqual({ total: pages, used: 0, cached: 0, free: pages });
        },
      ),
      { numRuns: 200 },
    );
  });
});
