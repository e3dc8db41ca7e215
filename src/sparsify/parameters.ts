/** Which tensors a training has, which of them it changes, and how they enter the graph. */
import { expectedTensors } from '../model/tensor-names.js';
import type { ModelConfig, TensorName } from '../model/types.js';
import * as op from '../onnx/operators/index.js';
import type { Tape, Value } from '../onnx/tape.js';
import type { Weights } from './model-graph.js';

/** A tensor in the flat array that holds all of them. */
export interface Parameter {
  /** A tensor of the model, or one of its low-rank factors: `layers.0.gate:a` [rank, in], `:b` [out, rank]. */
  name: string;
  shape: readonly number[];
  /** First element in the flat array. */
  begin: number;
  size: number;
  trained: boolean;
  /** Weight decay: on matrices only. */
  decays: boolean;
}

export interface TrainedPart {
  /** `ffn`: gate, up, down and the norm before them. */
  part: 'ffn' | 'all';
  /** Rank of adapters that are trained in place of the matrices; 0: the matrices themselves. */
  adapterRank: number;
}

/** W + (ADAPTER_SCALE / rank) B A: the usual scaling, under which the learning rate suits every rank. */
export const ADAPTER_SCALE = 16;

const FFN_TENSOR = /^layers\.\d+\.(gate|up|down|ffnNorm)$/;

/** All tensors, those of the model first and in its order; the same offsets for weights and for moments. */
export function parametersOf(config: ModelConfig, { part, adapterRank }: TrainedPart): Parameter[] {
  let begin = 0;
  const list: Parameter[] = [];
  const push = (name: string, shape: readonly number[], trained: boolean): void => {
    const size = shape.reduce((product, n) => product * n, 1);
    list.push({ name, shape, begin, size, trained, decays: shape.length >= 2 });
    begin += size;
  };
  const tensors = expectedTensors(config);
  const chosen = (name: string): boolean => part === 'all' || FFN_TENSOR.test(name);
  for (const [name, shape] of tensors) push(name, shape, chosen(name) && adapterRank === 0);
  if (adapterRank > 0) {
    for (const [name, shape] of tensors.filter(([n, s]) => chosen(n) && adaptable(n, s))) {
      push(`${name}:a`, [adapterRank, shape[1]], true);
      push(`${name}:b`, [shape[0], adapterRank], true);
    }
  }
  return list;
}

/** Matrices inside layers: tables of tokens are looked up, not multiplied with. */
const adaptable = (name: TensorName, shape: readonly number[]): boolean =>
  shape.length === 2 && name.startsWith('layers.');

export const elementsOf = (parameters: readonly Parameter[]): number =>
  parameters.reduce((sum, { size }) => sum + size, 0);

/** Inputs of the graph for the parameters. @param prefix tells two models in one graph apart */
export function weightInputs(t: Tape, parameters: readonly Parameter[], prefix = ''): Map<string, Value> {
  return new Map(parameters.map(({ name, shape }) => [name, t.input(prefix + name, shape)]));
}

/** Weights for `forward`, adapters applied. */
export function weightsFrom(t: Tape, values: ReadonlyMap<string, Value>): Weights {
  return {
    get: (name) => values.get(name)!,
    linear(name, x) {
      const y = t.apply(op.linear, x, values.get(name)!);
      const [a, b] = [values.get(`${name}:a`), values.get(`${name}:b`)];
      if (!a || !b) return y;
      const low = t.apply(op.linear, t.apply(op.linear, x, a), b);
      return t.apply(op.add, y, t.apply(op.mul, low, t.scalar(ADAPTER_SCALE / a.shape[0])));
    },
  };
}
