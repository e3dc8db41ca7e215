/**
 * Training: the low-rank start (or, for comparison, a random one) is bent towards the question that matters,
 * whether a neuron fires, by class-weighted binary cross-entropy on the recorded samples. Held-out samples
 * decide after every epoch whether it became better, and the best state is kept: the start counts too.
 */
import { bf16ToNumber, GROUP, groupCount } from '../kernels/layout.js';
import { f32Tensor, OnnxSession, type TensorValue } from '../onnx/session.js';
import type { Factors } from './lowrank.js';
import { q4Scales, toQ4 } from './rows.js';
import type { Matrices } from './matrix.js';
import type { Network } from './scorer.js';
import { eachActive, spreadInputs, type SampleRange, type Samples } from './samples.js';
import {
  adamRate,
  parameterDims,
  parametersOf,
  trainingGraph,
  WEIGHT_UNIT,
  type Parameter,
  type TrainShape,
} from './train-graph.js';

export interface TrainOptions {
  epochs: number;
  /** Epochs without improvement after which training ends. */
  patience: number;
  seed: number;
  provider: string;
  /** Called between calls of the graph; throws to end the work. */
  check?: () => void;
}

/** A network in full precision, and its per-neuron cuts. */
export interface TrainState {
  w1: Float32Array; // [R, d]
  b1: Float32Array | null; // [R]
  w2: Float32Array; // [nFf, R]
  cut: Float32Array; // [nFf]
  cutScale: Float32Array; // [nFf]
  /** q4 scales (bf16 bits) of both matrices, chosen at the start and kept. */
  scales: { w1: Uint16Array; w2: Uint16Array };
}

/** Samples per optimiser step, and steps per call of the graph. */
const BATCH = 128;
const STEPS = 16;
/** Adam's first rate, relative to the size of what it changes; it falls to a hundredth along a cosine. */
const RATE = 0.003;
/**
 * Weight of an active neuron against an inactive one: recall 0.99 is decided where about one candidate in
 * ten is active, and the loss should be most curved there.
 */
const ACTIVE_WEIGHT = 8;
/** Half of an active neuron's weight is fixed, half grows with its share of the layer's output. */
const FIXED_SHARE = 0.5;
/** A margin of one standard error as a logit: the normal distribution is close to this logistic one. */
const LOGIT_PER_ERROR = 1.7;

/** A network in full precision, without cuts. */
export type StartState = Pick<TrainState, 'w1' | 'b1' | 'w2' | 'scales'>;

/** The network as it is stored: rows rounded to q4. */
export function quantiseNetwork({ w1, b1, w2, scales }: StartState, d: number): Network {
  const rank = w1.length / d;
  return { fc1: toQ4(w1, scales.w1, rank, d), b1, fc2: toQ4(w2, scales.w2, w2.length / rank, rank) };
}

/**
 * The factors as a network whose hidden units are linear (b1 null), or ReLUs that start in their linear
 * range: b1 lifts every unit above zero for all recorded inputs; `fitCuts` takes the lift out again.
 */
export async function startFrom(
  factors: Factors,
  samples: Samples,
  range: SampleRange,
  relu: boolean,
  matrices: Matrices,
): Promise<StartState> {
  const { rank, a, b } = factors;
  const { d } = samples;
  const scales = { w1: q4Scales(b, rank, d), w2: q4Scales(a, a.length / rank, rank) };
  if (!relu) return { w1: b, b1: null, w2: a, scales };
  const lowest = new Float32Array(rank);
  const hidden = await matrices.timesTransposed(spreadInputs(samples, range, LIFT_SAMPLES), b, d);
  hidden.forEach((value, i) => (lowest[i % rank] = Math.min(lowest[i % rank], value)));
  return { w1: b, b1: lowest.map((low) => -LIFT_MARGIN * low), w2: a, scales };
}

/** So many samples find the lowest value that matters; the margin covers the rest. */
const LIFT_SAMPLES = 2000;
const LIFT_MARGIN = 1.05;

/**
 * @param better called after every epoch with the state so far; true: it is the best yet
 * @returns epochs that were run
 */
export async function train(
  start: TrainState,
  samples: Samples,
  range: SampleRange,
  norms: Float32Array,
  options: TrainOptions,
  matrices: Matrices,
  better: (state: TrainState) => Promise<boolean>,
): Promise<number> {
  const { d, nFf } = samples;
  const rank = start.w1.length / d;
  const rows = range.end - range.begin;
  const batches = Math.floor(rows / BATCH);
  const callsPerEpoch = Math.floor(batches / STEPS);
  if (callsPerEpoch === 0) return 0;
  const shape: TrainShape = { d, rank, n: nFf, batch: BATCH, steps: STEPS, relu: start.b1 !== null };
  const scales = {
    w1: scalePerWeight(start.scales.w1, rank, d),
    w2: scalePerWeight(start.scales.w2, nFf, rank),
  };
  const steepness = start.cutScale.map((s) => LOGIT_PER_ERROR / s);
  const rates: Record<Parameter, number> = {
    w1: size(start.w1),
    b1: size(start.w1) * Math.sqrt(d),
    w2: size(start.w2),
    c: size(start.cutScale),
  };
  const centre = await meanHidden(start, samples, range, matrices);
  // Scores in the graph are lower by Q(W2) centre than the stored network's.
  const shiftOf = (w2: Float32Array): Float32Array => dotRows(quantisedValues(w2, scales.w2), centre);
  const startShift = shiftOf(start.w2);
  const centredCut = start.cut.map((c, i) => c - startShift[i]);
  const session = await OnnxSession.create(trainingGraph(shape, scales, steepness, centre, rates), {
    provider: options.provider,
  });
  try {
    let feeds = firstFeeds({ ...start, cut: centredCut }, shape);
    const perEpoch = callsPerEpoch * STEPS;
    const total = perEpoch * options.epochs;
    const batch = new BatchBuffers(samples, norms, range, STEPS * BATCH);
    let idle = 0;
    let step = 0;
    for (let epoch = 0; epoch < options.epochs; epoch++) {
      const order = shuffledRows(range, options.seed + epoch);
      for (let call = 0; call < callsPerEpoch; call++) {
        options.check?.();
        batch.fill(order, call * STEPS * BATCH);
        const rate = Float32Array.from({ length: STEPS }, () => {
          const cosine = 0.5 * (1 + Math.cos((Math.PI * step) / total));
          return adamRate(RATE * (0.01 + 0.99 * cosine), ++step);
        });
        const result = await session.run({
          ...feeds,
          x: f32Tensor(batch.x, [STEPS * BATCH, d]),
          label: { type: 'uint8', dims: [STEPS * BATCH, nFf], data: batch.label },
          rate: f32Tensor(rate, [STEPS]),
        });
        feeds = Object.fromEntries(
          Object.keys(feeds).map((name) => [
            name,
            f32Tensor(result[`new_${name}`].data as Float32Array, result[`new_${name}`].dims),
          ]),
        );
      }
      const w = (name: string): Float32Array => feeds[name].data as Float32Array;
      const shift = shiftOf(w('w2'));
      const state: TrainState = {
        w1: w('w1'),
        b1: shape.relu ? w('b1') : null,
        w2: w('w2'),
        cut: w('c').map((c, i) => c + shift[i]),
        cutScale: start.cutScale,
        scales: start.scales,
      };
      idle = (await better(state)) ? 0 : idle + 1;
      if (idle >= options.patience) return epoch + 1;
    }
    return options.epochs;
  } finally {
    await session.release();
  }
}

/** Mean of the hidden layer over a spread of the samples, [R]. */
async function meanHidden(
  { w1, b1 }: TrainState,
  samples: Samples,
  range: SampleRange,
  matrices: Matrices,
): Promise<Float32Array> {
  const { d } = samples;
  const rank = w1.length / d;
  const hidden = await matrices.timesTransposed(spreadInputs(samples, range, LIFT_SAMPLES), w1, d);
  const mean = new Float64Array(rank);
  hidden.forEach((value, i) => (mean[i % rank] += b1 ? Math.max(0, value + b1[i % rank]) : value));
  return Float32Array.from(mean, (sum) => (sum * rank) / hidden.length);
}

/** What the graph's rounding makes of weights: levels of the start's scales. */
function quantisedValues(values: Float32Array, scales: Float32Array): Float32Array {
  return values.map((v, i) => Math.max(-8, Math.min(7, Math.round(v / scales[i]))) * scales[i]);
}

/** [rows, cols] times [cols] */
function dotRows(matrix: Float32Array, vector: Float32Array): Float32Array {
  const cols = vector.length;
  const out = new Float32Array(matrix.length / cols);
  for (let i = 0; i < matrix.length; i++) out[Math.floor(i / cols)] += matrix[i] * vector[i % cols];
  return out;
}

/** Parameters and Adam's moments, all zero at the start. */
function firstFeeds(start: TrainState, shape: TrainShape): Record<string, TensorValue> {
  const values: Record<Parameter, Float32Array | null> = {
    w1: start.w1,
    b1: start.b1,
    w2: start.w2,
    c: start.cut,
  };
  const feeds: Record<string, TensorValue> = {};
  for (const parameter of parametersOf(shape)) {
    const value = values[parameter]!;
    const dims = parameterDims(shape, parameter);
    feeds[parameter] = f32Tensor(value, dims);
    feeds[`${parameter}_m`] = f32Tensor(new Float32Array(value.length), dims);
    feeds[`${parameter}_v`] = f32Tensor(new Float32Array(value.length), dims);
  }
  return feeds;
}

/** Inputs and labels of the steps of one call, filled again for every call. */
class BatchBuffers {
  readonly x: Float32Array<ArrayBuffer>; // [rows, d]
  readonly label: Uint8Array<ArrayBuffer>; // [rows, nFf]
  private readonly unit: number;
  /** All of the range's inputs: batches take rows from anywhere. */
  private readonly inputs: Float32Array;

  constructor(
    private readonly samples: Samples,
    private readonly norms: Float32Array,
    private readonly range: SampleRange,
    private readonly rows: number,
  ) {
    this.inputs = samples.inputs(range.begin, range.end);
    this.x = new Float32Array(rows * samples.d);
    this.label = new Uint8Array(rows * samples.nFf);
    // Mean of |x1| * norm over a spread of samples: what "average weight" means.
    let sum = 0;
    let count = 0;
    for (let t = range.begin; t < range.end; t += 16) {
      eachActive(samples, t, (i, magnitude) => {
        sum += magnitude * norms[i];
        count++;
      });
    }
    this.unit = ((1 - FIXED_SHARE) * count) / (sum || 1);
  }

  fill(order: Uint32Array, first: number): void {
    const { samples, inputs, range } = this;
    const { d, nFf } = samples;
    this.label.fill(0);
    for (let row = 0; row < this.rows; row++) {
      const t = order[first + row];
      const from = (t - range.begin) * d;
      this.x.set(inputs.subarray(from, from + d), row * d);
      eachActive(this.samples, t, (i, magnitude) => {
        const weight = ACTIVE_WEIGHT * (FIXED_SHARE + magnitude * this.norms[i] * this.unit);
        this.label[row * nFf + i] = Math.max(1, Math.min(255, Math.round(weight * WEIGHT_UNIT)));
      });
    }
  }
}

/** Fisher-Yates with a small generator of its own: the order depends on the seed alone. */
function shuffledRows({ begin, end }: SampleRange, seed: number): Uint32Array {
  const order = Uint32Array.from({ length: end - begin }, (_, i) => begin + i);
  let state = (seed * 2654435761 + 1) >>> 0;
  for (let i = order.length - 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((state / 2 ** 32) * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

/** Root mean square. */
function size(values: Float32Array): number {
  let sum = 0;
  for (const v of values) sum += v * v;
  return Math.sqrt(sum / Math.max(1, values.length)) || 1;
}

/** The scale of every weight; a group of zeros keeps a scale that its weights can leave zero with. */
function scalePerWeight(scales: Uint16Array, rows: number, cols: number): Float32Array {
  const groups = groupCount(cols);
  const values = Float32Array.from(scales, bf16ToNumber);
  const usual = size(values);
  const out = new Float32Array(rows * cols);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < cols; c++) {
      out[r * cols + c] = values[r * groups + Math.floor(c / GROUP)] || usual;
    }
  }
  return out;
}

/** A start for comparison: the size of the whitened one, but no knowledge. */
export function randomFactors(like: Factors, seed: number): Factors {
  let state = seed >>> 0;
  const uniform = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32 - 0.5;
  };
  const noise = (values: Float32Array): Float32Array => {
    const amplitude = size(values) * Math.sqrt(12);
    return values.map(() => amplitude * uniform());
  };
  return { rank: like.rank, a: noise(like.a), b: noise(like.b) };
}
