/**
 * Choosing the next token from logits, in the order llama.cpp has by default:
 *
 *     logit bias, mask ─► penalties ─► top-k ─► top-p ─► min-p ─► temperature ─► draw
 *
 * top-p and min-p look at the probabilities at temperature 1, among the tokens that top-k kept; the temperature
 * is applied to what is left. Temperature 0 takes the likeliest token after bias, mask and penalties. Equal
 * logits are ordered by token id. Nothing is allocated per token.
 *
 * The work arrays (`SamplerScratch`, one per vocabulary) are shared by all sequences; what a sequence must
 * remember (`TokenChooser`) is its window of recent tokens and the state of its random source.
 */
import { RuntimeFault, UsageError } from '../errors.js';
import type { Draw } from './step.js';
import { TopTokens } from './top-tokens.js';

export interface SamplingOptions {
  /** 0: greedy. @default 0.8 */
  temperature: number;
  /** Keep the k most likely tokens; 0: all. @default 40 */
  topK: number;
  /** Keep the smallest set of tokens whose probability reaches p; 1: all. @default 0.95 */
  topP: number;
  /** Drop tokens less likely than minP times the likeliest; 0: off. @default 0.05 */
  minP: number;
  /** Divide positive logits of recent tokens by this, multiply negative ones (CTRL, section 4.1). 1: off. @default 1 */
  repetitionPenalty: number;
  /** How many recent tokens, of prompt and answer, the three penalties look at. @default 64 */
  repetitionWindow: number;
  /** Subtracted from the logit of every token in the window. @default 0 */
  presencePenalty?: number;
  /** Subtracted once for each time the token occurs in the window. @default 0 */
  frequencyPenalty?: number;
  /** [token id, what is added to its logit]; -100 and 100 all but forbid and force. @default [] */
  logitBias?: Iterable<readonly [number, number]>;
  /** Report the log probability of the chosen token and of this many likeliest ones; null: none. @default null */
  topLogprobs?: number | null;
  /** Seed of the draw: same seed and model give the same tokens. */
  seed: number;
}

export const SAMPLING_DEFAULTS: Omit<SamplingOptions, 'seed'> = {
  temperature: 0.8,
  topK: 40,
  topP: 0.95,
  minP: 0.05,
  repetitionPenalty: 1,
  repetitionWindow: 64,
};

/** The likeliest token, nothing else: what measurements and drafts ask for. */
export const GREEDY: SamplingOptions = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  repetitionWindow: 0,
  seed: 0,
};

export interface RandomSource {
  /** The next number in [0, 1). */
  (): number;
  /** `randomSource(state)` goes on where this one stands. */
  readonly state: number;
}

const STATE_STEP = 0x6d2b79f5;
const stateAfter = (state: number, draws: number): number => (state + Math.imul(STATE_STEP, draws)) >>> 0;

/** The number that is drawn when the state becomes `z`. */
function uniform(z: number): number {
  z = Math.imul(z ^ (z >>> 15), z | 1);
  z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
  return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
}

/** Uniform numbers in [0, 1) from a 32-bit seed (mulberry32: 32 bits of state, period 2^32). */
export function randomSource(seed: number): RandomSource {
  let state = seed >>> 0;
  const next = (): number => uniform((state = stateAfter(state, 1)));
  return Object.defineProperty(next, 'state', { get: () => state }) as RandomSource;
}

/** The work arrays for one vocabulary: may serve any number of sequences, one after the other. */
export class SamplerScratch {
  readonly work: Float32Array; // [vocab] logits after bias, mask and penalties
  readonly candidates: TopTokens;
  readonly counts: Uint32Array; // [vocab] occurrences in the window; zero between calls

  constructor(readonly vocabSize: number) {
    this.work = new Float32Array(vocabSize);
    this.candidates = new TopTokens(vocabSize);
    this.counts = new Uint32Array(vocabSize);
  }
}

/** Chooses the tokens of one sequence. */
export class TokenChooser {
  /** Of the last `next`, when `topLogprobs` is set: natural logarithm of the chosen token's probability. */
  logprob = 0;
  /** The likeliest tokens of the last `next` [topLogprobs], likeliest first, and their log probabilities. */
  readonly topIds: Uint32Array;
  readonly topLogprobs: Float64Array;

  private readonly random: RandomSource;
  private readonly biasIds: number[];
  private readonly biases: number[];
  private readonly penalises: boolean;
  private readonly window: Int32Array; // [repetitionWindow] the most recent tokens, as a ring
  private accepted = 0;

  /**
   * @param history tokens so far: the prompt, and the answer of a sequence that is continued
   * @param randomState where the random source stands, for a sequence that is continued
   * @throws UsageError when the bias names a token that is none
   */
  constructor(
    private readonly scratch: SamplerScratch,
    private readonly options: SamplingOptions,
    history: ArrayLike<number> = [],
    randomState: number = options.seed,
  ) {
    const { vocabSize } = scratch;
    this.random = randomSource(randomState);
    const pairs = [...(options.logitBias ?? [])];
    this.biasIds = pairs.map(([id]) => id);
    this.biases = pairs.map(([, bias]) => bias);
    for (const id of this.biasIds)
      if (!(Number.isInteger(id) && id >= 0 && id < vocabSize))
        throw new UsageError(`logitBias names token ${id}, the vocabulary has ids 0 to ${vocabSize - 1}`);
    this.penalises =
      options.repetitionWindow > 0 &&
      (options.repetitionPenalty !== 1 || !!options.presencePenalty || !!options.frequencyPenalty);
    this.window = new Int32Array(this.penalises ? options.repetitionWindow : 0);
    const top = Math.min(options.topLogprobs ?? 0, vocabSize);
    this.topIds = new Uint32Array(top);
    this.topLogprobs = new Float64Array(top);
    for (let i = Math.max(0, history.length - this.window.length); i < history.length; i++)
      this.accept(history[i]);
  }

  /** To save with a sequence's tokens, for the constructor. */
  get randomState(): number {
    return this.random.state;
  }

  /** The token belongs to the text now; the penalties count it. Also for tokens this chooser did not choose. */
  accept(token: number): void {
    if (this.penalises) this.window[this.accepted++ % this.window.length] = token;
  }

  /**
   * One draw from the random source, none at temperature 0. The token counts once it is `accept`ed.
   * @param logits f32 [vocab]; not changed
   * @param mask bit (id & 31) of word (id >> 5) is 1 where token id is allowed; null: all are
   * @throws RuntimeFault NUMERIC when a logit is NaN or +Infinity; UsageError when the mask allows nothing or
   *   is too short
   */
  next(logits: Float32Array, mask: Uint32Array | null = null): number {
    const { options } = this;
    const likeliest = argmaxFinite(logits);
    if (logits[likeliest] === -Infinity)
      throw new RuntimeFault('NUMERIC', 'every logit is -Infinity after the output head', { hint: DAMAGED });
    let values = logits;
    let best = likeliest;
    if (mask || this.penalises || this.biasIds.length > 0) {
      values = this.adjusted(logits, mask);
      best = argmaxFinite(values);
      if (mask && values[best] === -Infinity)
        throw new UsageError(
          'the mask allows no token',
          'What constrains the text must always leave one, or end it.',
        );
    }
    const token = options.temperature === 0 ? best : this.draw(values, best);
    if (options.topLogprobs !== null && options.topLogprobs !== undefined)
      this.describe(logits, logits[likeliest], token);
    return token;
  }

  /**
   * How somebody else can choose in place of `next`, from the logits alone: the likeliest token, or a draw.
   * @param ahead choices from here on: 0 is the next one
   * @returns null when it takes more than that: a mask, penalties, a bias, log-probabilities
   */
  delegate(ahead: number): 'greedy' | Draw | null {
    const { temperature, topK, topP, minP, topLogprobs } = this.options;
    const describes = topLogprobs !== null && topLogprobs !== undefined;
    if (this.penalises || this.biasIds.length > 0 || describes) return null;
    if (temperature === 0) return 'greedy';
    const random = uniform(stateAfter(this.random.state, ahead + 1));
    return { temperature, topK, topP, minP, random };
  }

  /** The next choice was made as `delegate` said. */
  delegated(): void {
    if (this.options.temperature !== 0) this.random();
  }

  private adjusted(logits: Float32Array, mask: Uint32Array | null): Float32Array {
    const { work, vocabSize } = this.scratch;
    work.set(logits);
    for (let i = 0; i < this.biasIds.length; i++) work[this.biasIds[i]] += this.biases[i];
    if (mask) {
      if (mask.length * 32 < vocabSize)
        throw new UsageError(
          `the mask has ${mask.length} words, ${vocabSize} tokens need ${(vocabSize + 31) >> 5}`,
        );
      for (let id = 0; id < vocabSize; id++)
        if (((mask[id >> 5] >>> (id & 31)) & 1) === 0) work[id] = -Infinity;
    }
    if (this.penalises) this.penalise(work);
    return work;
  }

  /** As llama.cpp's penalties: each token of the window once, with its count. */
  private penalise(work: Float32Array): void {
    const { window, options } = this;
    const { counts } = this.scratch;
    const { repetitionPenalty, presencePenalty = 0, frequencyPenalty = 0 } = options;
    const held = Math.min(this.accepted, window.length);
    for (let i = 0; i < held; i++) counts[window[i]]++;
    for (let i = 0; i < held; i++) {
      const id = window[i];
      const count = counts[id];
      if (count === 0) continue; // done at an earlier occurrence
      counts[id] = 0;
      const v = work[id] > 0 ? work[id] / repetitionPenalty : work[id] * repetitionPenalty;
      work[id] = v - presencePenalty - count * frequencyPenalty;
    }
  }

  private draw(values: Float32Array, best: number): number {
    const { temperature, topK, topP, minP } = this.options;
    const { candidates } = this.scratch;
    const most = values[best];
    candidates.select(values, topK > 0 ? topK : values.length);
    const total = topP < 1 ? candidates.weight(most, 1) : 0; // before min-p: top-p comes first
    if (minP > 0) candidates.dropBelow(most + Math.log(minP));
    let kept = candidates.count;
    if (topP < 1) {
      let reached = 0;
      for (let i = 0; i < kept; i++) {
        reached += Math.exp(values[candidates.at(i)] - most);
        if (reached >= topP * total) kept = i + 1;
      }
    }
    // Relative to the likeliest token: the largest weight is 1 at any temperature.
    let last = best;
    let point = this.random() * candidates.weight(most, temperature, kept);
    for (let i = 0; i < kept; i++) {
      const id = candidates.at(i);
      const weight = Math.exp((values[id] - most) / temperature);
      point -= weight;
      if (weight > 0) last = id;
      if (point < 0) break;
    }
    return last; // also where rounding leaves a crumb; never a masked token, whose weight is 0
  }

  /**
   * Log probabilities of the model's own distribution: softmax of the logits as they came, at temperature 1,
   * before bias, mask and penalties. So they say what the model thought, and sum to 1 over the vocabulary.
   */
  private describe(logits: Float32Array, most: number, token: number): void {
    let sum = 0;
    for (let id = 0; id < logits.length; id++) sum += Math.exp(logits[id] - most);
    const normaliser = most + Math.log(sum);
    this.logprob = logits[token] - normaliser;
    const { candidates } = this.scratch;
    const { topIds, topLogprobs } = this;
    if (topIds.length > 0) candidates.select(logits, topIds.length);
    for (let i = 0; i < topIds.length; i++) {
      topIds[i] = candidates.at(i);
      topLogprobs[i] = logits[topIds[i]] - normaliser;
    }
  }
}

const DAMAGED = 'The output head or the final norm holds damaged weights; convert the model again.';

/** When all that is known of the logits is that one is NaN or infinite, or that all are -Infinity. */
export const notFiniteLogits = (): RuntimeFault =>
  new RuntimeFault('NUMERIC', 'the logits after the output head are no finite numbers', { hint: DAMAGED });

/** Index of the largest value; the first of equals. @throws RuntimeFault NUMERIC on NaN or Infinity */
export function argmaxFinite(values: Float32Array): number {
  let best = 0;
  let most = values[0];
  let bad = -1;
  for (let i = 0; i < values.length; i++) {
    const v = values[i];
    if (!(v < Infinity)) bad = i;
    if (v > most) [best, most] = [i, v];
  }
  if (bad >= 0) {
    throw new RuntimeFault('NUMERIC', `the logit of token ${bad} is ${values[bad]} after the output head`, {
      hint: DAMAGED,
    });
  }
  return best;
}
