/**
 * The engine: a pack in arenas, lanes that run it, and one request at a time. It knows tokens, not text;
 * HybridModel (api/) adds paths, artifacts and the tokenizer.
 */
import { HybridError, UsageError } from '../errors.js';
import { adviseHugePages, selectKernels, type KernelChoice } from '../kernels/select.js';
import { configForEngine } from '../model/engine-support.js';
import type { Pack } from '../pack/types.js';
import { createArena } from './arena.js';
import { bytesPerToken } from './bytes.js';
import { Word } from './control.js';
import type { FfnMode } from './ffn-plan.js';
import type { GenerateOutcome } from './jobs.js';
import { LanePool } from './lanes.js';
import { planLayout, type InlineItem, type LoadItem, type ModelLayout } from './layout.js';
import { chunksFor, resolveOptions, wholeNumber } from './options.js';
import type {
  EngineGpu,
  EngineOptions,
  GenerateRequest,
  GenerateResult,
  LogitsRequest,
  LogitsResult,
  RunStats,
} from './requests.js';
import { layerDensity, overall, sumStats, type LayerDensity } from './stats.js';
import { chromeTrace, type ChromeTrace } from './timeline.js';

export type * from './requests.js';
export { overall } from './stats.js';

const NOTHING_RAN: GenerateOutcome = { stopReason: 'abort', promptMs: 0, decodeMs: 0, decodeSteps: 0 };

export class Engine {
  /** The mode asked for, `auto` resolved. Layers may differ from it: see layout.layers[l].mode. */
  readonly ffn: FfnMode;
  readonly kernelsName: string;
  private queue: Promise<unknown> = Promise.resolve();
  private closed = false;
  private haveNorms = false;
  /** Why the GPU is no longer used; empty while it is. */
  private gpuFailure = '';

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
    const header = { ...pack.header, config: configForEngine(pack.header.config, pack.path) };
    const { ffn, threads, contextLength, batchTokens, kvFormat } = resolveOptions(header, options);
    const { layout, load, inline } = planLayout(header, {
      contextLength,
      batchTokens,
      laneCount: threads,
      chunkCount: chunksFor(threads),
      kvFormat,
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
    } catch (error) {
      await lanes.close();
      throw error;
    }
    return engine;
  }

  private async readWeights(items: LoadItem[], options: EngineOptions): Promise<void> {
    const total = items.reduce((sum, item) => sum + item.section.bytes, 0);
    let done = 0;
    await this.lanes.run(
      { type: 'load', fd: this.pack.fd, path: this.pack.path, items },
      {
        onProgress: (bytes) => {
          done += bytes;
          options.onProgress?.({ stage: 'load', done, total, unit: 'bytes' });
        },
      },
    );
    options.signal?.throwIfAborted();
  }

  get threads(): number {
    return this.layout.laneCount;
  }

  private get gpuOn(): boolean {
    return this.gpu !== null && this.gpuFailure === '';
  }

  private describeGpu(): RunStats['gpu'] {
    if (!this.gpu) return null;
    const { provider, device, bytes } = this.gpu;
    return { provider, device, bytes, ...(this.gpuFailure ? { failure: this.gpuFailure } : {}) };
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
   * @throws UsageError when a layer is to be `predicted` but was loaded without a predictor
   */
  setModes(modes: readonly FfnMode[]): Promise<void> {
    modes.forEach((mode, l) => {
      if (mode === 'predicted' && !this.layout.layers[l].predictor) {
        throw new UsageError(
          `layer ${l} has no predictor in the loaded plan`,
          'Load with a plan that predicts it.',
        );
      }
    });
    return this.inTurn(async () => modes.forEach((mode, l) => (this.layout.layers[l].mode = mode)));
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
    return this.inTurn(async () => {
      const f32 = new Float32Array(this.memories[layer.arena].buffer);
      predictor.chunks.forEach((part, chunk) => {
        const { scored } = layer.chunks[chunk];
        for (let i = 0; i < scored; i++)
          f32[(part.cut >>> 2) + i] = cut[predictor.scoredRows[part.firstRow + i]];
      });
    });
  }

  /** The worker threads, for tests that kill one. */
  get workerThreads(): LanePool['threads'] {
    return this.lanes.threads;
  }

  /**
   * Generate from prompt tokens. Requests are served in turn, each from an empty KV cache.
   * An aborted request resolves with the tokens so far and stopReason `abort`.
   * @throws HybridError CONTEXT_FULL when the prompt does not fit; what a lane failed with
   */
  generate(request: GenerateRequest): Promise<GenerateResult> {
    const prompt = this.checkTokens(request.prompt);
    const { contextLength } = this.layout;
    if (prompt.length === 0) throw new UsageError('the prompt has no tokens', 'Give at least one token.');
    if (prompt.length > contextLength) {
      throw new HybridError(
        'CONTEXT_FULL',
        `the prompt has ${prompt.length} tokens, the context holds ${contextLength}`,
        { hint: 'Shorten the prompt or raise --context (at most what the model was trained for).' },
      );
    }
    return this.inTurn(() => this.generateNow(prompt, request));
  }

  private async generateNow(prompt: Int32Array, request: GenerateRequest): Promise<GenerateResult> {
    const room = this.layout.contextLength - prompt.length + 1;
    const maxTokens = Math.min(wholeNumber('maxTokens', request.maxTokens, 0, 2 ** 31 - 1), room);
    const tokens: number[] = [];
    if (request.signal?.aborted) return this.describe(prompt.length, tokens, NOTHING_RAN, request);
    if (request.measureRecall) await this.needNorms();
    const outcome = await this.withoutFailedGpu(() => this.runGeneration(prompt, tokens, maxTokens, request));
    return this.describe(prompt.length, tokens, outcome, request);
  }

  /** Run `work` again on the CPU when the GPU fails and the user left the choice to us. */
  private async withoutFailedGpu<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      const failed = error instanceof HybridError && error.code === 'GPU_FAILED';
      if (!failed || this.gpu?.onFailure !== 'cpu') throw error;
      this.gpuFailure = error.message;
      return work();
    }
  }

  /** Generate after `prompt` and the tokens that are there already; appends to `tokens`. */
  private async runGeneration(
    prompt: Int32Array,
    tokens: number[],
    maxTokens: number,
    request: GenerateRequest,
  ): Promise<GenerateOutcome> {
    const { lanes } = this;
    const before = tokens.length;
    const ring = new SharedArrayBuffer(Math.max(1, maxTokens - before) * 4);
    const produced = new Int32Array(ring);
    let stopped = false;
    const takeNew = (): void => {
      const count = Atomics.load(lanes.control, Word.PRODUCED);
      const taken = tokens.length - before;
      if (count === taken || stopped) return;
      const fresh = Array.from(produced.subarray(taken, count));
      tokens.push(...fresh);
      if (request.onTokens?.(fresh)) {
        stopped = true;
        lanes.stop();
      }
    };
    const abort = (): void => lanes.stop();
    request.signal?.addEventListener('abort', abort, { once: true });
    try {
      const outcome = await lanes.run(
        {
          type: 'generate',
          modes: this.modes,
          gpu: this.gpuOn,
          prompt: Int32Array.from([...prompt, ...tokens]),
          ring,
          maxTokens: maxTokens - before,
          sampling: request.sampling,
          stopIds: request.stopIds ?? [],
          measureRecall: request.measureRecall ?? false,
          skipDraws: request.sampling.temperature === 0 ? 0 : before,
        },
        {
          onMail: takeNew,
          onProgress: (done) => request.onPrompt?.(Math.min(done, prompt.length), prompt.length),
        },
      );
      takeNew();
      return { ...outcome!, stopReason: stopped ? 'stop' : outcome!.stopReason };
    } finally {
      takeNew(); // also what was produced before a failure: a second run goes on after it
      request.signal?.removeEventListener('abort', abort);
    }
  }

  /**
   * Logits for every position of `tokens`, in batches over one pass each (teacher forcing).
   * @throws HybridError CONTEXT_FULL when there are more tokens than the context holds
   */
  logits(request: LogitsRequest): Promise<LogitsResult> {
    const tokens = this.checkTokens(request.tokens);
    const { contextLength, config } = this.layout;
    if (tokens.length > contextLength) {
      throw new HybridError(
        'CONTEXT_FULL',
        `${tokens.length} tokens were given, the context holds ${contextLength}`,
        {
          hint: 'Give fewer tokens at once or raise contextLength.',
        },
      );
    }
    return this.inTurn(async () => {
      request.signal?.throwIfAborted();
      if (request.measureRecall) await this.needNorms();
      const n = tokens.length;
      const want = (yes: boolean | undefined, width: number): SharedArrayBuffer | null =>
        yes ? new SharedArrayBuffer(Math.max(1, n * width) * 4) : null;
      const output = want(request.logits ?? true, config.vocabSize);
      const inputs = want(request.trace?.inputs, config.layers * config.hiddenSize);
      const gates = want(request.trace?.gates, config.layers * config.intermediateSize);
      const activations = want(request.trace?.activations, config.layers * config.intermediateSize);
      const trace = request.trace ? { tokens: n, inputs, gates, activations } : null;
      if (n > 0) {
        await this.withoutFailedGpu(() =>
          this.lanes.run(
            {
              type: 'logits',
              modes: this.modes,
              gpu: this.gpuOn && !request.trace, // recordings want every neuron's activity
              tokens,
              output,
              applyPredictor: request.applyPredictor ?? true,
              measureRecall: request.measureRecall ?? false,
              trace,
            },
            { onProgress: request.onProgress },
          ),
        );
      }
      const view = (buffer: SharedArrayBuffer | null): Float32Array | null =>
        buffer && new Float32Array(buffer);
      return {
        logits: output ? new Float32Array(output, 0, n * config.vocabSize) : new Float32Array(0),
        layers: this.densities(this.lanes.prefillStats, true, request.measureRecall ?? false),
        inputs: view(inputs),
        gates: view(gates),
        activations: view(activations),
      };
    });
  }

  /** Ends the lanes and closes the pack. Requests under way are aborted. */
  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    this.lanes.stop();
    await this.queue.catch(() => {});
    await this.lanes.close();
    this.pack.close();
  }

  /** One request after the other; a failed one does not disturb the next. */
  private inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.queue.then(async () => {
      if (this.closed) throw new HybridError('CLOSED', 'the model was closed', { hint: 'Load it again.' });
      if (this.lanes.dead) {
        const { layout, memories, choice, lanes } = this;
        this.lanes = await LanePool.start(layout, memories, choice, lanes.timelines !== null);
      }
      return work();
    });
    this.queue = turn.catch(() => {});
    return turn;
  }

  private async needNorms(): Promise<void> {
    if (this.haveNorms) return;
    await this.lanes.run({ type: 'norms' });
    this.haveNorms = true;
  }

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

  /** Neurons of layer l that the GPU computes now. */
  private gpuNeurons(l: number): number {
    return this.gpuOn ? this.gpu!.units.hotNeurons[l].length : 0;
  }

  private densities(buffer: SharedArrayBuffer, predictorUsed: boolean, measured: boolean): LayerDensity[] {
    const { layers, laneCount, config } = this.layout;
    return sumStats(buffer, layers.length, laneCount).map((sum, l) =>
      layerDensity(
        sum,
        config.intermediateSize,
        this.gpuNeurons(l),
        predictorUsed && layers[l].mode === 'predicted',
        measured,
      ),
    );
  }

  private describe(
    promptTokens: number,
    tokens: number[],
    outcome: GenerateOutcome,
    request: GenerateRequest,
  ): GenerateResult {
    const { stopReason, promptMs, decodeMs, decodeSteps: steps } = outcome;
    const decoded = steps > 0;
    const layers = this.densities(
      decoded ? this.lanes.decodeStats : this.lanes.prefillStats,
      decoded,
      request.measureRecall ?? false,
    );
    return {
      tokens,
      stopReason,
      layers,
      stats: {
        promptTokens,
        promptTokensPerSecond: promptMs > 0 ? promptTokens / (promptMs / 1000) : 0,
        generatedTokens: tokens.length,
        decodeTokensPerSecond: decoded ? steps / (decodeMs / 1000) : 0,
        ffnMode: this.ffn,
        kernels: this.kernelsName,
        threads: this.threads,
        gpu: this.describeGpu(),
        ...overall(layers),
        bytesPerToken: bytesPerToken(this.layout, layers, promptTokens + steps / 2).total,
      },
    };
  }
}

function writeInline(memories: WebAssembly.Memory[], items: InlineItem[]): void {
  for (const { arena, ptr, data } of items) {
    new Uint8Array(memories[arena].buffer, ptr, data.byteLength).set(data);
  }
}
