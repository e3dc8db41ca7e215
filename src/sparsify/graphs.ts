/**
 * The two graphs of a training: one adds a batch's gradients to sums, the other measures text.
 *
 *     loss = (1 - d) CE + d KL(original || model) + lambda L1
 *     L1   = mean over layers of the mean over tokens of sum over neurons |x1|
 */
import type { ModelConfig } from '../model/types.js';
import { GraphBuilder, int } from '../onnx/graph-builder.js';
import * as op from '../onnx/operators/index.js';
import { Tape, type Operator, type Value } from '../onnx/tape.js';
import { DATA_TYPE } from '../onnx/schema.js';
import { activationOperator, forward, type Activation, type Batch } from './model-graph.js';
import { weightInputs, weightsFrom, type Parameter } from './parameters.js';

export interface TrainingGraphOptions {
  config: ModelConfig;
  parameters: readonly Parameter[];
  batch: Batch;
  activation: Activation;
  /** Whether lambda will ever be above zero: its gradient costs about three passes over every x1. */
  l1: boolean;
  /** Share of the loss that is the distance from the original's logits. 0: no second model in the graph. */
  distill: number;
}

/** Outputs beside the gradients, in this order in `metrics`. */
export const METRICS = ['ce', 'l1', 'kl', 'active'] as const;

export interface BuiltGraph {
  model: Uint8Array;
  /** Bytes of what one run keeps for its backward pass. */
  activationBytes: number;
}

/**
 * Inputs: the parameters by name, `teacher:<name>` where distilled, ids int64 [n], labels int64 [n, 1], lambda [],
 * `sum:<name>` for each trained parameter. Outputs: `new:<name>`: the sum with this batch's gradient added, and
 * METRICS []: cross entropy, L1, KL divergence (0 where not distilled) in nats; share of activations above zero.
 */
export function trainingGraph(options: TrainingGraphOptions): BuiltGraph {
  const { config, parameters, batch, distill } = options;
  const t = new Tape(new GraphBuilder('training'));
  const n = batch.windows * batch.tokens;
  const ids = t.indexInput('ids', [n]);
  const labels = t.indexInput('labels', [n, 1]);
  const lambda = t.input('lambda', []);
  const inputs = weightInputs(t, parameters);
  const sums = parameters
    .filter(({ trained }) => trained)
    .map((p) => ({ p, value: inputs.get(p.name)!, before: t.input(`sum:${p.name}`, p.shape) }));

  const { logits, layers } = forward(
    t,
    config,
    weightsFrom(t, inputs),
    ids,
    batch,
    activationOperator(options.activation),
  );
  const logP = t.apply(op.logSoftmax, logits);
  const ce = t.apply(op.neg, t.apply(op.mean(), t.apply(op.pick, logP, labels)));
  const sizes = layers.map(({ x1 }) => t.apply(op.sum(), t.apply(op.abs, x1)));
  const l1 = t.apply(op.mul, total(t, sizes), t.scalar(1 / (n * config.layers)));
  const { kl, passing } = distill > 0 ? divergence(t, options, ids, logP) : { kl: t.scalar(0), passing: 0 };

  let loss = distill < 1 ? t.apply(op.mul, ce, t.scalar(1 - distill)) : t.scalar(0);
  if (distill > 0) loss = t.apply(op.add, loss, t.apply(op.mul, kl, t.scalar(distill)));
  if (options.l1) loss = t.apply(op.add, loss, t.apply(op.mul, lambda, l1));
  const activationBytes = 4 * (t.computedElements - passing);

  const gradients = t.gradients(
    loss,
    sums.map(({ value }) => value),
  );
  sums.forEach(({ p, before }, i) => t.output(t.apply(op.add, before, gradients[i]), `new:${p.name}`));
  const active = layers.map(({ activation: a }) => t.apply(op.mean(), t.apply(op.sign, a)));
  const share = t.apply(op.mul, total(t, active), t.scalar(1 / config.layers));
  [ce, l1, kl, share].forEach((value, i) => t.output(value, METRICS[i]));
  return { model: t.g.build(), activationBytes };
}

/**
 * KL(original || model), mean over tokens: the original runs beside the model, with its own activation.
 * @returns with it how many values of the original no backward pass needs
 */
function divergence(
  t: Tape,
  options: TrainingGraphOptions,
  ids: Value,
  logP: Value,
): { kl: Value; passing: number } {
  const { config, parameters, batch } = options;
  const own = parameters.filter(({ name }) => !name.includes(':'));
  const weights = weightsFrom(t, weightInputs(t, own, TEACHER));
  const activation = activationOperator({ kind: 'silu' });
  const before = t.computedElements;
  const { logits } = forward(t, config, weights, ids, batch, activation);
  const passing = t.computedElements - before;
  const logTeacher = t.apply(op.logSoftmax, logits);
  const gap = t.apply(op.sub, logTeacher, logP);
  const perToken = t.apply(op.sum([-1]), t.apply(op.mul, t.apply(op.exp, logTeacher), gap));
  return { kl: t.apply(op.mean(), perToken), passing };
}

export const TEACHER = 'teacher:';

const total = (t: Tape, values: readonly Value[]): Value =>
  values.reduce((sum, value) => t.apply(op.add, sum, value));

export interface MeasuringGraphOptions {
  config: ModelConfig;
  parameters: readonly Parameter[];
  batch: Batch;
  activation: Activation;
}

/**
 * Inputs: the parameters, ids int64 [n], labels int64 [n, 1], scored f32 [n, 1] (0: position does not count),
 * threshold []: activations up to it become zero (activations with zeros only).
 * Outputs: nll []: sum over scored positions; zeros [layers]: neurons with x1 = 0, over all positions.
 */
export function measuringGraph(options: MeasuringGraphOptions): BuiltGraph {
  const { config, parameters, batch, activation } = options;
  const t = new Tape(new GraphBuilder('measuring'));
  const n = batch.windows * batch.tokens;
  const ids = t.indexInput('ids', [n]);
  const labels = t.indexInput('labels', [n, 1]);
  const scored = t.input('scored', [n, 1]);
  const threshold = t.input('threshold', []);
  const weights = weightsFrom(t, weightInputs(t, parameters));
  const own = activationOperator(activation);
  const cut = activation.kind === 'silu' ? own : cutAfter(own, threshold);
  const { logits, layers } = forward(t, config, weights, ids, batch, cut);
  const logP = t.apply(op.logSoftmax, logits);
  const nll = t.apply(op.sum(), t.apply(op.mul, t.apply(op.pick, logP, labels), scored));
  t.output(t.apply(op.neg, nll), 'nll');
  const { g } = t;
  const counts = layers.map(({ x1 }) => {
    // Counts of up to 2^31: f32 sums would round.
    const zero = g.op('Cast', [g.op('Equal', [x1.name, t.scalar(0).name])], CAST_INT32);
    return g.op('ReduceSum', [zero, g.constant('int64', [0, 1])], KEEP_ONE);
  });
  const flat = counts.map((name) => g.op('Reshape', [name, g.constant('int64', [1])]));
  g.op('Concat', flat, { axis: int(0) }, 'zeros');
  g.output('zeros', 'int32', [config.layers]);
  return { model: g.build(), activationBytes: 4 * t.computedElements };
}

const CAST_INT32 = { to: int(DATA_TYPE.int32) };
const KEEP_ONE = { keepdims: int(1) };

/** The activation, then zero where it is not above the threshold. Never differentiated. */
const cutAfter = (activation: Operator, threshold: Value): Operator => ({
  name: `${activation.name}, cut`,
  shapes: ([x]) => [[...x]],
  emit(g, inputs, shapes) {
    const [a] = activation.emit(g, inputs, shapes);
    const above = g.op('Greater', [a, threshold.name]);
    return [g.op('Where', [above, a, g.constant('float32', 0)])];
  },
  gradient: () => [null],
});
