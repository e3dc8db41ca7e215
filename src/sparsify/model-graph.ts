/**
 * A Llama-like model as a differentiable graph: the forward pass in the order it happens, for B windows of T
 * tokens at once. Names of weights are the model's own (`layers.3.gate`); they are inputs of the graph.
 */
import { HybridError } from '../errors.js';
import { ropeTable } from '../model/rope.js';
import type { LayerTensor, ModelConfig, TensorName } from '../model/types.js';
import * as op from '../onnx/operators/index.js';
import type { Operator, Tape, Value } from '../onnx/tape.js';

/** What stands between gate and up while training. */
export type Activation =
  | { kind: 'silu' }
  | { kind: 'relu' }
  | { kind: 'relu2' }
  /** max(g - by, 0) */
  | { kind: 'shifted'; by: number }
  | { kind: 'fatrelu'; threshold: number };

/** Windows of tokens that are computed together. */
export interface Batch {
  windows: number;
  /** Tokens of a window. */
  tokens: number;
}

/** Finds a weight; applies its adapters, where it has them. */
export interface Weights {
  get(name: TensorName): Value;
  /** x W^T for x [n, in] */
  linear(name: TensorName, x: Value): Value;
}

export interface Forward {
  /** [windows * tokens, vocab] */
  logits: Value;
  /** Per layer the activations a [n, nFf] and the intermediate activations x1 = a * up [n, nFf]. */
  layers: { activation: Value; x1: Value }[];
}

/** @param ids whole numbers [windows * tokens] */
export function forward(
  t: Tape,
  config: ModelConfig,
  weights: Weights,
  ids: Value,
  batch: Batch,
  activation: Operator,
): Forward {
  const layers: Forward['layers'] = [];
  const tables = attentionTables(t, config, batch.tokens);
  let x = scaled(t, t.apply(op.gatherRows, weights.get('embed'), ids), config.embeddingScale);
  for (let l = 0; l < config.layers; l++) {
    const name = (role: LayerTensor): TensorName => `layers.${l}.${role}`;
    const norm = (role: 'attnNorm' | 'ffnNorm'): Value =>
      t.apply(op.rmsNorm(config.rmsEpsilon), x, weights.get(name(role)));
    const branch = (y: Value): Value => t.apply(op.add, x, scaled(t, y, config.residualScale));

    x = branch(attention(t, config, weights, name, norm('attnNorm'), batch, tables));

    const h = norm('ffnNorm');
    const a = t.apply(activation, weights.linear(name('gate'), h));
    const x1 = t.apply(op.mul, a, weights.linear(name('up'), h));
    layers.push({ activation: a, x1 });
    x = branch(weights.linear(name('down'), x1));
  }
  x = t.apply(op.rmsNorm(config.rmsEpsilon), x, weights.get('outNorm'));
  const logits = weights.linear(config.tiedEmbeddings ? 'embed' : 'lmHead', x);
  return { logits: scaled(t, logits, config.logitScale), layers };
}

/** @throws HybridError MODEL_UNSUPPORTED for activations that nothing is trained with */
export function activationOperator(activation: Activation): Operator {
  switch (activation.kind) {
    case 'silu':
      return op.silu;
    case 'relu':
      return op.relu;
    case 'shifted':
      return op.shiftedRelu(activation.by);
    case 'fatrelu':
      return op.fatRelu(activation.threshold);
    default:
      throw new HybridError('MODEL_UNSUPPORTED', `training with activation ${activation.kind}`);
  }
}

// ---- attention --------------------------------------------------------------------------------------------

interface AttentionTables {
  cos: Value; // [T, headDim]
  sin: Value; // [T, headDim]
  mask: Value; // [T, T]: 0 where a position may look, else far below every score
}

/** Far enough that exp gives 0, near enough that sums stay finite. */
const MASKED = -1e30;

function attentionTables(t: Tape, config: ModelConfig, tokens: number): AttentionTables {
  const half = config.headDim / 2;
  const { frequencies, magnitude } = ropeTable(config, tokens);
  const table = (f: (x: number) => number): Value => {
    const data = new Float32Array(tokens * config.headDim);
    for (let p = 0; p < tokens; p++) {
      for (let i = 0; i < half; i++) {
        const value = magnitude * f(p * frequencies[i]);
        data[p * config.headDim + i] = value;
        data[p * config.headDim + half + i] = value;
      }
    }
    return t.table([tokens, config.headDim], data);
  };
  const mask = new Float32Array(tokens * tokens);
  for (let p = 0; p < tokens; p++) mask.fill(MASKED, p * tokens + p + 1, (p + 1) * tokens);
  return { cos: table(Math.cos), sin: table(Math.sin), mask: t.table([tokens, tokens], mask) };
}

function attention(
  t: Tape,
  config: ModelConfig,
  weights: Weights,
  name: (role: LayerTensor) => TensorName,
  h: Value,
  { windows, tokens }: Batch,
  tables: AttentionTables,
): Value {
  const { heads, kvHeads, headDim } = config;
  const perKv = heads / kvHeads;
  const project = (role: 'q' | 'k' | 'v', count: number): Value => {
    const y = weights.linear(name(role), h);
    const biased = config.qkvBias ? t.apply(op.add, y, weights.get(name(`${role}Bias`))) : y;
    const split = t.apply(op.reshape([windows, tokens, count, headDim]), biased);
    return t.apply(op.transpose([0, 2, 1, 3]), split); // [B, heads, T, headDim]
  };
  const q = scaled(t, rope(t, project('q', heads), tables), 1 / Math.sqrt(headDim));
  const k = rope(t, project('k', kvHeads), tables);
  const v = project('v', kvHeads);

  // Query heads of one key head stand one below the other: one product each, and keys are not repeated.
  const grouped = t.apply(op.reshape([windows, kvHeads, perKv * tokens, headDim]), q);
  const scores = t.apply(op.matmul, grouped, t.apply(op.swapLast(4), k));
  const square = t.apply(op.reshape([windows, heads, tokens, tokens]), scores);
  const shares = t.apply(op.softmax, t.apply(op.add, square, tables.mask));
  const stacked = t.apply(op.reshape([windows, kvHeads, perKv * tokens, tokens]), shares);
  const mixed = t.apply(op.matmul, stacked, v);
  const perHead = t.apply(op.reshape([windows, heads, tokens, headDim]), mixed);
  const rows = t.apply(op.transpose([0, 2, 1, 3]), perHead);
  const joined = t.apply(op.reshape([windows * tokens, heads * headDim]), rows);
  const y = weights.linear(name('o'), joined);
  return config.outputBias ? t.apply(op.add, y, weights.get(name('oBias'))) : y;
}

/** x cos + rotate(x) sin, where rotate([a, b]) = [-b, a] on the halves of a head. */
function rope(t: Tape, x: Value, { cos, sin }: AttentionTables): Value {
  const size = x.shape[3];
  const a = t.apply(op.slice(3, 0, size / 2), x);
  const b = t.apply(op.slice(3, size / 2, size), x);
  const rotated = t.apply(op.concat(3), t.apply(op.neg, b), a);
  return t.apply(op.add, t.apply(op.mul, x, cos), t.apply(op.mul, rotated, sin));
}

const scaled = (t: Tape, x: Value, by: number): Value => (by === 1 ? x : t.apply(op.mul, x, t.scalar(by)));
