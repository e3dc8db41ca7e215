/**
 * The engine: a pack in arenas, lanes that run it, and requests side by side. It knows tokens, not text;
 * HybridModel (api/) adds paths, artifacts and the tokenizer.
 */
import { HybridError, UsageError } from '../errors.js';
import { adviseHugePages, selectKernels, type KernelChoice } from '../kernels/select.js';
import { activeNeurons } from '../model/block.js';
import type { Pack } from '../pack/types.js';
import { AnswerBox } from './answer-box.js';
import { createArena } from './arena.js';
import { bytesPerToken } from './bytes.js';
import { chunksFor, cutIn, type ActivationCut, type FfnMode } from './ffn-plan.js';
import type { GenerateTask, SequenceAccount, StopReason, TokenLogprob } from './jobs.js';
import { KV_PAGE } from '../kernels/layout.js';
import { LanePool } from './lanes.js';
import type { InlineItem, LoadItem, ModelLayout } from './layout.js';
import { afterGateOf, planLayout } from './plan-layout.js';
import { resolveOptions, wholeNumber } from './options.js';
import type {
  EngineGpu,
  EngineOptions,
  GenerateRequest,
  GenerateResult,
  LogitsRequest,
  LogitsResult,
  RunStats,
} from './requests.js';
import { MAX_DRAFTS } from './sequence.js';
import { Serving, type SequenceOutcome } from './serving.js';
import { layerDensity, overall, Stat, STATS_PER_LAYER, type LayerDensity } from './stats.js';
import { chromeTrace, type ChromeTrace } from './timeline.js';
import type { TraceRequest } from './trace.js';
import { Turns } from './turns.js';

export type * from './requests.js';
export { overall } from './stats.js';

export class Engine {
  /** The mode asked for, `auto` resolved. Layers may differ from it: see layout.layers[l].mode. */
  readonly ffn: FfnMode;
  readonly kernelsName: string;
  private readonly turns = new Turns();
  private serving: Serving;
  private reviving: Promise<void> | null = null;
  private closed = false;
  private haveNorms = false;
  /** Why the GPU is no longer used; empty while it is. */
  private gpuFailure = '';
  /** The GPU that failed had the KV cache. */
  private keysLost = false;
  /** Changes with everything that decides keys and values: what was computed before is not shared any more. */
  private salt = 0;
  /** A salt that nobody else has, for a request that wants everything computed. */
  private ownSalt = -1;
  /** Modes of all layers for the exclusive request under way. */
  private override: FfnMode[] | null = null;
  private recording = false;

  private constructor(
    readonly pack: Pack,
    readonly layout: ModelLayout,
    private readonly memories: WebAssembly.Memory[],
    private readonly choice: KernelChoice,
    private lanes: LanePool,
    ffn: FfnMode,
    private readonly gpu: EngineGpu | null,
  ) {
    this.ffn = ffn;
    this.kernelsName = choice.name;
    this.serving = this.serveOn(lanes);
  }

  /**
   * Load a pack. The pack's descriptor belongs to the engine from here on and is closed by close().
   * @throws UsageError on impossible options; HybridError when memory, file or lanes fail
   */
  static async open(pack: Pack, options: EngineOptions = {}): Promise<Engine> {
    try {
      return await Engine.load(pack, options);
    } catch (error) {
      pack.close();
      throw error;
    }
  }

  private static async load(pack: Pack, options: EngineOptions): Promise<Engine> {
    const { header } = pack;
    const { ffn, threads, ...sizes } = resolveOptions(header, options);
    const { layout, load, inline } = planLayout(header, {
      ...sizes,
      laneCount: threads,
      chunkCount: chunksFor(activeNeurons(header.config)),
      maxArenaBytes: options.maxArenaBytes,
      ffn,
      plan: options.plan ?? null,
      gpu: options.gpu?.units ?? null,
    });
    const choice = selectKernels(options.kernels ?? 'auto');
    options.signal?.throwIfAborted();
    const memories = layout.arenaBytes.map(createArena);
    // Not the KV cache: one position of every head would make huge pages of all of it resident.
    memories.forEach((memory, i) => adviseHugePages(choice, memory, layout.kvBegin[i]));
    writeInline(memories, inline.splice(0)); // not kept beside the weights that are loaded next
    const lanes = await LanePool.start(layout, memories, choice, options.timeline);
    const engine = new Engine(pack, layout, memories, choice, lanes, ffn, options.gpu ?? null);
    try {
      await engine.readWeights(load, options);
      const planned = layout.layers.flatMap(({ cuts }) => Object.values(cuts ?? {}));
      if (cutsContributions(planned)) await engine.needNorms();
    } catch (error) {
      await lanes.close();
      throw error;
    }
    return engine;
  }

  private async readWeights(items: LoadItem[], options: EngineOptions): Promise<void> {
    options.signal?.throwIfAborted();
    const total = items.reduce((sum, item) => sum + item.section.bytes, 0);
    let done = 0;
    const stop = (): void => this.lanes.interrupt();
    options.signal?.addEventListener('abort', stop, { once: true });
    try {
      await this.lanes.run(
        { type: 'load', fd: this.pack.fd, path: this.pack.path, items },
        {
          onProgress: (bytes) => {
            done += bytes;
            options.onProgress?.({ stage: 'load', done, total, unit: 'bytes' });
          },
        },
      );
    } finally {
      options.signal?.removeEventListener('abort', stop);
    }
    options.signal?.throwIfAborted();
  }

  get threads(): number {
    return this.layout.laneCount;
  }

  /** Pages of the KV cache: held by requests, kept for known prefixes, and all. */
  get pages(): { used: number; cached: number; total: number } {
    return this.lanes.pages;
  }

  /** Requests under way. */
  get running(): number {
    return this.serving.size;
  }

  /** The timeline so far, in Chrome's trace event format. Null unless opened with `timeline`. */
  chromeTrace(): ChromeTrace | null {
    return this.lanes.timelines && chromeTrace(this.lanes.timelines, this.gpu?.provider ?? null);
  }

  /** The FFN mode of every layer, as the next request runs it. */
  get modes(): FfnMode[] {
    return this.layout.layers.map((layer) => layer.mode);
  }

  /**
   * Change layers' FFN modes from the next request on, without loading again.
   * @param cuts what each layer leaves out in its mode; by default what the plan says
   * @throws UsageError when a layer is to be `predicted` but was loaded without a predictor
   */
  async setModes(modes: readonly FfnMode[], cuts?: readonly ActivationCut[]): Promise<void> {
    const { layers, config } = this.layout;
    const inForce = cuts ?? layers.map((layer, l) => cutIn(modes[l], config.activation, layer.cuts));
    if (cutsContributions(inForce)) await this.needNorms();
    modes.forEach((mode, l) => {
      if (mode === 'predicted' && !this.layout.layers[l].predictor) {
        throw new UsageError(
          `layer ${l} has no predictor in the loaded plan`,
          'Load with a plan that predicts it.',
        );
      }
    });
    return this.alone(async () => {
      layers.forEach((layer, l) => {
        layer.mode = modes[l];
        layer.cut = inForce[l];
      });
      this.salt++;
    });
  }

  /**
   * Change a layer's cuts from the next request on: tuning without loading again.
   * @param cut one value for each neuron the plan scores, in the plan's order
   */
  setCuts(l: number, cut: Float32Array): Promise<void> {
    const layer = this.layout.layers[l];
    const { predictor } = layer;
    if (!predictor || cut.length !== predictor.scoredRows.length) {
      const scored = predictor?.scoredRows.length ?? 0;
      throw new UsageError(`layer ${l} scores ${scored} neurons, ${cut.length} cuts were given`);
    }
    return this.alone(async () => {
      const f32 = new Float32Array(this.memories[layer.arena].buffer);
      if (predictor.afterGate) {
        const { reach, weights, bounds } = predictor.afterGate;
        const stored = Float32Array.from(predictor.scoredRows, (row) => cut[row]);
        const values = afterGateOf(reach, stored);
        f32.set(values.weights, weights >>> 2);
        f32.set(values.bounds, bounds >>> 2);
      }
      predictor.chunks.forEach((part, chunk) => {
        const { scored } = layer.chunks[chunk];
        for (let i = 0; i < scored; i++)
          f32[(part.cut >>> 2) + i] = cut[predictor.scoredRows[part.firstRow + i]];
      });
      this.salt++;
    });
  }

  /** The lanes' control words, for tests that make one hang. */
  get laneControl(): Int32Array {
    return this.lanes.control;
  }

  /** The worker threads, for tests that kill one. */
  get workerThreads(): LanePool['threads'] {
    return this.lanes.threads;
  }

  // ---- generation ----------------------------------------------------------------------------------------

  /**
   * Generate from prompt tokens. Requests run side by side in the engine's slots and wait when there is none;
   * what one of them gets does not depend on the others. An aborted request resolves with the tokens so far
   * and stopReason `abort`.
   * @throws HybridError CONTEXT_FULL when the prompt does not fit; what a lane failed with
   */
  generate(request: GenerateRequest): Promise<GenerateResult> {
    const prompt = this.checkTokens(request.prompt);
    if (prompt.length === 0) throw new UsageError('the prompt has no tokens', 'Give at least one token.');
    this.checkFits(prompt.length, 'the prompt has');
    const { contextLength } = this.layout;
    const room = contextLength - prompt.length + 1;
    const maxTokens = Math.min(wholeNumber('maxTokens', request.maxTokens, 0, 2 ** 31 - 1), room);
    return this.generateInTurn(prompt, maxTokens, request);
  }

  private async generateInTurn(
    prompt: Int32Array,
    maxTokens: number,
    request: GenerateRequest,
  ): Promise<GenerateResult> {
    const { signal } = request;
    const tokens: number[] = [];
    const logprobs: TokenLogprob[] | null = request.logprobs === undefined ? null : [];
    if (request.measureRecall) this.checkRecall();
    if (request.measureRecall) await this.needNorms(signal);
    const { speculate = false } = request;
    const mask = request.mask && AnswerBox.make(Math.ceil(this.layout.config.vocabSize / 32));
    const drafts = typeof speculate === 'function' ? AnswerBox.make(MAX_DRAFTS) : null;
    const propose = speculate as (tokens: readonly number[]) => Promise<readonly number[]>;
    const task: GenerateTask = {
      maxTokens,
      sampling: request.sampling,
      stopIds: request.stopIds ?? [],
      logprobs: request.logprobs ?? null,
      logitBias: Object.entries(request.logitBias ?? {}).map(([id, bias]) => [Number(id), bias]),
      mask: mask?.buffer ?? null,
      ngram: speculate === 'ngram',
      counters: request.onLayers !== undefined,
      drafts: drafts?.buffer ?? null,
    };
    const stop = new AbortController();
    let stopped = false;
    const outcome = await this.together(signal, () =>
      this.serving.run(
        {
          salt: request.cachePrompt === false ? this.ownSalt-- : this.salt,
          tokens: prompt,
          measureRecall: request.measureRecall ?? false,
          generate: task,
          score: null,
        },
        {
          onPrompt: (done) => request.onPrompt?.(done, prompt.length),
          onTokens: (fresh, theirs) => {
            if (stopped) return;
            tokens.push(...fresh);
            if (theirs) logprobs?.push(...theirs);
            if (!request.onTokens?.(fresh, theirs)) return;
            stopped = true;
            stop.abort();
          },
          onCounters: (counters) =>
            request.onLayers?.(
              this.densities(counters, request.measureRecall ?? false),
              counters[Stat.TOKENS],
            ),
          onMask: () => mask!.reply(request.mask!(tokens)),
          onDraft: async () => drafts!.reply((await propose(tokens)).slice(0, MAX_DRAFTS)),
        },
        signal ? AbortSignal.any([signal, stop.signal]) : stop.signal,
      ),
    );
    return this.describe(prompt.length, tokens, logprobs, outcome, stopped ? 'stop' : null, request);
  }

  // ---- logits --------------------------------------------------------------------------------------------

  /**
   * Logits for every position of `tokens` (teacher forcing). A request with a recording or an FFN mode of its
   * own waits until it can run alone.
   * @throws HybridError CONTEXT_FULL when there are more tokens than the context holds; the signal's reason
   */
  logits(request: LogitsRequest): Promise<LogitsResult> {
    const tokens = this.checkTokens(request.tokens);
    this.checkFits(tokens.length, 'there are');
    return this.logitsInTurn(tokens, request);
  }

  private async logitsInTurn(tokens: Int32Array, request: LogitsRequest): Promise<LogitsResult> {
    const { config } = this.layout;
    const { signal } = request;
    const n = tokens.length;
    signal?.throwIfAborted();
    if (request.measureRecall) this.checkRecall();
    if (request.measureRecall) await this.needNorms(signal);
    const want = (kind: string, yes: boolean | undefined, width: number): SharedArrayBuffer | null => {
      if (!yes) return null;
      const bytes = Math.max(1, n * width) * 4;
      const known = request.buffers?.get(kind);
      if (known?.byteLength === bytes) {
        new Float32Array(known).fill(0); // a recording writes active neurons only
        return known;
      }
      const fresh = new SharedArrayBuffer(bytes);
      request.buffers?.set(kind, fresh);
      return fresh;
    };
    const logits = want('logits', request.logits ?? true, config.vocabSize);
    const hidden = want('hidden', request.hidden, config.hiddenSize);
    const inputs = want('inputs', request.trace?.inputs, config.layers * config.hiddenSize);
    const met = config.layers * activeNeurons(config);
    const gates = want('gates', request.trace?.gates, met);
    const activations = want('activations', request.trace?.activations, met);
    const routed = config.block.ffn.experts !== null && (gates ?? activations) !== null;
    const choices = config.layers * (config.block.ffn.experts?.active ?? 0);
    const experts = want('experts', routed, choices);
    const expertWeights = want('expertWeights', routed, choices);
    const trace: TraceRequest | null = request.trace
      ? { tokens: n, inputs, gates, activations, experts, expertWeights }
      : null;
    const run = (): Promise<SequenceOutcome> =>
      this.serving.run(
        {
          salt: this.salt,
          tokens,
          measureRecall: request.measureRecall ?? false,
          generate: null,
          score: { logits, hidden },
        },
        { onPrompt: request.onProgress },
        signal,
        trace,
      );
    let outcome: SequenceOutcome | null = null;
    if (n > 0 && (trace || request.ffn)) outcome = await this.apart(request.ffn, trace !== null, signal, run);
    else if (n > 0) outcome = await this.together(signal, run);
    signal?.throwIfAborted();
    const view = (buffer: SharedArrayBuffer | null): Float32Array | null =>
      buffer && new Float32Array(buffer);
    return {
      logits: logits ? new Float32Array(logits, 0, n * config.vocabSize) : new Float32Array(0),
      hidden: hidden && new Float32Array(hidden, 0, n * config.hiddenSize),
      layers: outcome
        ? this.densities(outcome.account.promptCounters, request.measureRecall ?? false, request.ffn)
        : [],
      inputs: view(inputs),
      gates: view(gates),
      activations: view(activations),
      experts: experts && { ids: new Uint32Array(experts), weights: view(expertWeights)! },
    };
  }

  // ---- turns and lanes -----------------------------------------------------------------------------------

  /** Side by side with other such work; null when aborted before it began. */
  private together<T>(signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T | null> {
    return this.turns.run(false, signal, async () => {
      await this.ready();
      return signal?.aborted ? null : work();
    });
  }

  private async alone<T>(work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    return (await this.turns.run(true, signal, async () => {
      await this.ready();
      await this.serving.settled();
      return work();
    })) as T;
  }

  /** One sequence alone, with an FFN mode of its own or a recording (which wants every neuron on the CPU). */
  private apart(
    ffn: FfnMode | undefined,
    recording: boolean,
    signal: AbortSignal | undefined,
    run: () => Promise<SequenceOutcome>,
  ): Promise<SequenceOutcome | null> {
    return this.alone(async () => {
      this.override = ffn ? this.modes.map(() => ffn) : null;
      this.recording = recording;
      try {
        const outcome = await run();
        await this.serving.settled();
        return outcome;
      } finally {
        this.override = null;
        this.recording = false;
      }
    }, signal);
  }

  private serveOn(lanes: LanePool): Serving {
    return new Serving(
      lanes,
      () => ({
        modes: this.override ?? this.modes,
        cuts: this.layout.layers.map(({ cut, cuts }, l) =>
          this.override ? cutIn(this.override[l], this.layout.config.activation, cuts) : cut,
        ),
        gpu: this.gpuOn && !this.recording,
        forget: this.takeLoss(),
      }),
      (error) => this.goOnWithoutGpu(error),
    );
  }

  /** True when the GPU failed and the user left the choice to us: the same sequences go on on the CPU. */
  private goOnWithoutGpu(error: unknown): boolean {
    const failed = error instanceof HybridError && error.code === 'GPU_FAILED';
    if (!failed || this.gpu?.onFailure !== 'cpu' || this.gpuFailure !== '') return false;
    this.gpuFailure = error.message;
    this.keysLost = this.gpu.units.whole >= 0;
    this.salt++;
    return true;
  }

  /** Whether keys and values were lost since the last job began. */
  private takeLoss(): boolean {
    const lost = this.keysLost;
    this.keysLost = false;
    return lost;
  }

  /** Lanes that live, or new ones. @throws HybridError CLOSED */
  private async ready(): Promise<void> {
    const check = (): void => {
      if (this.closed) throw new HybridError('CLOSED', 'the model was closed', { hint: 'Load it again.' });
    };
    check();
    if (this.lanes.dead) {
      this.reviving ??= this.revive().finally(() => (this.reviving = null));
      await this.reviving;
      check();
    }
  }

  private async revive(): Promise<void> {
    const { layout, memories, choice } = this;
    this.lanes = await LanePool.start(layout, memories, choice, this.lanes.timelines !== null);
    this.serving = this.serveOn(this.lanes);
  }

  /** Ends the lanes and closes the pack. Requests under way are aborted, waiting ones fail with CLOSED. */
  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    this.serving.cancelAll();
    await this.turns.drained();
    await this.serving.settled();
    await this.lanes.close();
    this.pack.close();
  }

  private async needNorms(signal?: AbortSignal): Promise<void> {
    if (this.haveNorms || signal?.aborted) return;
    await this.alone(async () => {
      if (this.haveNorms) return;
      await this.lanes.run({ type: 'norms' });
      this.haveNorms = true;
    }, signal);
  }

  // ---- checks and reports ----------------------------------------------------------------------------------

  private checkTokens(tokens: ArrayLike<number>): Int32Array {
    const { vocabSize } = this.layout.config;
    const ids = new Int32Array(tokens.length);
    for (let i = 0; i < ids.length; i++) {
      const id = tokens[i];
      if (!Number.isInteger(id) || id < 0 || id >= vocabSize) {
        throw new UsageError(`token ${i} is ${id}, expected a whole number from 0 to ${vocabSize - 1}`);
      }
      ids[i] = id;
    }
    return ids;
  }

  private checkRecall(): void {
    if (!this.gpuOn || this.gpu!.units.whole < 0) return;
    throw new UsageError(
      'recall is not measured while the whole model is on the GPU',
      'Measure it with --gpu off, or with less --gpu-memory than the model takes.',
    );
  }

  private checkFits(length: number, what: string): void {
    const { contextLength, kvPages } = this.layout;
    const pages = kvPages * KV_PAGE;
    if (length <= Math.min(contextLength, pages)) return;
    if (length > contextLength) {
      throw new HybridError('CONTEXT_FULL', `${what} ${length} tokens, the context holds ${contextLength}`, {
        hint: 'Shorten the text or raise --context (at most what the model was trained for).',
      });
    }
    throw new HybridError('CONTEXT_FULL', `${what} ${length} tokens, the KV cache holds ${pages}`, {
      hint: 'Shorten the text or raise --kv-memory.',
    });
  }

  private get gpuOn(): boolean {
    return this.gpu !== null && this.gpuFailure === '';
  }

  private describeGpu(): RunStats['gpu'] {
    if (!this.gpu) return null;
    const { provider, device, bytes } = this.gpu;
    return { provider, device, bytes, ...(this.gpuFailure ? { failure: this.gpuFailure } : {}) };
  }

  /** Neurons of layer l that the GPU computes now. */
  private gpuNeurons(l: number): number {
    return this.gpuOn ? this.gpu!.units.hotNeurons[l].length : 0;
  }

  private densities(all: Float64Array, measured: boolean, mode?: FfnMode): LayerDensity[] {
    const { layers, config } = this.layout;
    return layers.map((layer, l) =>
      layerDensity(
        all.subarray(l * STATS_PER_LAYER, (l + 1) * STATS_PER_LAYER),
        config.intermediateSize,
        this.gpuNeurons(l),
        (mode ?? layer.mode) === 'predicted',
        measured,
      ),
    );
  }

  private describe(
    promptTokens: number,
    tokens: number[],
    logprobs: TokenLogprob[] | null,
    outcome: SequenceOutcome | null,
    stopReason: StopReason | null,
    request: GenerateRequest,
  ): GenerateResult {
    const account: Partial<SequenceAccount> = outcome?.account ?? {};
    const { promptMs = 0, decodeMs = 0, decodedTokens = 0, cachedTokens = 0 } = account;
    const counted = decodedTokens > 0 ? account.answerCounters : account.promptCounters;
    const layers = counted ? this.densities(counted, request.measureRecall ?? false) : [];
    const positions = promptTokens + tokens.length / 2;
    return {
      tokens,
      logprobs,
      stopReason: stopReason ?? outcome?.stopReason ?? 'abort',
      layers,
      stats: {
        promptTokens,
        cachedPromptTokens: cachedTokens,
        promptTokensPerSecond: promptMs > 0 ? (promptTokens - cachedTokens) / (promptMs / 1000) : 0,
        generatedTokens: tokens.length,
        decodeTokensPerSecond: decodedTokens > 0 ? decodedTokens / (decodeMs / 1000) : 0,
        draftTokens: account.draftTokens ?? 0,
        acceptedTokens: account.acceptedTokens ?? 0,
        ffnMode: this.ffn,
        kernels: this.kernelsName,
        threads: this.threads,
        gpu: this.describeGpu(),
        ...overall(layers),
        bytesPerToken: layers.length > 0 ? bytesPerToken(this.layout, layers, positions).total : 0,
      },
    };
  }
}

const cutsContributions = (cuts: readonly ActivationCut[]): boolean =>
  cuts.some(({ contribution }) => contribution > 0);

function writeInline(memories: WebAssembly.Memory[], items: InlineItem[]): void {
  for (const { arena, ptr, data } of items) {
    new Uint8Array(memories[arena].buffer, ptr, data.byteLength).set(data);
  }
}
