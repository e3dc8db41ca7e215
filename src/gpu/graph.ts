/**
 * The graphs that run on the GPU. All are stateless: x [tokens, inputs] f32 in, y [tokens, outputs] f32
 * out, weights as initializers; the KV cache stays with the CPU lanes, because onnxruntime's Node binding
 * cannot keep tensors on a CUDA device between runs.
 */
import { HybridError } from '../errors.js';
import type { ActivationKind } from '../kernels/kernels.js';
import { float, GraphBuilder, int } from '../onnx/graph-builder.js';
import { DATA_TYPE, MICROSOFT_DOMAIN } from '../onnx/schema.js';
import type { GpuMatrix } from './weights.js';

export interface Activation {
  kind: ActivationKind;
  /** fatrelu only */
  threshold: number;
}

export interface UnitGraph {
  graph: GraphBuilder;
  /** Floats per row of x. */
  inputs: number;
  /** Floats per row of y as the graph makes it: may be padded past the rows asked for. */
  outputs: number;
}

/** y = W x + bias: QKV, output projection, lm_head. */
export function linearGraph(name: string, w: GpuMatrix, bias: Float32Array | null = null): UnitGraph {
  const g = new GraphBuilder(name);
  const x = enter(g, w.inputs, w.kind);
  const product = matMul(g, x, w, bias === null ? lastName(w.kind) : undefined);
  const y = bias === null ? product : g.op('Add', [product, biasOf(g, bias, w)], {}, lastName(w.kind));
  leave(g, y, w.outputs, w.kind);
  return { graph: g, inputs: w.inputs, outputs: w.outputs };
}

/** Some neurons of one layer. */
export interface FfnMatrices {
  gate: GpuMatrix;
  gateBias: Float32Array | null;
  /** null: an FFN without a gate, x1 = sigma(W_gate x + b). */
  up: GpuMatrix | null;
  upBias: Float32Array | null;
  down: GpuMatrix;
}

/**
 * y = W_down (sigma(W_gate x + b) * (W_up x + b)) over some neurons of one layer: dense, as hot neurons are. The
 * bias of down is the CPU's: it is added once.
 */
export function ffnGraph(
  name: string,
  { gate, gateBias, up, upBias, down }: FfnMatrices,
  activation: Activation,
): UnitGraph {
  const g = new GraphBuilder(name);
  const x = enter(g, gate.inputs, gate.kind);
  const linear = (w: GpuMatrix, bias: Float32Array | null): string => {
    const product = matMul(g, x, w);
    return bias === null ? product : g.op('Add', [product, biasOf(g, bias, w)]);
  };
  let x1 = activate(g, linear(gate, gateBias), activation);
  if (up) {
    const upValue = linear(up, upBias);
    x1 = g.op('Mul', [x1, activation.kind === 'drelu' ? g.op('Relu', [upValue]) : upValue]);
  }
  leave(g, matMul(g, x1, down, lastName(down.kind)), down.outputs, down.kind);
  return { graph: g, inputs: gate.inputs, outputs: down.outputs };
}

/** sigma(gate) */
function activate(g: GraphBuilder, gate: string, { kind, threshold }: Activation): string {
  switch (kind) {
    case 'relu':
    case 'drelu':
      return g.op('Relu', [gate]);
    case 'fatrelu':
      return g.op('ThresholdedRelu', [gate], { alpha: float(threshold) });
    case 'relu2': {
      const relu = g.op('Relu', [gate]);
      return g.op('Mul', [relu, relu]);
    }
    case 'silu':
      return g.op('Mul', [gate, g.op('Sigmoid', [gate])]);
    case 'gelu':
    case 'gelu_tanh':
    case 'gelu_quick':
      throw new HybridError('MODEL_UNSUPPORTED', `the GPU does not compute ${kind}`);
  }
}

function matMul(g: GraphBuilder, x: string, w: GpuMatrix, output?: string): string {
  if (w.kind === 'nbits') {
    const blocks = w.inputs / w.block;
    const codes = g.constant('uint8', w.codes, [w.outputs, blocks, (w.block * w.bits) / 8]);
    const scales = g.constant('float32', w.scales, [w.outputs, blocks]);
    const attributes = {
      K: int(w.inputs),
      N: int(w.outputs),
      bits: int(w.bits),
      block_size: int(w.block),
    };
    return g.op('MatMulNBits', [x, codes, scales], attributes, output, MICROSOFT_DOMAIN);
  }
  if (w.rowsAreOutputs) {
    const weights = g.constant(w.kind, w.data, [w.outputs, w.inputs]);
    return g.op('Gemm', [x, weights], { transB: int(1) }, output);
  }
  return g.op('MatMul', [x, g.constant(w.kind, w.data, [w.inputs, w.outputs])], {}, output);
}

// ---- edges: x and y are always f32; half-precision weights compute in halves between ------------------

function enter(g: GraphBuilder, inputs: number, kind: GpuMatrix['kind']): string {
  const x = g.input('x', 'float32', ['tokens', inputs]);
  return kind === 'float16' ? g.op('Cast', [x], { to: int(DATA_TYPE.float16) }) : x;
}

/** f32 graphs end in the node that makes y; halves need one more, the cast. */
const lastName = (kind: GpuMatrix['kind']): string | undefined => (kind === 'float16' ? undefined : 'y');

function leave(g: GraphBuilder, value: string, outputs: number, kind: GpuMatrix['kind']): void {
  if (kind === 'float16') g.op('Cast', [value], { to: int(DATA_TYPE.float32) }, 'y');
  g.output('y', 'float32', ['tokens', outputs]);
}

function biasOf(g: GraphBuilder, bias: Float32Array, w: GpuMatrix): string {
  const padded = new Float32Array(w.outputs);
  padded.set(bias);
  return g.constant(w.kind === 'float16' ? 'float16' : 'float32', [...padded]);
}
