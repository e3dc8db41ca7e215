/** Scores of a predictor of contributions: score = |sigma(score + b) (up + b)|, in place. */
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
  up: boolean;
  upBias: boolean;
}

/** Bindings: scores, then what there is of: bias of the gate, scores of up, bias of up. Dispatch: scored / 64, rows. */
export function contributionKernel(shape: ContributionShape): KernelText {
  const { kind, gateBias, up, upBias } = shape;
  const floats = (name: string) => ({ name, access: 'read', type: 'array<f32>' }) as const;
  return {
    name: `contribution ${kind}`,
    constants: { STRIDE: shape.stride, SCORED: shape.scored, FIRST: shape.first, WG: 64 },
    bindings: [
      { name: 'scores', access: 'write', type: 'array<f32>' },
      ...(gateBias ? [floats('gate_bias')] : []),
      ...(up ? [floats('ups')] : []),
      ...(upBias ? [floats('up_bias')] : []),
    ],
    code: /* wgsl */ `
${activationText(kind)}
@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= SCORED) { return; }
  let at = id.y * STRIDE + id.x;
  let act = sigma(scores[at]${gateBias ? ' + gate_bias[FIRST + id.x]' : ''}, 0.0);
  scores[at] = abs(act${up ? ` * (ups[at]${upBias ? ' + up_bias[FIRST + id.x]' : ''})` : ''});
}`,
  };
}
