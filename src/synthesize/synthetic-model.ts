/**
 * A model of a published shape with random weights and chosen densities, as a WeightSource: `convert` and
 * the exports take it like any other model, and nothing is ever held whole.
 *
 * Every 16th coordinate of the residual stream carries a constant (the embedding's; attention and FFN leave
 * it alone), the others carry random content that every layer adds a little to:
 *
 *     h_j = +-KAPPA for j in J;   h_j ~ N(0, V_l) else;   FFN norm:  x_j = +-1 in J,  x_j ~ N(0, 1) else
 *
 * The constant is the bias that real networks learn in a few large coordinates: gate row i has tau-dependent
 * weights there, so that neuron i fires with its own frequency (densities.ts). Elsewhere
 *
 *     gate row i = sqrt(rho / K) * (sum of K = 4 signed rows of B) + sqrt(1 - rho) * noise
 *
 * and the predictor is fc1 = B, fc2 row i = its K signs / sqrt(K): its score is exactly the low-rank part.
 */
import { createHash } from 'node:crypto';
import { UsageError } from '../errors.js';
import type { LayerTensor, ModelConfig, TensorName, TokenizerFiles, WeightSource } from '../model/types.js';
import { expectedTensors } from '../model/tensor-names.js';
import { meanSquareActivation, planDensities, tauAt, type DensityPlan } from './densities.js';
import { fillNormal, mix, uniform } from './normal.js';
import { SHAPES } from './shapes.js';
import { syntheticTokenizer } from './tokenizer.js';

export interface SyntheticOptions {
  /** A name in SHAPES. */
  shape: string;
  /** True sparsity of x1. @default as published */
  sparsity?: number;
  /** @default as published */
  predictedSparsity?: number;
  /** Activation recall of the predictor. @default as published */
  recall?: number;
  /** Hidden units of the predictor. @default by shape */
  rank?: number;
  /** Spread of neuron frequencies (densities.ts). @default 1 */
  skew?: number;
  /** Fewer layers than the shape has, for quick tests. */
  layers?: number;
  /** @default 1 */
  seed?: number;
}

const CONSTANT_EVERY = 16;
/** A fifth of the stream's energy: enough for a bias, and tokens still differ. */
const KAPPA = 2;
/** Signed rows of B in a gate row. B times a random x is normal already; more terms only cost time. */
const TERMS = 4;
/** Variance that all FFNs, and all attentions, add to the random part of the stream (1 at the embedding). */
const FFN_GROWTH = 1;
const ATTENTION_GROWTH = 0.1;

export class SyntheticModel implements WeightSource {
  readonly name: string;
  readonly path = '(synthetic)';
  readonly kind = 'safetensors' as const;
  readonly config: ModelConfig;
  readonly tokenizer: TokenizerFiles;
  readonly tensors: WeightSource['tensors'];
  readonly warnings: string[] = [];
  readonly plan: DensityPlan;
  readonly rank: number;
  /** True sparsity of x1. */
  readonly sparsity: number;
  /** What the weights follow from, besides the config. */
  private readonly recipe: Readonly<Record<string, number | string>>;
  readonly seed: number;
  /** [d]: what every FFN input holds in the constant coordinates, +1 or -1; 0 elsewhere. */
  readonly constants: Float32Array;
  private readonly shapes: Map<TensorName, number[]>;
  /** B of the layer that was asked for last: [rank][d] */
  private lowRank: { layer: number; rows: Float32Array } | null = null;
  /** tau of every neuron, by layer asked for last. */
  private taus: { layer: number; values: Float32Array } | null = null;
  private readonly downScale: number;

  constructor(options: SyntheticOptions) {
    const shape = Object.hasOwn(SHAPES, options.shape) ? SHAPES[options.shape] : undefined;
    if (!shape) {
      throw new UsageError(`unknown shape ${options.shape}`, `Shapes: ${Object.keys(SHAPES).join(', ')}`);
    }
    const { config } = shape;
    this.name = `synthetic-${options.shape}`;
    this.config = { ...config, layers: options.layers ?? config.layers };
    this.tokenizer = syntheticTokenizer(config.vocabSize);
    this.seed = options.seed ?? 1;
    this.constants = Float32Array.from({ length: config.hiddenSize }, (_, j) =>
      j % CONSTANT_EVERY !== 0 ? 0 : mix(this.seed, 33, j) & 1 ? 1 : -1,
    );
    this.rank = options.rank ?? shape.rank;
    this.sparsity = options.sparsity ?? shape.sparsity;
    const { sparsity } = this;
    const target = {
      // dReLU: up passes half of what the gate lets through.
      gateSparsity: config.activation.kind === 'drelu' ? 1 - 2 * (1 - sparsity) : sparsity,
      predictedSparsity: options.predictedSparsity ?? shape.predictedSparsity,
      recall: options.recall ?? shape.recall,
      skew: options.skew ?? 1,
    };
    this.plan = planDensities(target);
    this.recipe = { shape: options.shape, ...target, rank: this.rank, seed: this.seed };
    this.shapes = new Map(expectedTensors(this.config));
    this.tensors = new Map(
      [...this.shapes].map(([name, dims]) => [
        name,
        { dtype: 'synthetic', shape: dims, bytes: 4 * dims.reduce((a, b) => a * b, 1) },
      ]),
    );
    this.downScale = this.findDownScale();
  }

  async readRows(name: TensorName, begin: number, end: number, into?: Float32Array): Promise<Float32Array> {
    const shape = this.shapes.get(name);
    if (!shape) throw new UsageError(`a synthetic model has no tensor ${name}`);
    const cols = shape[shape.length - 1];
    const out = into ?? new Float32Array((end - begin) * cols);
    for (let row = begin; row < end; row++) {
      this.fillRow(name, row, out.subarray((row - begin) * cols, (row - begin + 1) * cols));
    }
    return out;
  }

  async fingerprint(): Promise<string> {
    const what = ['synthetic 1', this.recipe, this.config];
    return createHash('sha256').update(JSON.stringify(what)).digest('hex');
  }

  async close(): Promise<void> {}

  // ---- the predictor that belongs to the weights -------------------------------------------------------

  /** [rank, d]: rows of B, zero in J. */
  fc1(layer: number): Float32Array {
    return this.lowRankOf(layer);
  }

  /** [nFf, rank] row i: K signs / sqrt(K). */
  fc2Row(layer: number, neuron: number, out: Float32Array): void {
    out.fill(0);
    for (const [k, sign] of this.terms(layer, neuron)) out[k] += sign / Math.sqrt(TERMS);
  }

  /** tau of every neuron: [nFf]; its frequency is upperTail(tau). */
  tau(layer: number): Float32Array {
    if (this.taus?.layer === layer) return this.taus.values;
    const n = this.config.intermediateSize;
    const values = Float32Array.from({ length: n }, (_, i) => tauAt(this.plan, (i + 0.5) / n));
    // Hot neurons lie anywhere, as in a trained model: whoever wants them together has to sort them.
    const next = uniform(mix(this.seed, layer, 77));
    for (let i = n - 1; i > 0; i--) {
      const j = Math.floor(next() * (i + 1));
      [values[i], values[j]] = [values[j], values[i]];
    }
    this.taus = { layer, values };
    return values;
  }

  // ---- rows --------------------------------------------------------------------------------------------

  private fillRow(name: TensorName, row: number, out: Float32Array): void {
    const { embeddingScale, residualScale, heads, headDim, hiddenSize: d } = this.config;
    const content = 1 / Math.sqrt(d - d / CONSTANT_EVERY);
    const seed = this.seedOf(name, row);
    if (name === 'embed') {
      fillNormal(out, seed, 1 / embeddingScale);
      this.eachConstant((j, sign) => (out[j] = (sign * KAPPA) / embeddingScale));
      return;
    }
    if (name === 'lmHead') return this.fillContent(out, seed, content);
    if (name === 'outNorm') {
      // Random signs: with a tied embedding, a token would otherwise always predict itself.
      const next = uniform(seed);
      for (let j = 0; j < out.length; j++) out[j] = next() < 0.5 ? -1 : 1;
      return;
    }
    const [, layerText, role] = name.split('.') as [string, string, LayerTensor];
    const layer = Number(layerText);
    switch (role) {
      case 'attnNorm':
        out.fill(1);
        return;
      case 'ffnNorm':
        return this.fillFfnNorm(layer, out);
      case 'q':
      case 'k':
      case 'v':
      case 'up':
        return this.fillContent(out, seed, content);
      case 'gate':
        return this.fillGate(layer, row, out, seed, content);
      case 'o':
        if (row % CONSTANT_EVERY === 0) return void out.fill(0);
        return fillNormal(out, seed, Math.sqrt(this.attentionGrowth() / (heads * headDim)) / residualScale);
      case 'down':
        if (row % CONSTANT_EVERY === 0) return void out.fill(0);
        return fillNormal(out, seed, this.downScale);
      default:
        out.fill(0);
    }
  }

  /** Random weights that do not see the constant coordinates. */
  private fillContent(out: Float32Array, seed: number, scale: number): void {
    fillNormal(out, seed, scale);
    for (let j = 0; j < out.length; j += CONSTANT_EVERY) out[j] = 0;
  }

  private fillGate(layer: number, neuron: number, out: Float32Array, seed: number, content: number): void {
    const { rho } = this.plan;
    const B = this.lowRankOf(layer);
    const d = out.length;
    fillNormal(out, seed, content * Math.sqrt(1 - rho));
    const scale = Math.sqrt(rho / TERMS);
    addFourRows(
      out,
      B,
      [...this.terms(layer, neuron)].map(([k, sign]) => [k * d, sign * scale]),
    );
    // The constants' weights keep their random part, less its mean: equal small weights would all be rounded
    // the same way by the quantiser, and the neuron's frequency with them.
    let mean = 0;
    this.eachConstant((j, sign) => (mean += sign * out[j]));
    const bias = this.config.activation.threshold - this.tau(layer)[neuron];
    const shift = (bias - mean) / Math.ceil(d / CONSTANT_EVERY);
    this.eachConstant((j, sign) => (out[j] += sign * shift));
  }

  /** Brings the content to N(0, 1) and the constants to +-1, whatever the layers before have added. */
  private fillFfnNorm(layer: number, out: Float32Array): void {
    const d = this.config.hiddenSize;
    const variance = this.varianceBeforeFfn(layer);
    const constants = Math.ceil(d / CONSTANT_EVERY);
    const rms = Math.sqrt((constants * KAPPA * KAPPA + (d - constants) * variance) / d);
    out.fill(rms / Math.sqrt(variance));
    this.eachConstant((j) => (out[j] = rms / KAPPA));
  }

  /** Of the stream's content, where layer's FFN reads it; attention counts half: it averages over tokens. */
  private varianceBeforeFfn(layer: number): number {
    return 1 + (layer * FFN_GROWTH) / this.config.layers + (layer + 1) * 0.5 * this.attentionGrowth();
  }

  private attentionGrowth = (): number => ATTENTION_GROWTH / this.config.layers;

  /** Weights of down that make each FFN add its share: sum over neurons of E[a^2] E[u^2] scale^2. */
  private findDownScale(): number {
    const { intermediateSize, layers, activation, residualScale } = this.config;
    const up = activation.kind === 'drelu' ? 0.5 : 1;
    const energy = intermediateSize * up * meanSquareActivation(this.plan, activation.threshold);
    return Math.sqrt(FFN_GROWTH / layers / energy) / residualScale;
  }

  private lowRankOf(layer: number): Float32Array {
    if (this.lowRank?.layer === layer) return this.lowRank.rows;
    const d = this.config.hiddenSize;
    const rows = new Float32Array(this.rank * d);
    for (let k = 0; k < this.rank; k++) {
      const row = rows.subarray(k * d, (k + 1) * d);
      this.fillContent(row, mix(this.seed, layer, 99, k), 1 / Math.sqrt(d - d / CONSTANT_EVERY));
    }
    this.lowRank = { layer, rows };
    return rows;
  }

  /** The K (row of B, sign) pairs of a neuron. */
  private *terms(layer: number, neuron: number): Generator<[number, 1 | -1]> {
    let state = mix(this.seed, layer, 55, neuron);
    // Different rows: a repeated one would carry the weight of two.
    const step = this.rank / TERMS;
    for (let k = 0; k < TERMS; k++) {
      state = mix(state, k);
      yield [Math.floor((k + (state >>> 1) / 2 ** 31) * step), state & 1 ? 1 : -1];
    }
  }

  private eachConstant(visit: (j: number, sign: number) => void): void {
    for (let j = 0; j < this.constants.length; j += CONSTANT_EVERY) visit(j, this.constants[j]);
  }

  private seedOf(name: TensorName, row: number): number {
    let hash = 0;
    for (let i = 0; i < name.length; i++) hash = (Math.imul(hash, 31) + name.charCodeAt(i)) | 0;
    return mix(this.seed, hash, row);
  }
}

/** out += the sum of TERMS = 4 scaled rows of B; [offset, factor] each. In one loop: a quarter of the stores. */
function addFourRows(out: Float32Array, B: Float32Array, terms: number[][]): void {
  const [[o0, f0], [o1, f1], [o2, f2], [o3, f3]] = terms;
  for (let j = 0; j < out.length; j++) {
    out[j] += f0 * B[o0 + j] + f1 * B[o1 + j] + f2 * B[o2 + j] + f3 * B[o3 + j];
  }
}
