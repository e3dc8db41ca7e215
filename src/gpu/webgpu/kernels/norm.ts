/**
 * The residual stream between two sublayers, a work-group a row, all in one pass over it:
 *
 *     x   = [norm of the sum](x + scale * [norm of the branch](f + bias))
 *     out = [norm](x)
 *
 * Every part in brackets may be absent. In RMS norms n(v) = v / sqrt(mean(v^2) + eps) * w (+ b), in layer norms the
 * mean is subtracted first. Weights and biases lie in one buffer of the layer's vectors (vectors.ts);
 * the norm of out may be of the next layer's.
 */
import type { KernelText } from '../kernel.js';
import { float, REDUCTION } from './text.js';

/** Offsets in the vectors, in floats; bias -1: none. */
export interface NormWeights {
  weight: number;
  bias: number;
}

export interface NormShape {
  /** Values of a row. */
  width: number;
  /** Floats between rows of x, and where the row begins in them: heads of q and k stand inside a row. */
  stride: number;
  offset: number;
  epsilon: number;
  /** Subtract the mean. */
  layerNorm: boolean;
  /** Floats between rows of f and of out. */
  branchStride: number;
  outStride: number;
  /** Added to x; bias -1: none. */
  branch: { bias: number; scale: number; norm: NormWeights | null } | null;
  /** Added to x before everything else, inside the vectors; -1: none. */
  bias: number;
  sum: NormWeights | null;
  out: NormWeights | 'copy' | null;
  /** Row t of out is made of row output[t] of x and f (an offset in the step's words); -1: of row t. */
  gather: number;
  workgroup: number;
}

/** Bindings: step, vectors, the vectors of out's norm if it has one, x, f if there is a branch, out if wanted. */
export function normKernel(shape: NormShape): KernelText {
  const { branch, sum, out, gather, workgroup } = shape;
  const floats = (name: string, access: 'read' | 'write') => ({ name, access, type: 'array<f32>' });
  const each = (body: string): string => /* wgsl */ `
  for (var e = 0u; e < EACH; e++) {
    let i = lane + e * WG;
    if (i < WIDTH) { ${body} }
  }`;
  const norm = (v: string, { weight, bias }: NormWeights, vectors = 'vectors'): string => {
    const shift = bias < 0 ? '' : ` + ${vectors}[${bias}u + i]`;
    if (!shape.layerNorm) {
      return /* wgsl */ `
  { var sum = 0.0;${each(`sum += ${v}[e] * ${v}[e];`)}
    let factor = scaleFor(total(sum, lane) / f32(WIDTH));${each(
      `${v}[e] = ${v}[e] * factor * ${vectors}[${weight}u + i]${shift};`,
    )} }`;
    }
    // A mean of f32 sums is off by as many bits as it is larger than the distances from it: what it left is
    // subtracted too.
    return /* wgsl */ `
  { var sum = 0.0;${each(`sum += ${v}[e];`)}
    let about = total(sum, lane) / f32(WIDTH);
    sum = 0.0;${each(`${v}[e] -= about; sum += ${v}[e];`)}
    let mean = total(sum, lane) / f32(WIDTH);
    var squares = 0.0;${each(`let y = ${v}[e] - mean; squares += y * y;`)}
    let factor = scaleFor(total(squares, lane) / f32(WIDTH));${each(
      `${v}[e] = (${v}[e] - mean) * factor * ${vectors}[${weight}u + i]${shift};`,
    )} }`;
  };
  const add = (branch?.bias ?? -1) < 0 ? '' : ` + vectors[${branch!.bias}u + i]`;
  const shift = shape.bias < 0 ? '' : ` + vectors[${shape.bias}u + i]`;
  const row = gather < 0 ? 't' : `step[${gather}u + t]`;
  const changes = branch !== null || sum !== null || shape.bias >= 0;
  const code = /* wgsl */ `
${REDUCTION}
/** 1 / sqrt(square + eps); of what is no finite number NaN, which reaches the logits and is noticed there. */
fn scaleFor(square: f32) -> f32 {
  let bits = bitcast<u32>(square);
  if ((bits & 0x7f800000u) == 0x7f800000u) { return bitcast<f32>(bits | 0x7fc00000u); }
  return 1.0 / sqrt(square + EPSILON);
}
@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let t = group.x;
  let row = ${row};
  let at = row * STRIDE + OFFSET;
  var v: array<f32, EACH>;${each(`v[e] = x[at + i]${shift};`)}
${
  branch
    ? /* wgsl */ `  var b: array<f32, EACH>;${each(`b[e] = f[row * BRANCH_STRIDE + i]${add};`)}
${branch.norm ? norm('b', branch.norm) : ''}${each('v[e] += SCALE * b[e];')}`
    : ''
}
${sum ? norm('v', sum) : ''}
${changes || out === null ? each('x[at + i] = v[e];') : ''}
${out && out !== 'copy' ? norm('v', out, 'next') : ''}
${out ? each('out[t * OUT_STRIDE + i] = v[e];') : ''}
}`;
  return {
    name: 'norm',
    constants: {
      WIDTH: shape.width,
      STRIDE: shape.stride,
      OFFSET: shape.offset,
      BRANCH_STRIDE: shape.branchStride,
      OUT_STRIDE: shape.outStride,
      WG: workgroup,
      EACH: Math.ceil(shape.width / workgroup),
      EPSILON: float(shape.epsilon),
      SCALE: float(branch?.scale ?? 1),
    },
    bindings: [
      { name: 'step', access: 'read', type: 'array<u32>' },
      floats('vectors', 'read'),
      ...(out && out !== 'copy' ? [floats('next', 'read')] : []),
      floats('x', 'write'),
      ...(branch ? [floats('f', 'read')] : []),
      ...(out ? [floats('out', 'write')] : []),
    ],
    code,
  };
}
