/**
 * The definition of what the sampling options mean: a backend that computes all logits of the text so far for
 * every token (`model.logits`) and samples from them in plain code. It runs the real model, slowly; the
 * engine's own sampling must write the same.
 */
import type { HybridModel } from '../../src/api/hybrid-model.js';
import { TextStream } from '../../src/api/text-stream.js';
import { randomSource, Sampler, SAMPLING_DEFAULTS } from '../../src/engine/sampler.js';
import {
  HybridBackend,
  type Backend,
  type BackendResult,
  type Capability,
  type GenerationEvents,
  type SamplingRequest,
  type TokenLogprob,
} from '../../src/serve/backend.js';

export class ReferenceBackend extends HybridBackend implements Backend {
  override readonly lacks: ReadonlySet<Capability> = new Set(['embeddings'] satisfies Capability[]);

  constructor(
    private readonly engine: HybridModel,
    override readonly slots = 1,
  ) {
    super(engine);
  }

  override async generate(
    prompt: readonly number[],
    request: SamplingRequest,
    events: GenerationEvents,
  ): Promise<BackendResult> {
    const options = {
      ...SAMPLING_DEFAULTS,
      seed: request.seed,
      ...withoutUndefined({
        temperature: request.temperature,
        topK: request.topK,
        topP: request.topP,
        minP: request.minP,
        repetitionPenalty: request.repetitionPenalty,
      }),
    };
    const sampler = new Sampler(this.vocabSize, options, randomSource(request.seed));
    const stream = new TextStream(this.engine.tokenizer.streamDecoder(), request.stop ?? []);
    const tokens: number[] = [];
    let text = '';
    const emit = (piece: string): void => {
      text += piece;
      if (piece !== '') events.onText(piece);
    };
    let stopReason: BackendResult['stopReason'] = 'length';
    const room = Math.min(request.maxTokens, this.contextLength - prompt.length + 1);
    while (tokens.length < room) {
      if (request.signal.aborted) return this.result(prompt, tokens, text, 'abort');
      const all = [...prompt, ...tokens];
      const logits = (await this.engine.logits(all)).slice(-this.vocabSize);
      adjust(logits, tokens, request);
      const mask = request.mask?.(tokens);
      if (mask)
        for (let id = 0; id < logits.length; id++)
          if (!((mask[id >>> 5] >>> (id & 31)) & 1)) logits[id] = -Infinity;
      const id = sampler.next(logits, Int32Array.from(all), all.length);
      if (this.eosIds.includes(id)) {
        stopReason = 'stop';
        break;
      }
      tokens.push(id);
      if (request.logprobs !== undefined) events.onToken?.(logprobsOf(logits, id, request.logprobs));
      emit(stream.push([id]));
      if (stream.stopped) {
        stopReason = 'stop';
        break;
      }
    }
    emit(stream.end());
    return this.result(prompt, tokens, text, stopReason);
  }

  private result(
    prompt: readonly number[],
    tokens: number[],
    text: string,
    stopReason: BackendResult['stopReason'],
  ): BackendResult {
    const { kernelsName, threads } = this.engine.engine;
    const stats = {
      promptTokens: prompt.length,
      promptTokensPerSecond: 0,
      generatedTokens: tokens.length,
      decodeTokensPerSecond: 0,
      ffnMode: 'exact' as const,
      kernels: kernelsName,
      threads,
      gpu: null,
      sparsity: 0,
      predictedSparsity: null,
      recall: null,
      weightedRecall: null,
      bytesPerToken: 0,
    };
    return { text, tokens, stopReason, stats, layers: [] };
  }
}

function adjust(logits: Float32Array, tokens: readonly number[], request: SamplingRequest): void {
  const counts = new Map<number, number>();
  for (const id of tokens) counts.set(id, (counts.get(id) ?? 0) + 1);
  for (const [id, count] of counts)
    logits[id] -= (request.presencePenalty ?? 0) + count * (request.frequencyPenalty ?? 0);
  for (const [id, bias] of Object.entries(request.logitBias ?? {})) logits[Number(id)] += bias;
}

function logprobsOf(logits: Float32Array, id: number, top: number): TokenLogprob {
  const max = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const total = Math.log(logits.reduce((sum, v) => sum + Math.exp(v - max), 0)) + max;
  const ids = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
  return {
    id,
    logprob: logits[id] - total,
    top: ids.slice(0, top).map((t) => ({ id: t, logprob: logits[t] - total })),
  };
}

const withoutUndefined = <T extends object>(value: T): Partial<T> =>
  Object.fromEntries(Object.entries(value).filter(([, v]) => v !== undefined)) as Partial<T>;
