/** Scores of a plain FFN's predictor of contributions: score = |sigma(score + b)|, in place. */
import type { ActivationKind } from '../../../kernels/kernels.js';
import type { KernelText } from '../kernel.js';
import { activationText } from './activation.js';

export interface ContributionShape {
  kind: ActivationKind;
  /** Floats from one row's scores to the next; scores of a row. */
  stride: number;
  scored: number;
  /** The neuron of the first score: biases are by neuron. */
  first: number;
  gateBias: boolean;
}

/** Bindings: scores, and the bias of fc1 where there is one. Dispatch: scored / 64, rows. */
export function contributionKernel(shape: ContributionShape): KernelText {
  const { kind, gateBias } = shape;
  return {
    name: `contribution ${kind}`,
    constants: { STRIDE: shape.stride, SCORED: shape.scored, FIRST: shape.first, WG: 64 },
    bindings: [
      { name: 'scores', access: 'write', type: 'array<f32>' },
      ...(gateBias ? [{ name: 'gate_bias', access: 'read', type: 'array<f32>' } as const] : []),
    ],
    code: /* wgsl */ `
${activationText(kind)}
@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= SCORED) { return; }
  let at = id.y * STRIDE + id.x;
  scores[at] = abs(sigma(scores[at]${gateBias ? ' + gate_bias[FIRST + id.x]' : ''}, 0.0));
}`,
  };
}
