/**
 * One training: weights and AdamW's moments in shared memory, gradients by the lanes, the update here.
 *
 *     weights | m | v     flat f32 arrays over all parameters (moments: over the trained ones)
 *     lane i:  its share of a step's parts -> gradient sums i
 *     update:  sums 0..n-1 -> clipped mean -> new weights and moments
 *
 * The same numbers come out whatever the timing; another number of lanes adds in another order.
 */
import { RuntimeFault } from '../errors.js';
import type { ModelConfig } from '../model/types.js';
import { adamWGraph, adamWScalars, type AdamWOptions } from '../onnx/adamw.js';
import { f32Tensor, OnnxSession, type TensorValue } from '../onnx/session.js';
import { measuringGraph, trainingGraph } from './graphs.js';
import { Lanes, type StepMetrics, type Tokens } from './lanes.js';
import type { Activation, Batch } from './model-graph.js';
import { elementsOf, type Parameter } from './parameters.js';

export interface TrainerOptions {
  config: ModelConfig;
  parameters: readonly Parameter[];
  activation: Activation;
  /** What one run of a lane trains on. */
  batch: Batch;
  /** What one run of a lane measures. @default the same */
  measured?: Batch;
  l1: boolean;
  distill: number;
  optimizer: AdamWOptions;
  lanes: number;
  threadsPerLane: number;
}

/** What a step was: means over its parts. */
export interface StepResult extends StepMetrics {
  loss: number;
  gradNorm: number;
}

export interface Measurement {
  scored: number;
  perplexity: number;
  /** Mean over layers. */
  sparsity: number;
  layers: number[];
}

const sharedFloats = (elements: number): Float32Array<SharedArrayBuffer> =>
  new Float32Array(new SharedArrayBuffer(4 * elements));

export class Trainer {
  step = 0;
  /** AdamW's moments of the trained parameters, one after the other. */
  readonly m: Float32Array<ArrayBuffer>;
  readonly v: Float32Array<ArrayBuffer>;
  private readonly trained: readonly Parameter[];
  private readonly sums: Float32Array<SharedArrayBuffer>[];
  private updater: OnnxSession | null = null;

  private constructor(
    private readonly options: TrainerOptions,
    /** All parameters, flat. Changed by `train` and by whoever restores a checkpoint. */
    readonly weights: Float32Array<SharedArrayBuffer>,
    private readonly lanes: Lanes,
    sums: Float32Array<SharedArrayBuffer>[],
  ) {
    this.trained = options.parameters.filter((p) => p.trained);
    this.sums = sums;
    const size = elementsOf(this.trained);
    this.m = new Float32Array(size);
    this.v = new Float32Array(size);
  }

  /**
   * @param start the weights, flat; copied
   * @param teacher weights of the model to learn from, where distilled
   */
  static start(options: TrainerOptions, start: Float32Array, teacher: Float32Array | null = null): Trainer {
    const { parameters } = options;
    const weights = sharedFloats(start.length);
    weights.set(start);
    const size = elementsOf(parameters.filter((p) => p.trained));
    const sums = Array.from({ length: options.lanes }, () => sharedFloats(size));
    const teacherBuffer = teacher && sharedFloats(teacher.length);
    teacherBuffer?.set(teacher!);
    const { model: training } = trainingGraph(options);
    const { model: measuring } = measuringGraph({ ...options, batch: options.measured ?? options.batch });
    const lanes = Lanes.start(
      sums.map((sum) => ({
        parameters,
        training,
        measuring,
        weights: weights.buffer,
        teacher: teacherBuffer?.buffer ?? null,
        sums: sum.buffer,
        threads: options.threadsPerLane,
      })),
    );
    return new Trainer(options, weights, lanes, sums);
  }

  /**
   * One step of AdamW on the mean gradient of the parts.
   * @throws RuntimeFault NUMERIC when loss or gradient is no number; weights and moments are as before the step
   */
  async train(parts: readonly Tokens[], learningRate: number, lambda: number): Promise<StepResult> {
    const metrics = await this.lanes.train(parts, lambda);
    const mean = (name: keyof StepMetrics): number =>
      metrics.reduce((sum, m) => sum + m[name], 0) / metrics.length;
    const [ce, l1, kl, active] = [mean('ce'), mean('l1'), mean('kl'), mean('active')];
    const { distill } = this.options;
    const loss = (1 - distill) * ce + distill * kl + lambda * l1;
    const step = this.step + 1;
    if (!Number.isFinite(loss)) throw notANumber(step, 'the loss', loss);
    const gradNorm = await this.update(step, parts.length, learningRate);
    this.step = step;
    return { ce, l1, kl, active, loss, gradNorm };
  }

  /** @param parts windows with a 1 where a position is scored */
  async measure(parts: readonly (Tokens & { scored: Float32Array })[], threshold = 0): Promise<Measurement> {
    const measured = await this.lanes.measure(parts, threshold);
    const scored = parts.reduce((sum, part) => sum + part.scored.reduce((a, b) => a + b, 0), 0);
    const nll = measured.reduce((sum, part) => sum + part.nll, 0);
    const positions = parts.reduce((sum, part) => sum + part.ids.length, 0);
    const neurons = positions * this.options.config.intermediateSize;
    const layers = measured[0].zeros.map(
      (_, l) => measured.reduce((sum, part) => sum + part.zeros[l], 0) / neurons,
    );
    const sparsity = layers.reduce((a, b) => a + b, 0) / layers.length;
    return { scored, perplexity: Math.exp(nll / scored), sparsity, layers };
  }

  /** Mean gradient of the last step's parts, before clipping, of one trained parameter. */
  gradient(name: string, parts: number): Float32Array {
    const out = new Float32Array(this.trained.find((p) => p.name === name)!.size);
    this.eachTrained((p, at) => {
      if (p.name !== name) return;
      for (const sum of this.sums) for (let i = 0; i < p.size; i++) out[i] += sum[at + i] / parts;
    });
    return out;
  }

  /** To be called after changing weights that are not trained. */
  weightsChanged(): void {
    this.lanes.reload = true;
  }

  async end(): Promise<void> {
    await this.lanes.end();
    await this.updater?.release();
  }

  private async update(step: number, parts: number, learningRate: number): Promise<number> {
    const { optimizer, lanes, threadsPerLane } = this.options;
    this.updater ??= await OnnxSession.create(adamWGraph(this.trained, lanes, optimizer), {
      threads: lanes * threadsPerLane,
    });
    const { rate, stepSize, rootCorrection } = adamWScalars(optimizer, step, learningRate);
    const scalars = { rate, stepSize, rootCorrection, share: 1 / parts };
    const feeds: Record<string, TensorValue> = Object.fromEntries(
      Object.entries(scalars).map(([name, value]) => [name, f32Tensor(Float32Array.of(value), [])]),
    );
    this.eachTrained(({ name, shape, begin, size }, at) => {
      const part = (of: Float32Array, from: number): TensorValue =>
        f32Tensor(of.subarray(from, from + size), shape);
      feeds[name] = part(this.weights, begin);
      feeds[`m:${name}`] = part(this.m, at);
      feeds[`v:${name}`] = part(this.v, at);
      this.sums.forEach((sum, i) => (feeds[`g${i}:${name}`] = part(sum, at)));
    });
    const result = await this.updater.run(feeds);
    const norm = Number(result.norm.data[0]);
    if (!Number.isFinite(norm)) throw notANumber(step, 'the gradient', norm);
    this.eachTrained(({ name, begin }, at) => {
      this.weights.set(result[`new:${name}`].data as Float32Array, begin);
      this.m.set(result[`new_m:${name}`].data as Float32Array, at);
      this.v.set(result[`new_v:${name}`].data as Float32Array, at);
    });
    return norm;
  }

  /** @param visit gets a trained parameter and where it begins among the trained ones */
  private eachTrained(visit: (p: Parameter, at: number) => void): void {
    let at = 0;
    for (const p of this.trained) {
      visit(p, at);
      at += p.size;
    }
  }
}

const notANumber = (step: number, what: string, value: number): RuntimeFault =>
  new RuntimeFault('NUMERIC', `step ${step}: ${what} is ${value}`, {
    hint: 'Lower --lr or the lambdas; the last checkpoint is kept.',
  });
