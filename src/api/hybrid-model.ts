/**
 * The public API: a model with its tokenizer, ready to generate.
 *
 *     const model = await HybridModel.load('models/tales-4m-relu');
 *     for await (const piece of model.generate('Once upon a time')) process.stdout.write(piece);
 *     await model.close();
 */
import { Engine, type EngineOptions, type GenerateRequest } from '../engine/engine.js';
import { resolveOptions, wholeNumber } from '../engine/options.js';
import type { FfnPlan } from '../engine/ffn-plan.js';
import type { SamplingOptions } from '../engine/sampler.js';
import type { LayerDensity } from '../engine/stats.js';
import { UsageError } from '../errors.js';
import type { OpenedGpu } from '../gpu/open-gpu.js';
import type { GpuChoice } from '../gpu/providers.js';
import type { WeightFormat } from '../kernels/layout.js';
import { chatForm, noTemplate, type ChatForm, type ChatMessage } from '../model/chat.js';
import { generationDefaults, type GenerationDefaults } from '../model/generation-defaults.js';
import { PromptEncoder } from '../model/prompt-encoder.js';
import { createTokenizer, type Tokenizer } from '../model/tokenizer.js';
import type { ModelConfig } from '../model/types.js';
import { packFor } from '../pack/cache.js';
import { openPack } from '../pack/reader.js';
import type { Pack } from '../pack/types.js';
import { DraftModel } from './draft-model.js';
import { Generation, type GenerationPiece, type GenerationResult } from './generation.js';
import { checkRequest, samplingOptions, stopStrings } from './request-options.js';
import { restoreSession, Session, type SessionOptions } from './session.js';
import { TextStream } from './text-stream.js';

export interface LoadOptions extends Omit<EngineOptions, 'gpu'> {
  /** Quantisation of a folder or GGUF file; a pack must match it. @default 'q8', or what the pack holds */
  quant?: WeightFormat;
  /** Told once about each oddity of the model. */
  onWarning?: (message: string) => void;
  /**
   * Finds the plan for an opened pack when `plan` is not given: modes, predictors and the order in which
   * neurons are stored, which every FFN mode profits from; null: none. @default the artifacts of this model in `profiles/` and `predictors/`, of the current folder
   * and of the package
   */
  findPlan?: ((pack: Pack) => Promise<FfnPlan | null> | FfnPlan | null) | null;
  /**
   * Where hot neurons and large matrices may live: `auto` takes what pays on this machine and goes on
   * without it when it fails; a provider by name is an error when it cannot be used. @default 'off'
   */
  gpu?: GpuChoice;
  /**
   * How conversations are written: Jinja source, or `plain`, a simple dialogue for models without a template.
   * @default the model's own template
   */
  chatTemplate?: string;
  /** Bytes of GPU memory for weights. @default four fifths of what is free where that is known, else 1 GiB */
  gpuMemory?: number;
}

export interface GenerateOptions extends Partial<Omit<SamplingOptions, 'logitBias' | 'topLogprobs'>> {
  /** Most tokens to generate; the context's end ends the text too. @default the model's, else 256 */
  maxTokens?: number;
  /** Texts that end the generation; not part of the output. */
  stop?: string | readonly string[];
  /** Go on after the model's end token. @default false */
  ignoreEos?: boolean;
  /** Compute the full gate beside the predictor and report recall. @default false */
  measureRecall?: boolean;
  /** Report log-probabilities of each token and this many of the likeliest ones, 0 to 100. */
  logprobs?: number;
  /** Added to the logits by token id, -100 to 100. */
  logitBias?: Readonly<Record<number, number>>;
  /**
   * Constrained decoding: called before every choice with the tokens generated so far; returns which tokens
   * are allowed, bit `id & 31` of word `id >> 5`, or null for all. All sequences wait for it: be quick.
   */
  mask?: (tokens: readonly number[]) => Uint32Array | null;
  /**
   * Propose tokens and check several in one step; the text is the same with and without. `ngram`: what followed
   * the last tokens earlier in the text; `draft`: what a small model with the same tokenizer would write next,
   * `tokens` at a time (1 to 16, 4 by default). @default false
   */
  speculate?: 'ngram' | { draft: string; tokens?: number } | false;
  /** Take known prefixes of the prompt from the KV cache. @default true */
  cachePrompt?: boolean;
  /** Ends the generation after the step under way; the result has stopReason `abort`. */
  signal?: AbortSignal;
  /** Prompt tokens done so far. */
  onPrompt?: (done: number, total: number) => void;
  /**
   * Watch the layers while the answer is written: means over the `tokens` tokens since the last call, 25 times
   * a second at most, and once at the end. Together the calls cover the answer after its first token.
   */
  onLayers?: (layers: LayerDensity[], tokens: number) => void;
}

const DEFAULT_MAX_TOKENS = 256;
const DEFAULT_DRAFT_TOKENS = 4;
/** As OpenAI's API bounds `n`. */
const MAX_CHOICES = 128;

export class HybridModel implements AsyncDisposable {
  /** How it is talked to; null: it has no chat template, and none was given. */
  readonly chatForm: ChatForm | null;
  private readonly drafts = new Map<string, Promise<DraftModel>>();
  private readonly defaults: GenerationDefaults;
  private readonly prompts: PromptEncoder;

  private constructor(
    readonly engine: Engine,
    readonly tokenizer: Tokenizer,
    chatTemplate: string | undefined,
    private readonly gpu: OpenedGpu | null,
  ) {
    const files = engine.pack.header.tokenizer;
    this.defaults = generationDefaults(files);
    this.chatForm = chatForm(files, chatTemplate);
    this.prompts = new PromptEncoder(tokenizer, files, this.chatForm);
  }

  /**
   * Load a Hugging Face folder, a GGUF file or a pack. Folders and GGUF files are converted once and the
   * pack is kept in the cache directory.
   * @throws ModelError, PackError, HybridError (see errors.ts) with what to do about it
   */
  static async load(path: string, options: LoadOptions = {}): Promise<HybridModel> {
    const { quant, onWarning, findPlan, gpu: choice, gpuMemory, chatTemplate, ...rest } = options;
    const { threads, signal, onProgress } = options;
    const file = await packFor(path, quant ?? null, { threads, signal, onProgress, onWarning });
    const pack = openPack(file);
    const engineOptions: EngineOptions = rest;
    let tokenizer: Tokenizer;
    let gpu: OpenedGpu | null = null;
    try {
      tokenizer = createTokenizer(pack.header.tokenizer);
      if (options.plan === undefined) engineOptions.plan = await planFor(pack, findPlan);
      if (choice && choice !== 'off') gpu = await startGpu(pack, choice, gpuMemory, engineOptions);
    } catch (error) {
      pack.close();
      throw error;
    }
    try {
      const engine = await Engine.open(pack, { ...engineOptions, gpu: gpu?.gpu });
      return new HybridModel(engine, tokenizer, chatTemplate, gpu);
    } catch (error) {
      await gpu?.close();
      throw error;
    }
  }

  /** What `gpu` came to: the provider that was chosen, and why no better one; null when none was asked for. */
  get gpuNote(): string | null {
    return this.gpu?.note ?? null;
  }

  get config(): ModelConfig {
    return this.engine.pack.header.config;
  }

  get name(): string {
    return this.engine.pack.header.name;
  }

  /**
   * Generate text after `prompt`. Calls on one model run side by side in its slots; what one writes does not
   * depend on the others. Prompts that begin alike share what was computed.
   * @param prompt text, or token ids that are used as they are
   */
  generate(prompt: string | readonly number[], options: GenerateOptions = {}): Generation {
    const ids = typeof prompt === 'string' ? this.promptIds(prompt) : prompt;
    return this.start(ids, options);
  }

  /**
   * `n` texts after one prompt, with seeds seed, seed + 1, ... The prompt is computed once: the others begin
   * when the first one has its first token.
   */
  choices(prompt: string | readonly number[], n: number, options: GenerateOptions = {}): Generation[] {
    wholeNumber('n', n, 1, MAX_CHOICES);
    const ids = typeof prompt === 'string' ? this.promptIds(prompt) : prompt;
    const { seed } = samplingOptions(options, this.defaults);
    let begun!: () => void;
    const prompted = new Promise<void>((resolve) => (begun = resolve));
    const first = this.start(ids, { ...options, seed }, null, begun);
    void first.then(begun, begun);
    const others = Array.from({ length: n - 1 }, (_, i) =>
      this.start(ids, { ...options, seed: (seed + i + 1) % 2 ** 32 }, prompted),
    );
    return [first, ...others];
  }

  /**
   * A conversation that computes only what is new in each turn.
   * @throws HybridError TEMPLATE_INVALID when a system prompt is given and the model has no chat template
   */
  session(options: SessionOptions = {}): Session {
    if (options.system !== undefined && !this.chatForm) throw noTemplate();
    return new Session(this, options);
  }

  /** @throws HybridError SESSION_INVALID when the file is damaged or of another model */
  restoreSession(file: string): Promise<Session> {
    return restoreSession(this, file);
  }

  /**
   * One vector a text: the mean over tokens of the last hidden state after the final norm, scaled to length 1.
   * @param texts or their token ids
   * @returns f32 [hiddenSize] for each text
   * @throws HybridError CONTEXT_FULL
   */
  async embed(texts: readonly (string | readonly number[])[], signal?: AbortSignal): Promise<Float32Array[]> {
    return Promise.all(
      texts.map(async (text) => {
        const tokens = typeof text === 'string' ? this.promptIds(text) : text;
        const { hidden } = await this.engine.logits({ tokens, logits: false, hidden: true, signal });
        return meanDirection(hidden!, tokens.length);
      }),
    );
  }

  /**
   * Generate the assistant's answer to a conversation, in the form of `chatForm`.
   * @throws HybridError TEMPLATE_INVALID
   */
  chat(messages: readonly ChatMessage[], options: GenerateOptions = {}): Generation {
    const ids = this.chatIds(messages);
    return this.start(ids, { ...options, stop: [...stopStrings(options.stop), ...this.chatForm!.stops] });
  }

  /**
   * Token ids of a conversation up to where the assistant speaks. What stands in a message is encoded as its
   * characters: a user cannot write a control token.
   * @throws HybridError TEMPLATE_INVALID
   */
  chatIds(messages: readonly ChatMessage[]): number[] {
    return this.prompts.chat({ messages });
  }

  /**
   * Logits of every position, f32 [tokenIds.length, vocab], row-major.
   * @throws HybridError CONTEXT_FULL when there are more ids than the context holds
   */
  async logits(tokenIds: readonly number[]): Promise<Float32Array> {
    return (await this.engine.logits({ tokens: tokenIds })).logits;
  }

  /** Draft models are loaded on first use and stay. @throws ModelError when the tokenizers differ */
  private async speculation(
    prompt: readonly number[],
    how: NonNullable<GenerateOptions['speculate']>,
    signal: AbortSignal,
  ): Promise<GenerateRequest['speculate']> {
    if (typeof how !== 'object') return how;
    let loading = this.drafts.get(how.draft);
    if (!loading) {
      loading = DraftModel.load(how.draft, this);
      this.drafts.set(how.draft, loading);
      loading.catch(() => this.drafts.delete(how.draft));
    }
    const draft = await loading;
    return (tokens) => draft.propose(prompt, tokens, how.tokens ?? DEFAULT_DRAFT_TOKENS, signal);
  }

  async close(): Promise<void> {
    for (const draft of this.drafts.values()) await draft.then((model) => model.close()).catch(() => {});
    await this.engine.close();
    await this.gpu?.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Token ids of a text, special tokens as the tokenizer adds them; never empty. @throws UsageError */
  promptIds(prompt: string): number[] {
    const ids = this.tokenizer.encode(prompt);
    if (ids.length > 0) return ids;
    const { bosId } = this.config;
    if (bosId !== null) return [bosId]; // an empty prompt: the model writes what it likes
    throw new UsageError('the prompt is empty and the model has no begin token', 'Give a prompt.');
  }

  /**
   * @param after the generation begins when this has settled
   * @param onFirst called when the first token is there
   */
  private start(
    prompt: readonly number[],
    options: GenerateOptions,
    after: Promise<void> | null = null,
    onFirst?: () => void,
  ): Generation {
    const sampling = samplingOptions(options, this.defaults);
    checkRequest(options, this.config.vocabSize);
    const stops = stopStrings(options.stop);
    const local = new AbortController();
    const signal = options.signal ? AbortSignal.any([options.signal, local.signal]) : local.signal;
    const stopIds = options.ignoreEos ? [] : [...new Set([...this.config.eosIds, ...this.tokenizer.eosIds])];
    const { measureRecall, logprobs, logitBias, mask, cachePrompt, onPrompt, onLayers } = options;
    const run = async (emit: (piece: GenerationPiece) => void): Promise<GenerationResult> => {
      const stream = new TextStream(this.tokenizer.streamDecoder(), stops);
      let text = '';
      const send = (piece: GenerationPiece): void => {
        text += piece.text;
        emit(piece);
      };
      const request: GenerateRequest = {
        prompt,
        maxTokens: options.maxTokens ?? this.defaults.maxNewTokens ?? DEFAULT_MAX_TOKENS,
        sampling,
        stopIds,
        measureRecall,
        logprobs,
        logitBias,
        mask,
        cachePrompt,
        signal,
        onPrompt,
        onLayers,
        onTokens: (tokens, theirs) => {
          onFirst?.();
          send({ text: stream.push(tokens), tokens, logprobs: theirs });
          return stream.stopped;
        },
      };
      await after;
      request.speculate = await this.speculation(prompt, options.speculate ?? false, signal);
      const result = await this.engine.generate(request);
      const rest = stream.end();
      if (rest !== '') send({ text: rest, tokens: [], logprobs: logprobs === undefined ? null : [] });
      return { text, seed: sampling.seed, ...result };
    };
    return new Generation(run, () => local.abort());
  }
}

/** Row sums over rows, scaled to length 1. @param rows f32 [n][width] */
function meanDirection(rows: Float32Array, n: number): Float32Array {
  const width = rows.length / n;
  const sum = new Float64Array(width);
  for (let at = 0; at < rows.length; at++) sum[at % width] += rows[at];
  const length = Math.hypot(...sum) || 1;
  return Float32Array.from(sum, (value) => value / length);
}

/** Loaded late: onnxruntime and Dawn are large, and most models run without them. */
async function startGpu(
  pack: Pack,
  choice: GpuChoice,
  budgetBytes: number | undefined,
  options: EngineOptions,
): Promise<OpenedGpu> {
  const { openGpu } = await import('../gpu/open-gpu.js');
  const resolved = resolveOptions(pack.header, options);
  const { ffn, threads, batchTokens, contextLength, slots, kvPages, kvFormat } = resolved;
  const { signal, onProgress } = options;
  return openGpu({
    pack,
    choice,
    budgetBytes,
    plan: options.plan ?? null,
    ffn,
    lanes: threads,
    maxTokens: batchTokens,
    kvFormat,
    whole: { contextLength, slots, kvPages, kvFormat },
    signal,
    onUnit: (done, total) => onProgress?.({ stage: 'gpu', done, total, unit: 'steps' }),
  });
}

async function planFor(pack: Pack, findPlan: LoadOptions['findPlan']): Promise<FfnPlan | null> {
  if (findPlan !== undefined) return findPlan === null ? null : findPlan(pack);
  const { findPlan: findArtifacts } = await import('../profiler/find-plan.js');
  return findArtifacts(pack);
}
