/**
 * The training step as an ONNX graph: forward and Adam written out in standard operators, the backward pass by the
 * rules of onnx/operators. STEPS of them run in one Loop, so that the weights cross into onnxruntime and back once
 * per STEPS batches.
 *
 *     h = relu(x Q(W1)^T + b1)      [B, R]   Q: rounded as the artifact stores it (q4)
 *     s = (h - centre) Q(W2)^T      [B, n]   centre: mean of h at the start, fixed
 *     p = sigmoid(t (s - c))        [B, n]   t: steepness of each neuron, fixed
 *
 *     loss = sum over neurons: -log(1 - p) where inactive, -w log p where active   (w: class weight)
 *     dloss/d(t (s - c)) = p where inactive, w (p - 1) where active
 *
 * Gradients pass through Q unchanged (straight-through estimator): the weights move, their rounding follows.
 * A linear hidden layer has no relu and no b1. Without the centre every change of W2 would move all scores by
 * the hidden units' means, which the lift of the ReLUs makes large; afterwards the cuts take it in.
 */
import { graph, GraphBuilder, int } from '../onnx/graph-builder.js';
import { add, linear, mul, relu as reluOf, sub, sum } from '../onnx/operators/index.js';
import { Tape, type Operator, type Value } from '../onnx/tape.js';

export interface TrainShape {
  d: number;
  rank: number;
  n: number;
  batch: number;
  steps: number;
  relu: boolean;
}

/** Trained matrices and vectors, in the order they are stated in the graph. */
export const PARAMETERS = ['w1', 'b1', 'w2', 'c'] as const;
export type Parameter = (typeof PARAMETERS)[number];

/** A label of an active neuron is its class weight in these units: weights up to 15.9 fit a byte. */
export const WEIGHT_UNIT = 16;

const BETA1 = 0.9;
const BETA2 = 0.98;
const ADAM_EPSILON = 1e-8;

/** Adam's step size with its start-up corrections: lr * sqrt(1 - beta2^t) / (1 - beta1^t). */
export const adamRate = (lr: number, t: number): number =>
  (lr * Math.sqrt(1 - BETA2 ** t)) / (1 - BETA1 ** t);

/** Parameters a network of this shape has. */
export const parametersOf = (shape: TrainShape): Parameter[] =>
  PARAMETERS.filter((p) => p !== 'b1' || shape.relu);

export function parameterDims(shape: TrainShape, parameter: Parameter): number[] {
  const { d, rank, n } = shape;
  return { w1: [rank, d], b1: [rank], w2: [n, rank], c: [n] }[parameter];
}

/** Round to the levels of a 4-bit row, w in units of scale; its gradient is that of no rounding at all. */
const roundedTo4Bits: Operator = {
  name: '4-bit rounding',
  shapes: ([w]) => [[...w]],
  emit(g, [w, scale]) {
    const code = g.op('Round', [g.op('Div', [w, scale])]);
    const clipped = g.op('Clip', [code, g.constant('float32', -8), g.constant('float32', 7)]);
    return [g.op('Mul', [clipped, scale])];
  },
  gradient: (_t, _node, dy) => [() => dy, null],
};

/** softplus(l) where inactive, w softplus(-l) where active; its slope is p (inactive + w) - w, p = sigmoid(l). */
const weightedCrossEntropy = (weight: string, inactive: string): Operator => ({
  name: 'weighted cross entropy',
  shapes: ([logit]) => [[...logit]],
  emit(g, [logit]) {
    const on = g.op('Mul', [weight, g.op('Softplus', [g.op('Neg', [logit])])]);
    const off = g.op('Mul', [inactive, g.op('Softplus', [logit])]);
    return [g.op('Add', [on, off])];
  },
  gradient: (t, { inputs: [logit] }, dy) => [
    () => {
      const p = t.g.op('Sigmoid', [logit.name]);
      const raised = t.g.op('Mul', [p, t.g.op('Add', [inactive, weight])]);
      const slope: Value = { name: t.g.op('Sub', [raised, weight]), shape: logit.shape };
      return t.apply(mul, slope, dy);
    },
  ],
});

/**
 * Inputs: x [steps * B, d], label uint8 [steps * B, n] (0: inactive; else class weight * WEIGHT_UNIT), rate [steps],
 * per parameter p, p_m, p_v. Outputs: new_<p>, new_<p>_m, new_<p>_v, loss.
 * @param scales of W1 and W2, one value per weight: what a code of 1 stands for
 * @param steepness f32 [n]
 * @param centre f32 [rank]
 * @param rates learning rate of each parameter relative to `rate`
 */
export function trainingGraph(
  shape: TrainShape,
  scales: { w1: Float32Array; w2: Float32Array },
  steepness: Float32Array,
  centre: Float32Array,
  rates: Readonly<Record<Parameter, number>>,
): Uint8Array {
  const { d, rank, n, batch, steps, relu } = shape;
  const g = new GraphBuilder('training');
  const x = g.input('x', 'float32', [steps * batch, d]);
  const label = g.input('label', 'uint8', [steps * batch, n]);
  const rate = g.input('rate', 'float32', [steps]);
  g.initializer('scale_w1', 'float32', [rank, d], scales.w1);
  g.initializer('scale_w2', 'float32', [n, rank], scales.w2);
  g.initializer('steepness', 'float32', [n], steepness);
  g.initializer('centre', 'float32', [rank], centre);
  const one = g.constant('float32', 1);
  const batchSize = g.constant('int64', batch);
  const names = parametersOf(shape).flatMap((p) => [p, `${p}_m`, `${p}_v`]);
  const dimsOf = (name: string): number[] => parameterDims(shape, name.split('_')[0] as Parameter);
  for (const name of names) g.input(name, 'float32', dimsOf(name));

  // ---- one step ---------------------------------------------------------------------------------------
  const s = g.subgraph('step');
  const k = s.input('k', 'int64', []);
  const go = s.input('go', 'bool', []);
  const state = Object.fromEntries(
    names.map((name) => [name, s.input(`at_${name}`, 'float32', dimsOf(name))]),
  );
  const unsqueeze = (scalar: string): string => s.op('Unsqueeze', [scalar, s.constant('int64', [0])]);
  const first = s.op('Mul', [k, batchSize]);
  const end = s.op('Add', [first, batchSize]);
  const rows = (from: string): string =>
    s.op('Slice', [from, unsqueeze(first), unsqueeze(end), s.constant('int64', [0])]);
  const xb: Value = { name: rows(x), shape: [batch, d] };
  const yb = s.op('Cast', [rows(label)], { to: int(1) });

  // forward; the backward pass follows from it (onnx/tape.ts)
  const t = new Tape(s);
  const value = (name: string, dims: readonly number[]): Value => ({ name, shape: dims });
  const parameters = parametersOf(shape).map((p) => value(state[p], parameterDims(shape, p)));
  const [w1, w2, c] = (['w1', 'w2', 'c'] as const).map((p) => value(state[p], parameterDims(shape, p)));
  const q1 = t.apply(roundedTo4Bits, w1, value('scale_w1', [rank, d]));
  const q2 = t.apply(roundedTo4Bits, w2, value('scale_w2', [n, rank]));
  let h = t.apply(linear, xb, q1);
  if (relu) h = t.apply(reluOf, t.apply(add, h, value(state.b1, [rank])));
  const centred = t.apply(sub, h, value('centre', [rank]));
  const error = t.apply(sub, t.apply(linear, centred, q2), c);
  const logit = t.apply(mul, error, value('steepness', [n]));

  const weight = s.op('Mul', [yb, s.constant('float32', 1 / WEIGHT_UNIT)]);
  const inactive = s.op('Sub', [one, s.op('Min', [yb, one])]);
  const losses = t.apply(weightedCrossEntropy(weight, inactive), logit);
  const loss = t.apply(mul, t.apply(sum(), losses), t.scalar(1 / batch));
  const gradients = t.gradients(loss, parameters);
  const gradient = Object.fromEntries(parametersOf(shape).map((p, i) => [p, gradients[i].name]));

  // Adam
  const lr = s.op('Gather', [rate, k]);
  const next: Record<string, string> = {};
  const scaled = (value: string, by: number): string => s.op('Mul', [value, s.constant('float32', by)]);
  for (const parameter of parametersOf(shape)) {
    const grad = gradient[parameter];
    const m = s.op('Add', [scaled(state[`${parameter}_m`], BETA1), scaled(grad, 1 - BETA1)]);
    const square = s.op('Mul', [grad, grad]);
    const v = s.op('Add', [scaled(state[`${parameter}_v`], BETA2), scaled(square, 1 - BETA2)]);
    const size = s.op('Add', [s.op('Sqrt', [v]), s.constant('float32', ADAM_EPSILON)]);
    const step = s.op('Mul', [s.op('Div', [m, size]), scaled(lr, rates[parameter])]);
    next[parameter] = s.op('Sub', [state[parameter], step]);
    next[`${parameter}_m`] = m;
    next[`${parameter}_v`] = v;
  }

  const meanLoss = s.op('Mul', [loss.name, s.constant('float32', 1 / n)]);

  s.output(s.op('Identity', [go]), 'bool', []);
  for (const name of names) s.output(next[name], 'float32', dimsOf(name));
  s.output(meanLoss, 'float32', []);

  // ---- the loop ---------------------------------------------------------------------------------------
  g.node(
    'Loop',
    [g.constant('int64', steps), '', ...names],
    [...names.map((name) => `new_${name}`), 'loss'],
    { body: graph(s) },
  );
  for (const name of names) g.output(`new_${name}`, 'float32', dimsOf(name));
  g.output('loss', 'float32', [steps]);
  return g.build();
}
