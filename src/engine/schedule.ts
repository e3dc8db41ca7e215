/**
 * Which rows the next step computes. A sequence's state is two numbers: `tokens` that are known and positions
 * that are `computed`; what lies between has to be computed before the next token can be sampled. A decoding
 * sequence is one behind, a prompt many; a paused sequence is a prompt again, its answer so far included.
 *
 *     add ─► waiting ──admitted──► prompt ──first token──► decoding ──► remove
 *               ▲                     │                       │
 *            paused ◄── its pages ────┴───────────────────────┘
 *
 * The rules, in the order of a step:
 * 1. Waiting and paused sequences are admitted in the order of their arrival, while there are slots and pages.
 * 2. Every decoding sequence gets one row; then prompts, oldest first, get what the budget leaves, but beside
 *    decoding rows not more than `promptRowsBeside` in all: so long does a prompt delay the others. What then is
 *    left goes to draft rows, which are worth the least and never cost anybody a page.
 * 3. When pages run out the youngest running sequence is paused. So the oldest always goes on, and whatever
 *    fits alone finishes.
 *
 * Nothing is allocated per step: the plan and its rows are written again each time.
 */

/** Where a sequence's pages come from; pages.ts behind it, with the table of sequence `id`. */
export interface SequencePages {
  /** Takes the known prefix of the sequence's tokens. @returns its positions */
  begin(id: number): number;
  /** Positions that can be added to this sequence now. */
  room(id: number): number;
  /** Positions in all the pages that nobody uses. */
  spare(): number;
  /** Adds positions; at most `room` are asked for. */
  extend(id: number, positions: number): void;
  release(id: number): void;
}

export interface PlannedRows {
  sequence: number;
  firstPosition: number;
  /** Rows of this sequence: a piece of its prompt, or its last token and `count - 1` draft tokens. */
  count: number;
  /** `all`: draft tokens are checked, or the sequence was added so. */
  wantsLogits: 'none' | 'last' | 'all';
}

export interface StepPlan {
  /** Decoding sequences first, each part by arrival. */
  rows: PlannedRows[];
  rowCount: number;
  admitted: number[];
  /** Their pages are gone. */
  paused: number[];
  /** A sequence that runs alone and has used up all pages: it can only be ended. */
  exhausted: number | null;
}

export interface ScheduleLimits {
  /** Rows of one step. */
  batchTokens: number;
  /** Running sequences; not more than batchTokens, so that each can have a row. */
  slots: number;
  /** Prompt rows of a step in which others decode, >= 1. */
  promptRowsBeside: number;
}

export type SequencePhase = 'waiting' | 'prompt' | 'decoding' | 'paused';

interface Sequence {
  readonly id: number;
  readonly arrival: number;
  readonly logits: 'last' | 'all';
  phase: SequencePhase;
  tokens: number;
  computed: number;
  drafts: number;
  /** This sequence's entry in the plan. */
  readonly rows: PlannedRows;
}

export class Schedule {
  private readonly all = new Map<number, Sequence>();
  private readonly running: Sequence[] = []; // by arrival
  private readonly queue: Sequence[] = []; // waiting and paused, by arrival
  private arrivals = 0;
  private readonly step: StepPlan = { rows: [], rowCount: 0, admitted: [], paused: [], exhausted: null };

  constructor(
    private readonly limits: ScheduleLimits,
    private readonly pages: SequencePages,
  ) {
    const { batchTokens, slots, promptRowsBeside } = limits;
    if (!(slots >= 1 && slots <= batchTokens && promptRowsBeside >= 1))
      throw new RangeError(`${slots} slots, ${batchTokens} rows a step, ${promptRowsBeside} beside others`);
  }

  /** A new sequence of `tokens` >= 1 known tokens. `all`: the logits of every position it computes are wanted. */
  add(id: number, tokens: number, logits: 'last' | 'all' = 'last'): void {
    insert(this.queue, this.create(id, tokens, 0, 'waiting', logits));
  }

  /**
   * A further choice of a sequence whose prompt was just computed, before `report` says which token it got: the
   * new one has the same past and the pages that the caller made it.
   * @returns false when no slot is free: `add` it instead
   */
  fork(parent: number, id: number): boolean {
    if (this.running.length >= this.limits.slots) return false;
    const { tokens, computed, phase, logits } = this.get(parent);
    insert(this.running, this.create(id, tokens, computed, phase, logits));
    return true;
  }

  /** Draft tokens that wait to be checked in the sequence's next row; `report` sets them to 0. */
  setDrafts(id: number, count: number): void {
    this.get(id).drafts = count;
  }

  /**
   * After a step: `computed` positions are valid (rejected drafts taken off), `generated` tokens were sampled.
   * @throws RangeError when a sequence that got a token is not exactly one behind
   */
  report(id: number, computed: number, generated: number): void {
    const s = this.get(id);
    if (generated > 0 ? s.tokens + generated - computed !== 1 : computed > s.tokens)
      throw new RangeError(`sequence ${id}: ${computed} computed of ${s.tokens} + ${generated} tokens`);
    s.computed = computed;
    s.tokens += generated;
    s.drafts = 0;
    if (generated > 0) s.phase = 'decoding';
  }

  /** The sequence has ended, in whatever phase: finished, cancelled or failed. Its pages are released. */
  remove(id: number): void {
    const s = this.get(id);
    this.all.delete(id);
    if (take(this.running, s)) this.pages.release(id);
    else take(this.queue, s);
  }

  /** Keys and values are lost: everything that runs is computed again. */
  pauseAll(): void {
    for (const s of [...this.running]) this.pause(s);
  }

  phase(id: number): SequencePhase {
    return this.get(id).phase;
  }

  /** Sequences that are waiting, paused or running. */
  get size(): number {
    return this.all.size;
  }

  /** The next step; its pages are taken. Valid until the next call. */
  plan(): StepPlan {
    const { step } = this;
    step.rows.length = step.rowCount = step.admitted.length = step.paused.length = 0;
    step.exhausted = null;
    this.admit();
    this.planDecoding();
    const decoding = step.rows.length;
    this.planPrompts(decoding);
    this.planDrafts();
    return step;
  }

  private admit(): void {
    const { running, queue, pages, limits, step } = this;
    while (queue.length > 0 && running.length < limits.slots) {
      const s = queue[0];
      s.computed = pages.begin(s.id);
      // Two prompts that fit one by one would else run until one of them is thrown away.
      let promised = s.tokens - s.computed;
      for (const other of running) promised += other.tokens - other.computed;
      if (running.length > 0 && pages.spare() < promised) {
        pages.release(s.id);
        s.computed = 0;
        return;
      }
      queue.shift();
      s.phase = 'prompt';
      insert(running, s);
      step.admitted.push(s.id);
    }
  }

  private planDecoding(): void {
    // Pausing shortens `running` at its end only.
    for (let i = 0; i < this.running.length; i++) {
      const s = this.running[i];
      if (s.phase === 'decoding' && this.makeRoom(s)) this.addRows(s, 1, 'last');
    }
  }

  private planPrompts(decoding: number): void {
    const { running, limits, step, pages } = this;
    let left = limits.batchTokens - step.rowCount;
    if (decoding > 0) left = Math.min(left, limits.promptRowsBeside);
    for (let i = 0; i < running.length && left > 0; i++) {
      const s = running[i];
      if (s.phase !== 'prompt' || !this.makeRoom(s)) continue;
      const pending = s.tokens - s.computed;
      const count = Math.min(pending, left, pages.room(s.id));
      this.addRows(s, count, s.logits === 'all' ? 'all' : count === pending ? 'last' : 'none');
      left -= count;
    }
  }

  private planDrafts(): void {
    const { running, limits, step, pages } = this;
    for (const s of running) {
      if (s.phase !== 'decoding' || s.drafts === 0 || s.rows.count === 0) continue;
      const count = Math.min(s.drafts, limits.batchTokens - step.rowCount, pages.room(s.id));
      if (count <= 0) continue;
      pages.extend(s.id, count);
      s.rows.count += count;
      s.rows.wantsLogits = 'all';
      step.rowCount += count;
    }
  }

  private addRows(s: Sequence, count: number, wantsLogits: PlannedRows['wantsLogits']): void {
    this.pages.extend(s.id, count);
    s.rows.firstPosition = s.computed;
    s.rows.count = count;
    s.rows.wantsLogits = wantsLogits;
    this.step.rows.push(s.rows);
    this.step.rowCount += count;
  }

  /** At least one position for `s`, at the cost of the youngest. @returns false when that is `s` itself */
  private makeRoom(s: Sequence): boolean {
    while (this.pages.room(s.id) < 1) {
      const youngest = this.running[this.running.length - 1];
      if (this.running.length === 1) {
        this.step.exhausted = s.id;
        return false;
      }
      this.pause(youngest);
      if (youngest === s) return false;
    }
    return true;
  }

  private pause(s: Sequence): void {
    const { step } = this;
    const at = step.rows.indexOf(s.rows);
    if (at >= 0) {
      step.rows.splice(at, 1);
      step.rowCount -= s.rows.count;
    }
    const admitted = step.admitted.indexOf(s.id);
    if (admitted >= 0) step.admitted.splice(admitted, 1);
    else step.paused.push(s.id);
    take(this.running, s);
    this.pages.release(s.id);
    s.phase = 'paused';
    s.computed = 0;
    s.drafts = 0;
    insert(this.queue, s);
  }

  private create(
    id: number,
    tokens: number,
    computed: number,
    phase: SequencePhase,
    logits: 'last' | 'all',
  ): Sequence {
    if (this.all.has(id)) throw new RangeError(`sequence ${id} is already scheduled`);
    if (tokens < 1) throw new RangeError(`sequence ${id} has no tokens`);
    const rows: PlannedRows = { sequence: id, firstPosition: 0, count: 0, wantsLogits: 'none' };
    const s: Sequence = { id, arrival: this.arrivals++, logits, phase, tokens, computed, drafts: 0, rows };
    this.all.set(id, s);
    return s;
  }

  private get(id: number): Sequence {
    const s = this.all.get(id);
    if (!s) throw new RangeError(`sequence ${id} is not scheduled`);
    return s;
  }
}

function insert(list: Sequence[], s: Sequence): void {
  let at = list.length;
  while (at > 0 && list[at - 1].arrival > s.arrival) at--;
  list.splice(at, 0, s);
}

function take(list: Sequence[], s: Sequence): boolean {
  const at = list.indexOf(s);
  if (at >= 0) list.splice(at, 1);
  return at >= 0;
}
