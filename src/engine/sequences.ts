/**
 * Lane 0's part of a `serve` job: the sequences under way. Between two steps it takes messages, lets the
 * schedule decide on rows, and fills the step; after one it chooses tokens, checks drafts, and sends events.
 *
 *     fillStep ──► all lanes: forward ──► takeResults ──► fillStep ...
 */
import { receiveMessageOnPort, type MessagePort } from 'node:worker_threads';
import { HybridError } from '../errors.js';
import { KV_PAGE } from '../kernels/layout.js';
import type { AnswerBox } from './answer-box.js';
import { beat, SLEEP_SLICE_MS, Word } from './control.js';
import { RowPrice } from './draft.js';
import { gpuHoldsModel, MOST_DRAWN } from './gpu-step.js';
import type { Failure, SequenceEvent, SequenceMessage, StopReason } from './jobs.js';
import type { LaneContext } from './lane-context.js';
import { PagePool, PageTable } from './pages.js';
import { rowsOf } from './rows.js';
import { notFiniteLogits, SamplerScratch, TokenChooser } from './sampler.js';
import { Schedule, type PlannedRows, type SequencePages, type StepPlan } from './schedule.js';
import { addInto, Sequence } from './sequence.js';
import { Stat, takeCounters } from './stats.js';
import { NOT_CHOSEN, NOT_FINITE, RowFlag, Wanted, type Step } from './step.js';

/** Prompt rows of a step in which others decode, as a share of the whole batch: bounds how long those wait. */
const PROMPT_SHARE = 1 / 4;

/** A message costs lane 0 about ten microseconds and the main thread more: small models write faster than that pays. */
const FLUSH_MS = 4;
/** Counters of an answer go to who watches it this often at most: 25 pictures a second. */
const COUNTERS_MS = 40;

export class Sequences implements SequencePages {
  private readonly all = new Map<number, Sequence>();
  private readonly pool: PagePool;
  private readonly schedule: Schedule;
  private readonly sampler: SamplerScratch;
  private readonly freeSlots: number[];
  private events: SequenceEvent[] = [];
  /** The step under way, until its results were taken. */
  private step: StepPlan | null = null;
  /** Drafts of another model are on their way for these. */
  private readonly asked: Sequence[] = [];
  private readonly rowPrice = new RowPrice();
  private stepBegan = 0;
  private seenInbox = 0;
  private nextFlush = 0;

  /** @param send events to the main thread */
  constructor(
    private readonly context: LaneContext,
    private readonly rows: Step,
    private readonly inbox: MessagePort,
    private readonly stats: SharedArrayBuffer,
    private readonly send: (events: SequenceEvent[]) => void,
  ) {
    const { slots, kvPages, batchTokens, config } = context.layout;
    this.pool = new PagePool(kvPages, KV_PAGE);
    this.sampler = new SamplerScratch(config.vocabSize);
    this.freeSlots = Array.from({ length: slots }, (_, i) => slots - 1 - i);
    const promptRowsBeside = Math.max(1, Math.floor(batchTokens * PROMPT_SHARE));
    this.schedule = new Schedule({ batchTokens, slots, promptRowsBeside }, this);
  }

  // ---- before a step ---------------------------------------------------------------------------------------

  /**
   * A job begins. The step of a job that failed computed nothing that counts.
   * @param culprit its failure, when one row of the step is to blame: that row's sequence ends with it
   * @param forget the keys and values of all pages are gone
   */
  resume(culprit: Failure | null, forget: boolean): void {
    const row = Atomics.exchange(this.context.control, Word.FAILED_ROW, 0) - 1;
    const slot = culprit && row >= 0 ? this.rows.slot[row] : -1;
    for (const { sequence } of this.step?.rows ?? []) {
      const s = this.all.get(sequence);
      if (!s?.table) continue;
      this.pool.truncate(s.table, s.computed);
      if (s.slot === slot) this.fail(s, culprit!);
    }
    this.step = null;
    if (!forget) return;
    this.schedule.pauseAll();
    this.pool.clearCache();
  }

  /** Rows of the next step; none when no sequence is left. */
  fillStep(): void {
    this.takeMessages();
    this.takeDrafts();
    this.rows.clear();
    let plan = this.schedule.plan();
    while (plan.exhausted !== null) {
      // It runs alone and no page is left: the cache is smaller than the context.
      this.end(this.get(plan.exhausted), 'length');
      plan = this.schedule.plan();
    }
    for (const piece of plan.rows) this.addRows(piece);
    this.step = plan.rowCount > 0 ? plan : null;
    this.countPages();
    this.flush(plan.rowCount === 0);
    this.stepBegan = performance.now();
  }

  private countPages(): void {
    const { used, cached } = this.pool.stats();
    Atomics.store(this.context.control, Word.PAGES_USED, used);
    Atomics.store(this.context.control, Word.PAGES_CACHED, cached);
  }

  private addRows({ sequence, firstPosition, count, wantsLogits }: PlannedRows): void {
    const s = this.get(sequence);
    const measure = s.request.measureRecall ? RowFlag.MEASURE : 0;
    this.copyTable(s.table!);
    s.firstOutput = -1;
    s.outputs = 0;
    for (let i = 0; i < count; i++) {
      const position = firstPosition + i;
      const answer = position >= s.promptLength ? RowFlag.ANSWER : 0;
      const row = this.rows.add(s.tokenAt(position), position, s.slot, measure | answer);
      if (wantsLogits === 'none' || (wantsLogits === 'last' && i < count - 1)) continue;
      const output = this.wantOutput(s, row);
      if (s.outputs++ === 0) s.firstOutput = output;
    }
  }

  /** Of `row`: logits, hidden state, or its token alone where a GPU can choose it. */
  private wantOutput(s: Sequence, row: number): number {
    const { score } = s.request;
    if (score)
      return this.rows.want(row, (score.logits ? Wanted.LOGITS : 0) | (score.hidden ? Wanted.HIDDEN : 0));
    const how = s.mask || !gpuHoldsModel(this.context) ? null : s.chooser!.delegate(s.outputs);
    if (how === 'greedy') return this.rows.want(row, Wanted.GREEDY);
    const draws = how !== null && how.topK >= 1 && how.topK <= MOST_DRAWN;
    return draws ? this.rows.want(row, Wanted.DRAW, how) : this.rows.want(row, Wanted.LOGITS);
  }

  /** Kernels read the page table in the arena of the layer they work on. */
  private copyTable(table: PageTable): void {
    const { arenas } = this.context;
    for (let a = 1; a < arenas.length; a++) {
      arenas[a].u32.set(table.ids.subarray(0, table.pages), table.ids.byteOffset >>> 2);
    }
  }

  // ---- after a step ----------------------------------------------------------------------------------------

  takeResults(): void {
    const pieces = this.step!.rows;
    this.learnRowPrice(this.step!);
    this.step = null;
    const masked: { s: Sequence; computed: number }[] = [];
    for (const { sequence, firstPosition, count } of pieces) {
      const s = this.get(sequence);
      const known = s.length; // drafts lie behind
      const computed = Math.min(firstPosition + count, known);
      if (s.request.score) this.takeScores(s, firstPosition, computed);
      else if (computed < known) this.advance(s, computed, 0);
      else if (s.mask) masked.push({ s, computed });
      else this.guarded(s, () => this.takeTokens(s, computed, count));
    }
    if (masked.length > 0) this.takeMasked(masked);
  }

  /** For who speculates. Lanes wake up for a prompt: its steps are not what drafts would be. */
  private learnRowPrice({ rows, rowCount }: StepPlan): void {
    let speculates = false;
    for (const { sequence, firstPosition } of rows) {
      const s = this.get(sequence);
      if (firstPosition < s.promptLength) return;
      speculates ||= s.draftLength !== null;
    }
    if (speculates) this.rowPrice.report(rowCount, performance.now() - this.stepBegan);
  }

  /** Positions up to `computed` are valid and `generated` tokens were chosen. */
  private advance(s: Sequence, computed: number, generated: number): void {
    this.pool.truncate(s.table!, computed);
    if (!s.request.score) this.pool.publish(s.table!, s.tokens, computed);
    s.computed = computed;
    this.schedule.report(s.id, computed, generated);
    if (computed <= s.promptLength) this.events.push({ type: 'prompt', id: s.id, done: computed });
  }

  /** Choose after the last known token, and go on as long as the drafts behind it are what is chosen. */
  private takeTokens(s: Sequence, computed: number, rows: number): void {
    const drafts = rows > 1 && s.computed === s.length - 1 ? rows - 1 : 0;
    let generated = 0;
    let accepted = 0;
    if (s.request.generate!.maxTokens === 0) s.ended = 'length';
    for (let i = 0; i <= drafts && !s.ended; i++) {
      const token = this.choose(s, s.firstOutput + i, null);
      generated++;
      if (!this.accept(s, token)) break;
      if (i === drafts || s.drafts[i] !== token) break;
      accepted++;
    }
    s.draftLength?.report(drafts, accepted);
    s.draftTokens += drafts;
    s.acceptedTokens += accepted;
    this.settle(s, computed + accepted, generated);
  }

  /** All masks are asked for at once; the lanes wait until the main thread has answered. */
  private takeMasked(masked: { s: Sequence; computed: number }[]): void {
    for (const { s } of masked) {
      this.reportTokens(s);
      s.mask!.ask();
      this.events.push({ type: 'mask', id: s.id });
    }
    this.flush(true);
    for (const { s, computed } of masked) {
      if (!this.awaitAnswer(s, s.mask!)) continue;
      this.guarded(s, () => {
        const token = this.choose(s, s.firstOutput, s.mask!.answer);
        this.accept(s, token);
        this.settle(s, computed, 1);
      });
    }
  }

  /** Sleep until the main thread has answered. @returns false when the sequence was cancelled meanwhile */
  private awaitAnswer(s: Sequence, box: AnswerBox): boolean {
    const { control } = this.context;
    while (this.all.has(s.id) && !box.answered) {
      Atomics.wait(control, Word.INBOX, this.seenInbox, SLEEP_SLICE_MS);
      beat(control);
      this.takeMessages();
    }
    return this.all.has(s.id);
  }

  /** The token after output number `output` of the step. @throws RuntimeFault NUMERIC */
  private choose(s: Sequence, output: number, mask: Uint32Array | null): number {
    const { layout, shared, arenas } = this.context;
    const at = (shared.logits + output * shared.rowLogits) >>> 2;
    const chosen = this.rows.chosen[output];
    let token = chosen;
    if (chosen === NOT_FINITE) throw notFiniteLogits();
    if (chosen === NOT_CHOSEN) {
      const logits = arenas[layout.globalsArena].f32.subarray(at, at + layout.config.vocabSize);
      token = s.chooser!.next(logits, mask);
    } else s.chooser!.delegated();
    if (s.choices++ === 0) s.firstChoice = performance.now();
    s.noteLogprobs(token);
    return token;
  }

  /** Take a chosen token into the sequence. @returns false when it ends the sequence */
  private accept(s: Sequence, token: number): boolean {
    const { maxTokens, stopIds } = s.request.generate!;
    if (stopIds.includes(token)) {
      s.ended = 'stop';
      s.freshLogprobs.length = s.fresh.length; // the stop token is not part of the output
      return false;
    }
    s.tokens[s.length++] = token;
    s.chooser!.accept(token);
    s.fresh.push(token);
    // The last token needs no forward pass: nobody reads its logits.
    if (s.produced === maxTokens || s.length > this.context.layout.contextLength) s.ended = 'length';
    return s.ended === null;
  }

  /** After a choice: the sequence ends, or goes on from `computed` positions. */
  private settle(s: Sequence, computed: number, generated: number): void {
    if (s.ended) {
      this.pool.truncate(s.table!, computed);
      this.pool.publish(s.table!, s.tokens, computed);
      this.end(s, s.ended);
      return;
    }
    this.reportTokens(s);
    this.reportCounters(s);
    this.advance(s, computed, generated);
    this.draft(s);
  }

  private takeScores(s: Sequence, first: number, computed: number): void {
    const { layout, shared, arenas } = this.context;
    const { f32 } = arenas[layout.globalsArena];
    const { vocabSize, hiddenSize } = layout.config;
    const { normed } = rowsOf(this.context, this.rows.rows);
    for (let i = 0; i < s.outputs; i++) {
      const output = s.firstOutput + i;
      const logits = (shared.logits + output * shared.rowLogits) >>> 2;
      const hidden = (normed.f32 + output * normed.f32Row) >>> 2;
      s.logits?.set(f32.subarray(logits, logits + vocabSize), (first + i) * vocabSize);
      s.hidden?.set(f32.subarray(hidden, hidden + hiddenSize), (first + i) * hiddenSize);
    }
    this.advance(s, computed, 0);
    if (computed === s.length) this.end(s, 'length');
  }

  /** What goes wrong for one sequence (its logits are not finite, its mask allows nothing) ends that one. */
  private guarded(s: Sequence, work: () => void): void {
    try {
      work();
    } catch (error) {
      if (!(error instanceof HybridError)) throw error;
      this.fail(s, error);
    }
  }

  private fail(s: Sequence, { code, message, hint }: Failure): void {
    this.drop(s);
    this.events.push({ type: 'failed', id: s.id, code, message, hint });
  }

  // ---- speculation -----------------------------------------------------------------------------------------

  /** Propose what may come next; another model's drafts are taken when the next step is filled. */
  private draft(s: Sequence): void {
    const most = s.draftLength?.next(this.rowPrice.value) ?? 0;
    if (s.ngrams) {
      while (s.ngrams.length < s.length) s.ngrams.append(s.tokens[s.ngrams.length]);
      const room = this.roomForDrafts(s, most);
      this.schedule.setDrafts(s.id, room > 0 ? s.ngrams.propose(room, s.drafts) : 0);
    } else if (s.draftBox && most > 0) {
      s.draftBox.ask();
      this.events.push({ type: 'draft', id: s.id });
      this.asked.push(s);
    }
  }

  private takeDrafts(): void {
    if (this.asked.length === 0) return;
    this.flush(true);
    for (const s of this.asked.splice(0)) {
      if (!this.awaitAnswer(s, s.draftBox!) || this.schedule.phase(s.id) !== 'decoding') continue;
      const proposed = s.draftBox!.answer ?? [];
      s.drafts.set(proposed);
      this.schedule.setDrafts(
        s.id,
        this.roomForDrafts(s, Math.min(proposed.length, s.draftLength!.next(this.rowPrice.value))),
      );
    }
  }

  /** Within what the context and the request leave. */
  private roomForDrafts(s: Sequence, count: number): number {
    const { maxTokens } = s.request.generate!;
    const room = Math.min(maxTokens - s.produced - 1, this.context.layout.contextLength - s.length);
    return Math.max(0, Math.min(count, room));
  }

  // ---- messages --------------------------------------------------------------------------------------------

  /** Looking into an empty port takes longer than a small layer: only when the word says that there is something. */
  private takeMessages(): void {
    const count = Atomics.load(this.context.control, Word.INBOX);
    if (count === this.seenInbox) return;
    this.seenInbox = count;
    for (;;) {
      const received = receiveMessageOnPort(this.inbox) as { message: SequenceMessage } | undefined;
      if (!received) return;
      const { message } = received;
      if (message.type === 'submit') this.submit(new Sequence(message.request, this.context.layout));
      else if (message.type === 'reset') for (const s of this.all.values()) this.drop(s);
      else if (this.all.has(message.id)) this.end(this.get(message.id), 'abort');
    }
  }

  private submit(s: Sequence): void {
    this.all.set(s.id, s);
    const task = s.request.generate;
    if (task) {
      const { sampling, logitBias, logprobs: topLogprobs } = task;
      s.chooser = new TokenChooser(this.sampler, { ...sampling, logitBias, topLogprobs }, s.request.tokens);
    }
    const wantsAll = s.logits !== null || s.hidden !== null;
    this.schedule.add(s.id, s.length, wantsAll ? 'all' : 'last');
  }

  private reportTokens(s: Sequence): void {
    if (s.fresh.length === 0) return;
    const logprobs = s.request.generate!.logprobs === null ? null : s.freshLogprobs.splice(0);
    this.events.push({ type: 'tokens', id: s.id, tokens: s.fresh.splice(0), logprobs });
  }

  /** While it runs: not before it is time, so that a watched answer costs what an unwatched one does. */
  private reportCounters(s: Sequence): void {
    if (!s.freshCounters) return;
    const now = performance.now();
    if (now < s.nextCounters) return;
    s.nextCounters = now + COUNTERS_MS;
    this.countAnswer(s);
    this.sendCounters(s);
  }

  /** Nothing is sent of the prompt, nor of a time in which no token of the answer was computed. */
  private sendCounters(s: Sequence): void {
    const { freshCounters: fresh } = s;
    if (!fresh || fresh[Stat.TOKENS] === 0) return;
    this.events.push({ type: 'counters', id: s.id, counters: fresh.slice() });
    fresh.fill(0);
  }

  private countAnswer(s: Sequence): void {
    const counted = takeCounters(this.stats, this.context.layout, s.slot, 'answer');
    addInto(s.answerCounters, counted);
    if (s.freshCounters) addInto(s.freshCounters, counted);
  }

  private end(s: Sequence, stopReason: StopReason): void {
    if (s.request.generate) this.reportTokens(s);
    this.drop(s);
    this.sendCounters(s);
    this.events.push({ type: 'end', id: s.id, stopReason, account: s.account(performance.now()) });
  }

  private drop(s: Sequence): void {
    this.schedule.remove(s.id); // releases its pages
    this.all.delete(s.id);
  }

  /**
   * One message at a time is under way, and not more than one in FLUSH_MS: what piles up goes with the next.
   * @param now the lanes are about to wait
   */
  private flush(now: boolean): void {
    if (this.events.length === 0) return;
    const time = performance.now();
    if (!now && (time < this.nextFlush || Atomics.load(this.context.control, Word.MAIL) === 1)) return;
    Atomics.store(this.context.control, Word.MAIL, 1);
    this.nextFlush = time + FLUSH_MS;
    this.send(this.events);
    this.events = [];
  }

  private get(id: number): Sequence {
    return this.all.get(id)!;
  }

  // ---- pages and slots (schedule.ts asks) --------------------------------------------------------------------

  begin(id: number): number {
    const s = this.get(id);
    const { shared, arenas, layout } = this.context;
    s.slot = this.freeSlots.pop()!;
    const at = (shared.tables + s.slot * shared.rowTable) >>> 2;
    s.table = new PageTable(arenas[0].u32.subarray(at, at + Math.ceil(layout.contextLength / KV_PAGE)));
    // Of a scored sequence every position is wanted.
    s.computed = s.request.score
      ? 0
      : this.pool.begin(s.table, s.tokens.subarray(0, s.length), s.request.salt);
    if (s.began === 0) {
      s.began = performance.now();
      s.cachedTokens = s.computed;
    }
    return s.computed;
  }

  room(id: number): number {
    return this.pool.room(this.get(id).table!);
  }

  spare(): number {
    return this.pool.available * KV_PAGE;
  }

  extend(id: number, positions: number): void {
    this.pool.extend(this.get(id).table!, positions);
  }

  release(id: number): void {
    const s = this.get(id);
    this.pool.release(s.table!);
    addInto(s.promptCounters, takeCounters(this.stats, this.context.layout, s.slot, 'prompt'));
    this.countAnswer(s);
    this.freeSlots.push(s.slot);
    s.slot = -1;
    s.table = null;
    s.computed = 0;
  }
}
