/** Elementwise functions of one input, and the softmaxes. */
import { float, int } from '../graph-builder.js';
import type { Attributes } from '../graph-builder.js';
import type { Operator, Tape, Value } from '../tape.js';
import { mul, neg, sub, sum, add, div } from './arithmetic.js';

const unary = (
  name: string,
  emit: Operator['emit'],
  gradient: (t: Tape, x: Value, y: Value, dy: Value) => Value,
): Operator => ({
  name,
  shapes: ([x]) => [[...x]],
  emit,
  gradient: (t, { inputs: [x], outputs: [y] }, dy) => [() => gradient(t, x, y, dy)],
});

const simple =
  (onnx: string, attributes: Attributes = {}): Operator['emit'] =>
  (g, inputs) => [g.op(onnx, inputs, attributes)];

/** -1, 0 or 1; its own gradient is zero, and nobody asks for it. */
export const sign: Operator = {
  name: 'Sign',
  shapes: ([x]) => [[...x]],
  emit: simple('Sign'),
  gradient: () => [null],
};

/** Where a ReLU's output is above zero, its input's gradient is the output's. */
const where = (t: Tape, y: Value, dy: Value): Value => t.apply(mul, dy, t.apply(sign, y));

/** max(x, 0) */
export const relu: Operator = unary('Relu', simple('Relu'), (t, _x, y, dy) => where(t, y, dy));

/** max(x - by, 0) */
export const shiftedRelu = (by: number): Operator =>
  unary(
    'shifted Relu',
    (g, [x]) => [g.op('Relu', [g.op('Sub', [x, g.constant('float32', by)])])],
    (t, _x, y, dy) => where(t, y, dy),
  );

/** FATReLU: x where x > threshold >= 0, else 0. */
export const fatRelu = (threshold: number): Operator =>
  unary('ThresholdedRelu', simple('ThresholdedRelu', { alpha: float(threshold) }), (t, _x, y, dy) =>
    where(t, y, dy),
  );

export const abs: Operator = unary('Abs', simple('Abs'), (t, x, _y, dy) =>
  t.apply(mul, dy, t.apply(sign, x)),
);

export const exp: Operator = unary('Exp', simple('Exp'), (t, _x, y, dy) => t.apply(mul, dy, y));

export const sqrt: Operator = unary('Sqrt', simple('Sqrt'), (t, _x, y, dy) =>
  t.apply(div, t.apply(mul, dy, t.scalar(0.5)), y),
);

/** 1 / (1 + exp(-x)) */
export const sigmoid: Operator = unary('Sigmoid', simple('Sigmoid'), (t, _x, y, dy) =>
  t.apply(mul, dy, t.apply(mul, y, t.apply(sub, t.scalar(1), y))),
);

/** x sigmoid(x). Written as one rule: y' = s + y (1 - s). */
export const silu: Operator = {
  name: 'SiLU',
  shapes: ([x]) => [[...x], [...x]],
  emit(g, [x]) {
    const s = g.op('Sigmoid', [x]);
    return [g.op('Mul', [x, s]), s];
  },
  gradient: (t, { outputs: [y, s] }, dy) => [
    () => {
      const rest = t.apply(mul, y, t.apply(sub, t.scalar(1), s));
      return t.apply(mul, dy, t.apply(add, s, rest));
    },
  ],
};

/** Over the last axis. */
export const softmax: Operator = unary('Softmax', simple('Softmax', { axis: int(-1) }), (t, _x, y, dy) => {
  const along = t.apply(sum([-1], true), t.apply(mul, dy, y));
  return t.apply(mul, y, t.apply(sub, dy, along));
});

/** log softmax over the last axis: dx = dy - softmax(x) sum(dy) */
export const logSoftmax: Operator = unary(
  'LogSoftmax',
  simple('LogSoftmax', { axis: int(-1) }),
  (t, _x, y, dy) => {
    const along = t.apply(sum([-1], true), dy);
    return t.apply(add, dy, t.apply(neg, t.apply(mul, t.apply(exp, y), along)));
  },
);
