/** One sequence on lane 0: its tokens, how far they are computed, and what it waits for. */
import { PageTable } from './pages.js';
import type { SequenceAccount, SequenceRequest, StopReason, TokenLogprob } from './jobs.js';
import type { ModelLayout } from './layout.js';
import { AnswerBox } from './answer-box.js';
import type { TokenChooser } from './sampler.js';
import { DraftLength, NgramIndex } from './draft.js';
import { STATS_PER_LAYER } from './stats.js';

/** Draft rows of one sequence in a step: longer runs are rarely right, and each costs as much as a short one. */
export const MAX_DRAFTS = 16;

export class Sequence {
  readonly id: number;
  readonly promptLength: number;
  /** Known tokens: the prompt and the answer so far. */
  readonly tokens: Int32Array;
  length: number;
  /** Positions whose keys and values are valid. */
  computed = 0;
  /** Tokens that may follow: rows of the next step behind the last known one. */
  readonly drafts: Int32Array;
  /** How many are worth a try; null: this sequence does not speculate. */
  readonly draftLength: DraftLength | null;
  /** Where its own text proposes them; null: it does not. */
  readonly ngrams: NgramIndex | null;

  // While it runs: the slot whose page table and counters it has.
  slot = -1;
  table: PageTable | null = null;
  /** Its rows in the step under way: the first one's wanted output, -1 for none. */
  firstOutput = -1;
  outputs = 0;

  /** What a scored sequence fills, [tokens][vocab] and [tokens][d]. */
  readonly logits: Float32Array | null;
  readonly hidden: Float32Array | null;
  /** Of a sequence that generates. */
  chooser: TokenChooser | null = null;
  readonly mask: AnswerBox | null;
  readonly draftBox: AnswerBox | null;
  /** Not sent yet. */
  readonly fresh: number[] = [];
  readonly freshLogprobs: TokenLogprob[] = [];
  ended: StopReason | null = null;

  // The account (jobs.ts).
  began = 0;
  firstChoice = 0;
  choices = 0;
  cachedTokens = 0;
  draftTokens = 0;
  acceptedTokens = 0;
  readonly promptCounters: Float64Array;
  readonly answerCounters: Float64Array;
  /** What of answerCounters was not sent yet; null: nobody wants to see them before the end. */
  readonly freshCounters: Float64Array | null;
  /** When the next part of them is sent. */
  nextCounters = 0;

  constructor(
    readonly request: SequenceRequest,
    { layers }: ModelLayout,
  ) {
    const { generate, score, tokens } = request;
    this.id = request.id;
    this.promptLength = tokens.length;
    this.length = tokens.length;
    this.tokens = new Int32Array(tokens.length + (generate?.maxTokens ?? 0));
    this.tokens.set(tokens);
    const speculates = generate !== null && (generate.ngram || generate.drafts !== null);
    this.drafts = new Int32Array(speculates ? MAX_DRAFTS : 0);
    this.draftLength = speculates ? new DraftLength(MAX_DRAFTS) : null;
    this.ngrams = generate?.ngram ? new NgramIndex(this.tokens.length) : null;
    this.mask = generate?.mask ? new AnswerBox(generate.mask) : null;
    this.draftBox = generate?.drafts ? new AnswerBox(generate.drafts) : null;
    this.logits = score?.logits ? new Float32Array(score.logits) : null;
    this.hidden = score?.hidden ? new Float32Array(score.hidden) : null;
    this.promptCounters = new Float64Array(layers.length * STATS_PER_LAYER);
    this.answerCounters = new Float64Array(layers.length * STATS_PER_LAYER);
    this.freshCounters = generate?.counters ? new Float64Array(layers.length * STATS_PER_LAYER) : null;
  }

  /** The token of the row at `position`: known, or a draft. */
  tokenAt(position: number): number {
    return position < this.length ? this.tokens[position] : this.drafts[position - this.length];
  }

  /** After a choice, when log-probabilities are wanted. */
  noteLogprobs(token: number): void {
    const { request, chooser } = this;
    if (request.generate!.logprobs === null) return;
    const { topIds, topLogprobs } = chooser!;
    const top = Array.from(topIds, (id, i) => ({ id, logprob: topLogprobs[i] }));
    this.freshLogprobs.push({ id: token, logprob: chooser!.logprob, top });
  }

  account(now: number): SequenceAccount {
    const { began, firstChoice, choices } = this;
    const promptEnd = choices > 0 ? firstChoice : now;
    return {
      promptMs: began > 0 ? promptEnd - began : 0,
      decodeMs: choices > 0 ? now - firstChoice : 0,
      decodedTokens: Math.max(0, choices - 1),
      cachedTokens: this.cachedTokens,
      draftTokens: this.draftTokens,
      acceptedTokens: this.acceptedTokens,
      promptCounters: this.promptCounters,
      answerCounters: this.answerCounters,
    };
  }

  /** Answer tokens so far. */
  get produced(): number {
    return this.length - this.promptLength;
  }
}

export function addInto(sum: Float64Array, part: Float64Array): void {
  for (let i = 0; i < sum.length; i++) sum[i] += part[i];
}
