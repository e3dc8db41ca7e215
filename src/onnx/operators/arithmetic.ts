/** Sums, products and sums over axes: elementwise operators with broadcasting, and what undoes it. */
import { int, type GraphBuilder } from '../graph-builder.js';
import type { Operator, Tape, Value } from '../tape.js';
import { axisOf, broadcast, elements, sameShape, type Sizes } from './shapes.js';

const binary = (
  onnx: string,
  gradient: (t: Tape, a: Value, b: Value, y: Value, dy: Value) => [() => Value, () => Value],
): Operator => ({
  name: onnx,
  shapes: ([a, b]) => [broadcast(onnx, a, b)],
  emit: (g, inputs) => [g.op(onnx, inputs)],
  gradient(t, { inputs: [a, b], outputs: [y] }, dy) {
    const [da, db] = gradient(t, a, b, y, dy);
    return [() => sumTo(t, da(), a.shape), () => sumTo(t, db(), b.shape)];
  },
});

/** a + b */
export const add: Operator = binary('Add', (_t, _a, _b, _y, dy) => [() => dy, () => dy]);
/** a - b */
export const sub: Operator = {
  ...binary('Sub', (_t, _a, _b, _y, dy) => [() => dy, () => dy]),
  gradient: (t, { inputs: [a, b] }, dy) => [
    () => sumTo(t, dy, a.shape),
    // Summed first: the sum is the smaller one.
    () => t.apply(neg, sumTo(t, dy, b.shape)),
  ],
};
/** a * b */
export const mul: Operator = binary('Mul', (t, a, b, _y, dy) => [
  () => t.apply(mul, dy, b),
  () => t.apply(mul, dy, a),
]);
/** a / b */
export const div: Operator = binary('Div', (t, _a, b, y, dy) => [
  () => t.apply(div, dy, b),
  () => t.apply(neg, t.apply(mul, dy, t.apply(div, y, b))),
]);

/** -x */
export const neg: Operator = {
  name: 'Neg',
  shapes: ([x]) => [[...x]],
  emit: (g, inputs) => [g.op('Neg', inputs)],
  gradient: (t, _node, dy) => [() => t.apply(neg, dy)],
};

/** Sum over axes (all: to a number). @param keep leave summed axes as 1. @default false */
export const sum = (axes?: readonly number[], keep = false): Operator => ({
  name: 'ReduceSum',
  shapes: ([x]) => [reducedShape(x, axes, keep)],
  emit: (g, [x]) => [reduce(g, 'ReduceSum', x, axes, keep)],
  gradient: (t, { inputs: [x] }, dy) => [
    () => t.apply(stretch(x.shape), t.apply(reshape(reducedShape(x.shape, axes, true)), dy)),
  ],
});

/** Mean over all elements, or over axes. */
export const mean = (axes?: readonly number[], keep = false): Operator => ({
  name: 'ReduceMean',
  shapes: ([x]) => [reducedShape(x, axes, keep)],
  emit: (g, [x]) => [reduce(g, 'ReduceMean', x, axes, keep)],
  gradient(t, { inputs: [x], outputs: [y] }, dy) {
    const share = t.scalar(elements(y.shape) / elements(x.shape));
    return [
      () =>
        t.apply(
          stretch(x.shape),
          t.apply(reshape(reducedShape(x.shape, axes, true)), t.apply(mul, dy, share)),
        ),
    ];
  },
});

/** The same values in another shape. */
export const reshape = (shape: Sizes): Operator => ({
  name: 'Reshape',
  shapes: () => [[...shape]],
  emit: (g, [x]) => [g.op('Reshape', [x, g.constant('int64', [...shape], [shape.length])])],
  gradient: (t, { inputs: [x] }, dy) => [() => t.apply(reshape(x.shape), dy)],
});

/** Repeat along axes of size 1, as broadcasting does. */
export const stretch = (shape: Sizes): Operator => ({
  name: 'Expand',
  shapes: ([x]) => [broadcast('Expand', x, shape)],
  emit: (g, [x]) => [g.op('Expand', [x, g.constant('int64', [...shape], [shape.length])])],
  gradient: (t, { inputs: [x] }, dy) => [() => sumTo(t, dy, x.shape)],
});

/** Undo broadcasting: sum what was repeated. */
export function sumTo(t: Tape, value: Value, shape: Sizes): Value {
  if (sameShape(value.shape, shape)) return value;
  const extra = value.shape.length - shape.length;
  const axes = value.shape.flatMap((n, i) => (i < extra || (shape[i - extra] === 1 && n !== 1) ? [i] : []));
  const summed = axes.length === 0 ? value : t.apply(sum(axes, true), value);
  return sameShape(summed.shape, shape) ? summed : t.apply(reshape(shape), summed);
}

function reducedShape(x: Sizes, axes: readonly number[] | undefined, keep: boolean): number[] {
  const gone = new Set((axes ?? x.map((_, i) => i)).map((axis) => axisOf(axis, x.length)));
  return x.flatMap((n, i) => (gone.has(i) ? (keep ? [1] : []) : [n]));
}

function reduce(
  g: GraphBuilder,
  onnx: string,
  x: string,
  axes: readonly number[] | undefined,
  keep: boolean,
): string {
  const inputs = axes ? [x, g.constant('int64', [...axes])] : [x];
  return g.op(onnx, inputs, { keepdims: int(keep ? 1 : 0) });
}
