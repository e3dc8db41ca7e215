/**
 * The public API: a model with its tokenizer, ready to generate.
 *
 *     const model = await HybridModel.load('models/tales-4m-relu');
 *     for await (const piece of model.generate('Once upon a time')) process.stdout.write(piece);
 *     await model.close();
 */
import { randomInt } from 'node:crypto';
import { Engine, type EngineOptions, type GenerateRequest } from '../engine/engine.js';
import { resolveOptions } from '../engine/options.js';
import type { FfnPlan } from '../engine/ffn-plan.js';
import { SAMPLING_DEFAULTS, type SamplingOptions } from '../engine/sampler.js';
import { UsageError } from '../errors.js';
import type { OpenedGpu } from '../gpu/open-gpu.js';
import type { GpuChoice } from '../gpu/providers.js';
import type { WeightFormat } from '../kernels/layout.js';
import { applyChatTemplate, type ChatMessage } from '../model/chat.js';
import { generationDefaults, type GenerationDefaults } from '../model/generation-defaults.js';
import { createTokenizer, type Tokenizer } from '../model/tokenizer.js';
import type { ModelConfig } from '../model/types.js';
import { packFor } from '../pack/cache.js';
import { openPack } from '../pack/reader.js';
import type { Pack } from '../pack/types.js';
import { Generation, type GenerationResult } from './generation.js';
import { TextStream } from './text-stream.js';

export interface LoadOptions extends Omit<EngineOptions, 'gpu'> {
  /** Quantisation of a folder or GGUF file; a pack must match it. @default 'q8', or what the pack holds */
  quant?: WeightFormat;
  /** Told once about each oddity of the model. */
  onWarning?: (message: string) => void;
  /**
   * Finds the plan for an opened pack when `plan` is not given and the FFN mode is `auto` or `predicted`;
   * null: none. @default the artifacts of this model in `profiles/` and `predictors/`, of the current folder
   * and of the package
   */
  findPlan?: ((pack: Pack) => Promise<FfnPlan | null> | FfnPlan | null) | null;
  /**
   * Where hot neurons and large matrices may live: `auto` takes what pays on this machine and goes on
   * without it when it fails; a provider by name is an error when it cannot be used. @default 'off'
   */
  gpu?: GpuChoice;
  /** Bytes of GPU memory for weights. @default four fifths of what is free where that is known, else 1 GiB */
  gpuMemory?: number;
}

export interface GenerateOptions extends Partial<SamplingOptions> {
  /** Most tokens to generate; the context's end ends the text too. @default the model's, else 256 */
  maxTokens?: number;
  /** Texts that end the generation; not part of the output. */
  stop?: string | readonly string[];
  /** Go on after the model's end token. @default false */
  ignoreEos?: boolean;
  /** Compute the full gate beside the predictor and report recall. @default false */
  measureRecall?: boolean;
  /** Ends the generation within one token; the result has stopReason `abort`. */
  signal?: AbortSignal;
  /** Prompt tokens done so far. */
  onPrompt?: (done: number, total: number) => void;
}

const DEFAULT_MAX_TOKENS = 256;

export class HybridModel implements AsyncDisposable {
  private constructor(
    readonly engine: Engine,
    readonly tokenizer: Tokenizer,
    private readonly defaults: GenerationDefaults,
    private readonly gpu: OpenedGpu | null,
  ) {}

  /**
   * Load a Hugging Face folder, a GGUF file or a pack. Folders and GGUF files are converted once and the
   * pack is kept in the cache directory.
   * @throws ModelError, PackError, HybridError (see errors.ts) with what to do about it
   */
  static async load(path: string, options: LoadOptions = {}): Promise<HybridModel> {
    const { quant, onWarning, findPlan, gpu: choice, gpuMemory, ...rest } = options;
    const { threads, signal, onProgress } = options;
    const file = await packFor(path, quant ?? null, { threads, signal, onProgress, onWarning });
    const pack = openPack(file);
    const engineOptions: EngineOptions = rest;
    let tokenizer: Tokenizer;
    let gpu: OpenedGpu | null = null;
    try {
      tokenizer = createTokenizer(pack.header.tokenizer);
      const wantsPlan = (options.ffn ?? 'auto') === 'auto' || options.ffn === 'predicted';
      if (options.plan === undefined && wantsPlan) engineOptions.plan = await planFor(pack, findPlan);
      if (choice && choice !== 'off') gpu = await startGpu(pack, choice, gpuMemory, engineOptions);
    } catch (error) {
      pack.close();
      throw error;
    }
    try {
      const engine = await Engine.open(pack, { ...engineOptions, gpu: gpu?.gpu });
      return new HybridModel(engine, tokenizer, generationDefaults(pack.header.tokenizer), gpu);
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
   * Generate text after `prompt`. Calls on one model are served in turn, each with a KV cache of its own.
   * @param prompt text, or token ids that are used as they are
   */
  generate(prompt: string | readonly number[], options: GenerateOptions = {}): Generation {
    const ids = typeof prompt === 'string' ? this.promptIds(prompt) : prompt;
    return this.start(ids, options);
  }

  /** Generate the assistant's answer to a conversation with the model's own chat template. */
  chat(messages: readonly ChatMessage[], options: GenerateOptions = {}): Generation {
    const text = applyChatTemplate(this.engine.pack.header.tokenizer, messages, {
      addGenerationPrompt: true,
    });
    return this.start(this.tokenizer.encode(text, { addSpecial: false }), options);
  }

  /**
   * Logits of every position, f32 [tokenIds.length, vocab], row-major.
   * @throws HybridError CONTEXT_FULL when there are more ids than the context holds
   */
  async logits(tokenIds: readonly number[]): Promise<Float32Array> {
    return (await this.engine.logits({ tokens: tokenIds })).logits;
  }

  async close(): Promise<void> {
    await this.engine.close();
    await this.gpu?.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  private promptIds(prompt: string): number[] {
    const ids = this.tokenizer.encode(prompt);
    if (ids.length > 0) return ids;
    const { bosId } = this.config;
    if (bosId !== null) return [bosId]; // an empty prompt: the model writes what it likes
    throw new UsageError('the prompt is empty and the model has no begin token', 'Give a prompt.');
  }

  private start(prompt: readonly number[], options: GenerateOptions): Generation {
    const sampling = samplingOptions(options, this.defaults);
    const stops = stopStrings(options.stop);
    const local = new AbortController();
    const signal = options.signal ? AbortSignal.any([options.signal, local.signal]) : local.signal;
    const stopIds = options.ignoreEos ? [] : [...new Set([...this.config.eosIds, ...this.tokenizer.eosIds])];
    const run = async (emit: (piece: string) => void): Promise<GenerationResult> => {
      const stream = new TextStream(this.tokenizer.streamDecoder(), stops);
      let text = '';
      const send = (piece: string): void => {
        text += piece;
        emit(piece);
      };
      const request: GenerateRequest = {
        prompt,
        maxTokens: options.maxTokens ?? this.defaults.maxNewTokens ?? DEFAULT_MAX_TOKENS,
        sampling,
        stopIds,
        measureRecall: options.measureRecall,
        signal,
        onPrompt: options.onPrompt,
        onTokens: (tokens) => {
          send(stream.push(tokens));
          return stream.stopped;
        },
      };
      const result = await this.engine.generate(request);
      send(stream.end());
      return { text, seed: sampling.seed, ...result };
    };
    return new Generation(run, () => local.abort());
  }
}

/** Loaded late: onnxruntime is large, and most models run without it. */
async function startGpu(
  pack: Pack,
  choice: GpuChoice,
  budgetBytes: number | undefined,
  options: EngineOptions,
): Promise<OpenedGpu> {
  const { openGpu } = await import('../gpu/open-gpu.js');
  const { ffn, threads, batchTokens, kvFormat } = resolveOptions(pack.header, options);
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
    signal,
    onUnit: (done, total) => onProgress?.({ stage: 'gpu', done, total, unit: 'steps' }),
  });
}

async function planFor(pack: Pack, findPlan: LoadOptions['findPlan']): Promise<FfnPlan | null> {
  if (findPlan !== undefined) return findPlan === null ? null : findPlan(pack);
  // Loaded late: models without zeros never need it.
  if (pack.header.config.activation.kind === 'silu') return null;
  const { findPlan: findArtifacts } = await import('../profiler/find-plan.js');
  return findArtifacts(pack);
}

function samplingOptions(options: GenerateOptions, defaults: GenerationDefaults): SamplingOptions {
  const sampling: SamplingOptions = {
    temperature:
      options.temperature ??
      (defaults.doSample === false ? 0 : defaults.temperature) ??
      SAMPLING_DEFAULTS.temperature,
    topK: options.topK ?? defaults.topK ?? SAMPLING_DEFAULTS.topK,
    topP: options.topP ?? defaults.topP ?? SAMPLING_DEFAULTS.topP,
    minP: options.minP ?? SAMPLING_DEFAULTS.minP,
    repetitionPenalty: options.repetitionPenalty ?? SAMPLING_DEFAULTS.repetitionPenalty,
    repetitionWindow: options.repetitionWindow ?? SAMPLING_DEFAULTS.repetitionWindow,
    seed: options.seed ?? randomInt(2 ** 32),
  };
  const check = (name: keyof SamplingOptions, ok: boolean, expected: string): void => {
    if (!ok) throw new UsageError(`${name} is ${sampling[name]}, expected ${expected}`);
  };
  check(
    'temperature',
    sampling.temperature >= 0 && sampling.temperature < Infinity,
    'a number from 0 (greedy) up',
  );
  check('topK', Number.isInteger(sampling.topK) && sampling.topK >= 0, 'a whole number from 0 (all) up');
  check('topP', sampling.topP > 0 && sampling.topP <= 1, 'a number above 0, at most 1');
  check('minP', sampling.minP >= 0 && sampling.minP <= 1, 'a number from 0 to 1');
  check(
    'repetitionPenalty',
    sampling.repetitionPenalty > 0 && sampling.repetitionPenalty < Infinity,
    'a number above 0',
  );
  check(
    'repetitionWindow',
    Number.isInteger(sampling.repetitionWindow) && sampling.repetitionWindow >= 0,
    'a whole number from 0 up',
  );
  check(
    'seed',
    Number.isInteger(sampling.seed) && sampling.seed >= 0 && sampling.seed < 2 ** 32,
    'a whole number from 0 to 4294967295',
  );
  return sampling;
}

function stopStrings(stop: GenerateOptions['stop']): string[] {
  const list = stop === undefined ? [] : typeof stop === 'string' ? [stop] : [...stop];
  if (list.some((s) => s === ''))
    throw new UsageError('a stop string is empty', 'Give at least one character.');
  return list;
}
