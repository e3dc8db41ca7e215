/** Matrix products. */
import { int, ints } from '../graph-builder.js';
import type { Operator } from '../tape.js';
import { sumTo } from './arithmetic.js';
import { broadcast, misfit, type Sizes } from './shapes.js';

/** Product of two matrices, either of them read transposed. */
export const gemm = (transA: boolean, transB: boolean): Operator => ({
  name: 'Gemm',
  shapes([a, b]) {
    const [rows, innerA] = transA ? [a[1], a[0]] : a;
    const [innerB, cols] = transB ? [b[1], b[0]] : b;
    if (a.length !== 2 || b.length !== 2 || innerA !== innerB) throw misfit('Gemm', a, b);
    return [[rows, cols]];
  },
  emit: (g, inputs) => [g.op('Gemm', inputs, { transA: int(+transA), transB: int(+transB) })],
  gradient(t, { inputs: [a, b] }, dy) {
    return [
      () => (transA ? t.apply(gemm(transB, true), b, dy) : t.apply(gemm(false, !transB), dy, b)),
      () => (transB ? t.apply(gemm(true, transA), dy, a) : t.apply(gemm(!transA, false), a, dy)),
    ];
  },
});

/** x W^T for x [n, in] and W [out, in], as model files keep their weights. */
export const linear: Operator = gemm(false, true);

/** Products of stacks of matrices; leading axes are broadcast. */
export const matmul: Operator = {
  name: 'MatMul',
  shapes([a, b]) {
    if (a.length < 2 || b.length < 2 || a.at(-1) !== b.at(-2)) throw misfit('MatMul', a, b);
    return [[...broadcast('MatMul', a.slice(0, -2), b.slice(0, -2)), a.at(-2)!, b.at(-1)!]];
  },
  emit: (g, inputs) => [g.op('MatMul', inputs)],
  gradient: (t, { inputs: [a, b] }, dy) => [
    () => sumTo(t, t.apply(matmul, dy, t.apply(swapLast(b.shape.length), b)), a.shape),
    () => sumTo(t, t.apply(matmul, t.apply(swapLast(a.shape.length), a), dy), b.shape),
  ],
};

/** Axes in another order. */
export const transpose = (order: Sizes): Operator => ({
  name: 'Transpose',
  shapes: ([x]) => [order.map((axis) => x[axis])],
  emit: (g, inputs) => [g.op('Transpose', inputs, { perm: ints(order) })],
  gradient: (t, _node, dy) => [() => t.apply(transpose(order.map((_, axis) => order.indexOf(axis))), dy)],
});

/** The last two axes change places. */
export const swapLast = (rank: number): Operator =>
  transpose(Array.from({ length: rank }, (_, i) => (i < rank - 2 ? i : 2 * rank - 3 - i)));
