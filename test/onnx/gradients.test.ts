/** Every operator's gradient against differences of the function itself. */
import { describe, expect, it } from 'vitest';
import { GraphBuilder } from '../../src/onnx/graph-builder.js';
import * as op from '../../src/onnx/operators/index.js';
import { f32Tensor, OnnxSession, type TensorValue } from '../../src/onnx/session.js';
import { Tape, type Value } from '../../src/onnx/tape.js';
import { random } from '../helpers/tiny-models.js';

interface Case {
  name: string;
  /** Shapes of the float inputs. */
  inputs: number[][];
  build(t: Tape, ...inputs: Value[]): Value;
  /** Keeps inputs away from kinks and poles. @default values in -1..1 */
  value?: (u: number) => number;
  ids?: { shape: number[]; below: number };
}

const away = (u: number): number => (2 * u - 1 + Math.sign(u - 0.5) * 0.25) * 1.2;
const positive = (u: number): number => 0.5 + u;

const CASES: Case[] = [
  { name: 'Add with broadcasting', inputs: [[3, 4], [4]], build: (t, a, b) => t.apply(op.add, a, b) },
  {
    name: 'Add of a column',
    inputs: [
      [3, 1],
      [3, 4],
    ],
    build: (t, a, b) => t.apply(op.add, a, b),
  },
  { name: 'Sub', inputs: [[2, 3], []], build: (t, a, b) => t.apply(op.sub, a, b) },
  {
    name: 'Mul',
    inputs: [
      [2, 3],
      [2, 1],
    ],
    build: (t, a, b) => t.apply(op.mul, a, b),
  },
  { name: 'Mul of a value with itself', inputs: [[5]], build: (t, a) => t.apply(op.mul, a, a) },
  { name: 'Div', inputs: [[2, 3], [3]], build: (t, a, b) => t.apply(op.div, a, b), value: positive },
  { name: 'Neg', inputs: [[4]], build: (t, a) => t.apply(op.neg, a) },
  { name: 'ReduceSum over an axis', inputs: [[3, 4]], build: (t, a) => t.apply(op.sum([1]), a) },
  { name: 'ReduceSum kept', inputs: [[3, 4]], build: (t, a) => t.apply(op.sum([-2], true), a) },
  { name: 'ReduceMean over all', inputs: [[3, 4]], build: (t, a) => t.apply(op.mean(), a) },
  { name: 'ReduceMean over an axis', inputs: [[3, 4]], build: (t, a) => t.apply(op.mean([0]), a) },
  { name: 'Reshape', inputs: [[3, 4]], build: (t, a) => t.apply(op.reshape([2, 6]), a) },
  { name: 'Expand', inputs: [[3, 1]], build: (t, a) => t.apply(op.stretch([2, 3, 4]), a) },
  ...[false, true].flatMap((ta) =>
    [false, true].map((tb): Case => ({
      name: `Gemm${ta ? ' A^T' : ''}${tb ? ' B^T' : ''}`,
      inputs: [ta ? [4, 3] : [3, 4], tb ? [2, 4] : [4, 2]],
      build: (t, a, b) => t.apply(op.gemm(ta, tb), a, b),
    })),
  ),
  {
    name: 'MatMul',
    inputs: [
      [2, 3, 4],
      [2, 4, 2],
    ],
    build: (t, a, b) => t.apply(op.matmul, a, b),
  },
  {
    name: 'MatMul with a broadcast stack',
    inputs: [
      [2, 2, 3, 4],
      [2, 1, 4, 2],
    ],
    build: (t, a, b) => t.apply(op.matmul, a, b),
  },
  { name: 'Transpose', inputs: [[2, 3, 4]], build: (t, a) => t.apply(op.transpose([2, 0, 1]), a) },
  { name: 'Slice', inputs: [[3, 6]], build: (t, a) => t.apply(op.slice(-1, 2, 5), a) },
  { name: 'Pad', inputs: [[3, 2]], build: (t, a) => t.apply(op.pad(0, 1, 2), a) },
  {
    name: 'Concat',
    inputs: [
      [3, 2],
      [3, 4],
    ],
    build: (t, a, b) => t.apply(op.concat(1), a, b),
  },
  {
    name: 'Gather of rows, some twice',
    inputs: [[4, 3]],
    ids: { shape: [7], below: 4 },
    build: (t, a, ids) => t.apply(op.gatherRows, a, ids),
  },
  {
    name: 'GatherElements',
    inputs: [[4, 3]],
    ids: { shape: [4, 1], below: 3 },
    build: (t, a, ids) => t.apply(op.pick, a, ids),
  },
  {
    name: 'RMS norm',
    inputs: [[3, 5], [5]],
    build: (t, x, w) => t.apply(op.rmsNorm(1e-5), x, w),
  },
  {
    name: 'layer norm',
    inputs: [[3, 5], [5], [5]],
    build: (t, x, w, b) => t.apply(op.layerNorm(1e-5), x, w, b),
  },
  { name: 'Softmax', inputs: [[3, 5]], build: (t, a) => t.apply(op.softmax, a) },
  { name: 'LogSoftmax', inputs: [[3, 5]], build: (t, a) => t.apply(op.logSoftmax, a) },
  { name: 'Relu', inputs: [[12]], build: (t, a) => t.apply(op.relu, a), value: away },
  { name: 'shifted Relu', inputs: [[12]], build: (t, a) => t.apply(op.shiftedRelu(0.1), a), value: away },
  { name: 'FATReLU', inputs: [[12]], build: (t, a) => t.apply(op.fatRelu(0.1), a), value: away },
  { name: 'SiLU', inputs: [[12]], build: (t, a) => t.apply(op.silu, a) },
  { name: 'Sigmoid', inputs: [[12]], build: (t, a) => t.apply(op.sigmoid, a) },
  { name: 'Exp', inputs: [[6]], build: (t, a) => t.apply(op.exp, a) },
  { name: 'Sqrt', inputs: [[6]], build: (t, a) => t.apply(op.sqrt, a), value: positive },
  { name: 'Abs', inputs: [[6]], build: (t, a) => t.apply(op.abs, a), value: away },
];

/** f32 in, f32 out: a step of 1e-2 leaves an error of about 1e-4 by rounding and by the third derivative. */
const STEP = 1e-2;
const TOLERANCE = 2e-3;

describe('gradient of', () => {
  for (const c of CASES) {
    it(c.name, async () => {
      const next = random(c.name.length);
      const t = new Tape(new GraphBuilder('case'));
      const values = c.inputs.map((shape, i) => t.input(`x${i}`, shape));
      const ids = c.ids ? [t.indexInput('ids', c.ids.shape)] : [];
      const y = c.build(t, ...values, ...ids);
      const size = y.shape.reduce((a, b) => a * b, 1);
      // A loss that tells the elements apart.
      const weights = Float32Array.from({ length: size }, () => next() * 2 - 1);
      const loss = t.apply(op.sum(), t.apply(op.mul, y, t.table(y.shape, weights)));
      const gradients = t.gradients(loss, values);
      t.output(loss, 'loss');
      gradients.forEach((g, i) => {
        expect(g.shape).toEqual(c.inputs[i]);
        t.output(g, `d${i}`);
      });
      const session = await OnnxSession.create(t.g.build());
      const value = c.value ?? ((u: number) => 2 * u - 1);
      const data = c.inputs.map((shape) =>
        Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => value(next())),
      );
      const fixed: Record<string, TensorValue> = {};
      if (c.ids) {
        const count = c.ids.shape.reduce((a, b) => a * b, 1);
        const picked = BigInt64Array.from({ length: count }, () => BigInt(Math.floor(next() * c.ids!.below)));
        fixed.ids = { type: 'int64', dims: c.ids.shape, data: picked };
      }
      const run = (inputs: Float32Array[]) =>
        session.run({
          ...fixed,
          ...Object.fromEntries(inputs.map((x, i) => [`x${i}`, f32Tensor(x, c.inputs[i])])),
        });
      const at = await run(data);
      for (let i = 0; i < data.length; i++) {
        const slope = at[`d${i}`].data as Float32Array;
        for (let j = 0; j < data[i].length; j++) {
          const moved = async (by: number): Promise<number> => {
            const other = data.map((x) => x.slice());
            other[i][j] += by;
            return Number((await run(other)).loss.data[0]);
          };
          const difference = ((await moved(STEP)) - (await moved(-STEP))) / (2 * STEP);
          expect(Math.abs(slope[j] - difference), `input ${i}, element ${j}`).toBeLessThan(
            TOLERANCE * (1 + Math.abs(difference)),
          );
        }
      }
      await session.release();
    });
  }

  it('a value that is used twice is the sum of both', async () => {
    const t = new Tape(new GraphBuilder('twice'));
    const x = t.input('x', [2]);
    const loss = t.apply(op.sum(), t.apply(op.add, t.apply(op.mul, x, x), x));
    t.output(t.gradients(loss, [x])[0], 'dx');
    const session = await OnnxSession.create(t.g.build());
    const { dx } = await session.run({ x: f32Tensor(Float32Array.of(3, -1), [2]) });
    expect([...dx.data]).toEqual([7, -1]);
    await session.release();
  });

  it('refuses a value that the loss does not depend on', () => {
    const t = new Tape(new GraphBuilder('apart'));
    const [x, y] = [t.input('x', []), t.input('y', [])];
    expect(() => t.gradients(x, [y])).toThrow(/does not depend on y/);
  });

  it('refuses shapes that do not fit', () => {
    const t = new Tape(new GraphBuilder('misfit'));
    const [x, y] = [t.input('x', [2, 3]), t.input('y', [4, 2])];
    expect(() => t.apply(op.linear, x, y)).toThrow(/\[2, 3\] and \[4, 2\]/);
  });
});
