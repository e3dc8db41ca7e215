/** One API request: a slot for each sequence, an end in time, and an account of what it took. */
import { randomInt } from 'node:crypto';
import { ConstraintError } from '../constrain/index.js';
import type { LayerDensity } from '../engine/stats.js';
import type { Slot } from './admission.js';
import { invalidRequest } from './api-error.js';
import type { BackendResult, SamplingRequest, TokenLogprob } from './backend.js';
import { Deadline } from './deadline.js';
import type { Sampling } from './fields.js';
import type { ServeLimits } from './limits.js';
import type { Metrics } from './metrics.js';
import type { ServedModel } from './served-model.js';

export interface JobSequence {
  prompt: readonly number[];
  seed: number;
}

export interface JobOptions {
  model: ServedModel;
  sequences: readonly JobSequence[];
  sampling: Omit<SamplingRequest, 'seed' | 'signal' | 'mask'>;
  /** A constraint of its own for every sequence. */
  mask?: () => SamplingRequest['mask'];
  /** Fires when the client has gone. */
  client: AbortSignal;
  limits: ServeLimits;
  metrics: Metrics;
}

export interface JobEvents {
  onText?(index: number, piece: string): void;
  onToken?(index: number, token: TokenLogprob): void;
  onLayers?(index: number, layers: readonly LayerDensity[], tokens: number): void;
}

export class Job {
  private readonly began = performance.now();
  private readonly deadline: Deadline;
  private first: Slot | null = null;
  /** Of each sequence: its first text is there, or it has ended. */
  private readonly begun: { promise: Promise<void>; resolve: () => void }[];

  private constructor(private readonly options: JobOptions) {
    this.deadline = new Deadline(options.client, options.limits.requestMs);
    this.begun = options.sequences.map(() => {
      let resolve!: () => void;
      const promise = new Promise<void>((done) => (resolve = done));
      return { promise, resolve };
    });
  }

  /**
   * Waits for the first slot: whatever is refused is refused before the answer begins.
   * @throws ApiError 400 when a prompt does not fit, 503 when there is no room or no slot in time
   */
  static async start(options: JobOptions): Promise<Job> {
    const { model, sequences } = options;
    const { contextLength } = model.backend;
    for (const { prompt } of sequences) {
      if (prompt.length > contextLength) {
        throw invalidRequest(
          `the prompt has ${prompt.length} tokens, the context holds ${contextLength}`,
          undefined,
          'context_length_exceeded',
        );
      }
    }
    model.admission.requireRoom(sequences.length);
    const job = new Job(options);
    try {
      job.first = await job.slot();
      return job;
    } catch (error) {
      job.deadline.clear();
      throw error;
    }
  }

  /** Ends all sequences: the client does not read any more. */
  readonly stop = (): void => this.deadline.stop();

  /** @returns one result a sequence, in their order */
  async run(events: JobEvents = {}): Promise<BackendResult[]> {
    const results = this.options.sequences.map((sequence, index) => this.runOne(sequence, index, events));
    try {
      return await Promise.all(results);
    } catch (error) {
      // One failed: the others have no reader any more.
      this.stop();
      await Promise.allSettled(results);
      throw error;
    } finally {
      this.deadline.clear();
    }
  }

  private async runOne(
    { prompt, seed }: JobSequence,
    index: number,
    events: JobEvents,
  ): Promise<BackendResult> {
    const { model, sampling, mask, metrics } = this.options;
    // Choices of one prompt share it: the others begin when the first one has computed it.
    const leader = this.leaderOf(index);
    if (leader < index) await this.begun[leader].promise;
    const slot = index === 0 ? this.first! : await this.slot();
    let silent = true;
    try {
      const result = await model.backend.generate(
        prompt,
        { ...sampling, seed, mask: mask?.(), signal: this.deadline.signal },
        {
          onText: (piece) => {
            if (silent) metrics.firstText(model.name, (performance.now() - this.began) / 1000);
            silent = false;
            this.begun[index].resolve();
            events.onText?.(index, piece);
          },
          onToken: events.onToken && ((token) => events.onToken!(index, token)),
          onLayers: events.onLayers && ((layers, tokens) => events.onLayers!(index, layers, tokens)),
        },
      );
      if (result.stopReason === 'abort') throw this.deadline.error();
      metrics.finished(model.name, result);
      return result;
    } catch (error) {
      if (error instanceof ConstraintError)
        throw invalidRequest(`constrained decoding: ${error.message}`, undefined, 'constraint_failed');
      throw error;
    } finally {
      this.begun[index].resolve();
      slot.release();
    }
  }

  /** The first sequence with the same prompt. */
  private leaderOf(index: number): number {
    const { sequences } = this.options;
    return sequences.findIndex(({ prompt }) => prompt === sequences[index].prompt);
  }

  private async slot(): Promise<Slot> {
    const { signal } = this.deadline;
    try {
      return await this.options.model.admission.acquire(signal);
    } catch (error) {
      throw signal.aborted ? this.deadline.error() : error;
    }
  }
}

/** Every choice its own seed, so that they differ, and the same request gives the same texts. */
export function sequencesOf(
  prompts: readonly (readonly number[])[],
  n: number,
  seed: number | undefined,
): JobSequence[] {
  const base = seed ?? randomInt(2 ** 32);
  return prompts.flatMap((prompt) =>
    Array.from({ length: n }, (_, i) => ({ prompt, seed: (base + i) % 2 ** 32 })),
  );
}

/**
 * The fields that say how to sample, checked against the model.
 * @throws ApiError 400 naming the field and its limit
 */
export function samplingOf(
  model: ServedModel,
  fields: Sampling,
  maxTokens: { value: number | undefined; field: string },
): Omit<SamplingRequest, 'seed' | 'signal' | 'mask' | 'logprobs'> {
  const { contextLength, vocabSize } = model.backend;
  if (maxTokens.value !== undefined && maxTokens.value > contextLength) {
    throw invalidRequest(
      `${maxTokens.field}: ${maxTokens.value} is more than the context holds, ${contextLength}`,
      maxTokens.field,
      'invalid_value',
    );
  }
  const logitBias: Record<number, number> = {};
  for (const [key, bias] of Object.entries(fields.logit_bias ?? {})) {
    if (Number(key) >= vocabSize) {
      throw invalidRequest(
        `logit_bias: ${key} is no token, ids end at ${vocabSize - 1}`,
        'logit_bias',
        'invalid_value',
      );
    }
    logitBias[Number(key)] = bias;
  }
  return {
    maxTokens: maxTokens.value,
    temperature: fields.temperature,
    topP: fields.top_p,
    topK: fields.top_k,
    minP: fields.min_p,
    repetitionPenalty: fields.repetition_penalty,
    presencePenalty: fields.presence_penalty || undefined,
    frequencyPenalty: fields.frequency_penalty || undefined,
    logitBias: Object.keys(logitBias).length > 0 ? logitBias : undefined,
    stop: [fields.stop ?? []].flat(),
  };
}
