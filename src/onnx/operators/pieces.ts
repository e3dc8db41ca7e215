/** Parts of tensors: slices, concatenation, chosen rows and chosen elements. */
import { int, text } from '../graph-builder.js';
import type { Operator, Tape, Value } from '../tape.js';
import { axisOf, elements, misfit, type Sizes } from './shapes.js';

/** Elements [begin, end) along an axis. */
export const slice = (axis: number, begin: number, end: number): Operator => ({
  name: 'Slice',
  shapes([x]) {
    const at = axisOf(axis, x.length);
    if (begin < 0 || end > x[at] || begin >= end) throw misfit(`Slice ${begin}..${end}`, x);
    return [x.map((n, i) => (i === at ? end - begin : n))];
  },
  emit: (g, [x], [shape]) => [
    g.op('Slice', [x, ...[begin, end, axisOf(axis, shape.length)].map((n) => g.constant('int64', [n]))]),
  ],
  gradient: (t, { inputs: [x] }, dy) => [
    () => {
      const size = x.shape[axisOf(axis, x.shape.length)];
      return t.apply(pad(axis, begin, size - end), dy);
    },
  ],
});

/** Zeros before and after along an axis. */
export const pad = (axis: number, before: number, after: number): Operator => ({
  name: 'Pad',
  shapes: ([x]) => [x.map((n, i) => (i === axisOf(axis, x.length) ? before + n + after : n))],
  emit(g, [x], [shape]) {
    const at = axisOf(axis, shape.length);
    const pads = [before, after].flatMap((n) => shape.map((_, i) => (i === at ? n : 0)));
    return [g.op('Pad', [x, g.constant('int64', pads)])];
  },
  gradient: (t, { inputs: [x] }, dy) => [
    () => {
      const size = x.shape[axisOf(axis, x.shape.length)];
      return t.apply(slice(axis, before, before + size), dy);
    },
  ],
});

/** One after the other along an axis. */
export const concat = (axis: number): Operator => ({
  name: 'Concat',
  shapes(shapes) {
    const at = axisOf(axis, shapes[0].length);
    const total = shapes.reduce((sum, shape) => sum + shape[at], 0);
    return [shapes[0].map((n, i) => (i === at ? total : n))];
  },
  emit: (g, inputs) => [g.op('Concat', inputs, { axis: int(axis) })],
  gradient(t, { inputs }, dy) {
    let begin = 0;
    return inputs.map(({ shape }) => {
      const size = shape[axisOf(axis, shape.length)];
      const from = begin;
      begin += size;
      return () => t.apply(slice(axis, from, from + size), dy);
    });
  },
});

/** Rows of a table [n, d] by their numbers [k]: [k, d]. Rows chosen twice get both gradients. */
export const gatherRows: Operator = {
  name: 'Gather',
  shapes: ([table, ids]) => [[...ids, ...table.slice(1)]],
  emit: (g, inputs) => [g.op('Gather', inputs, { axis: int(0) })],
  gradient: (t, { inputs: [table, ids] }, dy) => [() => scatterRows(t, table.shape, ids, dy), null],
};

/** Zeros of a shape, with rows added to the places that `ids` names. */
function scatterRows(t: Tape, shape: Sizes, ids: Value, rows: Value): Value {
  const { g } = t;
  const zeros = zerosOf(t, shape);
  const places = g.op('Unsqueeze', [ids.name, g.constant('int64', [1])]);
  const name = g.op('ScatterND', [zeros, places, rows.name], { reduction: text('add') });
  return { name, shape };
}

/** From each row [n, v] the element that `columns` [n, 1] names: [n, 1]. */
export const pick: Operator = {
  name: 'GatherElements',
  shapes: ([, columns]) => [[...columns]],
  emit: (g, inputs) => [g.op('GatherElements', inputs, { axis: int(1) })],
  gradient: (t, { inputs: [x, columns] }, dy) => [
    () => ({
      name: t.g.op('ScatterElements', [zerosOf(t, x.shape), columns.name, dy.name], {
        axis: int(1),
        reduction: text('add'),
      }),
      shape: x.shape,
    }),
    null,
  ],
};

/** Made when the graph runs: stored zeros would be as large as a weight. */
function zerosOf({ g }: Tape, shape: Sizes): string {
  if (elements(shape) === 0) throw misfit('zeros', shape);
  return g.op('ConstantOfShape', [g.constant('int64', [...shape], [shape.length])]);
}
