/**
 * Whole-model speed: every configuration processes the same prompt and generates the same number of tokens,
 * in turns, with the memory bandwidth sampled in between.
 */
import type { HybridModel } from '../api/hybrid-model.js';
import type { RunStats } from '../engine/engine.js';
import type { FfnMode } from '../engine/ffn-plan.js';
import { UsageError } from '../errors.js';
import type { WeightFormat } from '../kernels/layout.js';
import { selectKernels } from '../kernels/select.js';
import { BandwidthProbe, CACHED_BYTES, MOST_OF_FLOOR } from './bandwidth.js';
import { availableMemory, describeMachine, type Machine } from './machine.js';
import { alternate, deviation, median, pairedRatio, type Contestant } from '../evaluate/paired.js';

export interface BenchConfiguration {
  /** Of the model, in the table. @default its own */
  name?: string;
  load: (contextLength: number) => Promise<HybridModel>;
}

export interface ModelBenchOptions {
  configurations: readonly BenchConfiguration[];
  /** The longest context of the model. */
  maxContext: number;
  /** Tokens of the prompt. @default 128, or half the model's context */
  promptTokens?: number;
  /** Tokens to generate. @default 64, or a quarter of the model's context */
  generateTokens?: number;
  /** Measured turns of each configuration. */
  rounds: number;
  /** Text the prompt is cut from. @default PASSAGE */
  text?: string;
  signal?: AbortSignal;
  onProgress?: (done: number, total: number) => void;
  /** Told when configurations do not fit in memory together and are loaded anew for every turn. */
  onReload?: () => void;
}

export interface BenchRow {
  model: string;
  /** Bytes of the weights in memory. */
  size: number;
  quant: WeightFormat;
  kernels: string;
  threads: number;
  ffnMode: FfnMode;
  gpu: { provider: string; device: string; bytes: number } | null;
  /** `pp128`: a prompt of 128 tokens; `tg64`: 64 generated tokens after it. */
  test: string;
  /** Median of `samples`. */
  tokensPerSecond: number;
  deviation: number;
  samples: number[];
  /** Weights, predictor and cache read for one generated token; null for prompts, where tokens share a read. */
  bytesPerToken: number | null;
  /** Null too with a GPU, which reads memory of its own. */
  achievedGBps: number | null;
  /** Speed as a share of what the memory bandwidth allows for these bytes. Above 1 for what caches hold. */
  shareOfFloor: number | null;
  /** More than the floor allows, though no cache holds the model: the bandwidth or the speed was measured wrongly. */
  aboveFloor: boolean;
  sparsity: number;
  predictedSparsity: number | null;
  /** Median over rounds of this speed divided by the first configuration's in the same round. */
  ratioToFirst: number;
}

export interface ModelBench {
  machine: Machine;
  rows: BenchRow[];
}

const DEFAULT_PROMPT = 128;
const DEFAULT_GENERATE = 64;
/** Of the memory that is free, what configurations kept loaded side by side may take. */
const MEMORY_SHARE = 0.7;
/** Real sampling, the same draw for everybody: greedy text of small models runs in circles. */
const SAMPLING = { temperature: 0.8, seed: 1 };

/** A prompt for models that know English; its words do not matter, only that it is text. */
const PASSAGE = `The miller had a mule that carried flour to the market every morning and came home with
salt, nails and news. One winter the river froze and the wheel stood still. The miller counted his sacks,
looked at the sky, and told the mule that they would have to find another trade until spring. So they went
from village to village: the miller mended what was broken, and the mule carried what was heavy. `;

/** @throws UsageError when the context is too short; what loading and running throw */
export async function benchModel(options: ModelBenchOptions): Promise<ModelBench> {
  const lengths = chooseLengths(options);
  const entrants = options.configurations.map((c) => new Entrant(c, lengths, options));
  let probe: BandwidthProbe | null = null;
  try {
    const resident = await loadAll(entrants);
    if (!resident) options.onReload?.();
    probe = await BandwidthProbe.start(Math.max(...entrants.map((e) => e.threads)), selectKernels('auto'));
    const turns = await runAll(entrants, probe, resident, options);
    const bandwidth = median(probe.samples);
    const rows = entrants.flatMap((entrant, i) => toRows(entrant, turns[i], turns[0], lengths, bandwidth));
    return { machine: describeMachine(bandwidth), rows };
  } finally {
    await probe?.close();
    for (const entrant of entrants) await entrant.close();
  }
}

interface Lengths {
  prompt: number;
  generate: number;
}

function chooseLengths(options: ModelBenchOptions): Lengths {
  const { maxContext } = options;
  const prompt = options.promptTokens ?? Math.min(DEFAULT_PROMPT, Math.ceil(maxContext / 2));
  const generate = options.generateTokens ?? Math.min(DEFAULT_GENERATE, Math.floor(maxContext / 4));
  if (prompt + generate <= maxContext) return { prompt, generate };
  throw new UsageError(
    `a prompt of ${prompt} tokens and ${generate} generated ones need a context of ${prompt + generate}, the model has ${maxContext}`,
    'Lower --prompt-tokens or --generate-tokens.',
  );
}

// ---- running ---------------------------------------------------------------------------------------------

/** One configuration: loaded, or to be loaded for its turn. */
class Entrant {
  name = '';
  size = 0;
  quant: WeightFormat = 'q8';
  kernels = '';
  threads = 0;
  private model: HybridModel | null = null;

  constructor(
    private readonly configuration: BenchConfiguration,
    private readonly lengths: Lengths,
    private readonly options: ModelBenchOptions,
  ) {}

  async open(): Promise<void> {
    if (this.model) return;
    this.options.signal?.throwIfAborted();
    const model = await this.configuration.load(this.lengths.prompt + this.lengths.generate);
    this.model = model;
    this.name = this.configuration.name ?? model.name;
    this.size = model.engine.layout.bytes.weights;
    this.quant = model.engine.pack.header.quant;
    this.kernels = model.engine.kernelsName;
    this.threads = model.engine.threads;
  }

  async turn(): Promise<RunStats> {
    await this.open();
    const model = this.model!;
    const { signal, text } = this.options;
    const prompt = repeatTo(this.lengths.prompt, model.tokenizer.encode(text ?? PASSAGE));
    const result = await model.generate(prompt, {
      ...SAMPLING,
      maxTokens: this.lengths.generate,
      ignoreEos: true,
      cachePrompt: false, // every turn computes its prompt
      signal,
    });
    signal?.throwIfAborted();
    return result.stats;
  }

  async close(): Promise<void> {
    const { model } = this;
    this.model = null;
    await model?.close();
  }
}

/**
 * Loads everything once: mistakes show before anything is measured.
 * @returns whether the configurations may all stay loaded
 */
async function loadAll(entrants: Entrant[]): Promise<boolean> {
  let resident = true;
  for (const [index, entrant] of entrants.entries()) {
    const free = availableMemory();
    await entrant.open();
    const toCome = entrants.length - index;
    if (entrant.size * toCome > MEMORY_SHARE * free && entrants.length > 1) resident = false;
    if (!resident) await Promise.all(entrants.map((e) => e.close()));
  }
  return resident;
}

async function runAll(
  entrants: Entrant[],
  probe: BandwidthProbe,
  resident: boolean,
  options: ModelBenchOptions,
): Promise<RunStats[][]> {
  const total = (options.rounds + 1) * entrants.length;
  let done = 0;
  const contestants = entrants.map((entrant): Contestant<RunStats> => ({
    run: async () => {
      const stats = await entrant.turn();
      if (!resident) await entrant.close();
      options.onProgress?.(++done, total);
      return stats;
    },
  }));
  const onRound = async (): Promise<void> => void (await probe.sample());
  return alternate(contestants, { rounds: options.rounds, signal: options.signal, onRound });
}

function repeatTo(length: number, tokens: readonly number[]): number[] {
  if (tokens.length === 0)
    throw new UsageError('the text for the prompt has no tokens', 'Give another --text.');
  return Array.from({ length }, (_, i) => tokens[i % tokens.length]);
}

// ---- the table -------------------------------------------------------------------------------------------

function toRows(
  entrant: Entrant,
  turns: RunStats[],
  first: RunStats[],
  lengths: Lengths,
  bandwidthGBps: number,
): BenchRow[] {
  const last = turns[turns.length - 1];
  const row = (test: string, speed: (stats: RunStats) => number, bytesPerToken: number | null): BenchRow => {
    const samples = turns.map(speed);
    const tokensPerSecond = median(samples);
    // What a GPU reads comes from its own memory: the CPU's is no floor for it.
    const achievedGBps = bytesPerToken === null || last.gpu ? null : (bytesPerToken * tokensPerSecond) / 1e9;
    const shareOfFloor = achievedGBps === null ? null : achievedGBps / bandwidthGBps;
    return {
      model: entrant.name,
      size: entrant.size,
      quant: entrant.quant,
      kernels: entrant.kernels,
      threads: entrant.threads,
      ffnMode: last.ffnMode,
      gpu: last.gpu,
      test,
      tokensPerSecond,
      deviation: deviation(samples),
      samples,
      bytesPerToken,
      achievedGBps,
      shareOfFloor,
      aboveFloor: (shareOfFloor ?? 0) > MOST_OF_FLOOR && (bytesPerToken ?? 0) > CACHED_BYTES,
      sparsity: last.sparsity,
      predictedSparsity: last.predictedSparsity,
      ratioToFirst: pairedRatio(samples, first.map(speed)),
    };
  };
  const rows = [row(`pp${lengths.prompt}`, (s) => s.promptTokensPerSecond, null)];
  // One generated token comes from the prompt's own pass: there is no decode step to time.
  if (lengths.generate > 1) {
    rows.push(row(`tg${lengths.generate}`, (s) => s.decodeTokensPerSecond, last.bytesPerToken));
  }
  return rows;
}
