/** What a layer's FFN did for each token, for the statistics: one work-group a token. */
import { Count, COUNTS } from '../../../engine/gpu-step.js';
import type { KernelText } from '../kernel.js';

export interface CountShape {
  /** Floats of x1 (and of scores) from one token to the next. */
  stride: number;
  neurons: number;
  /** Neurons are candidates of a list; `scored`: chosen from the gates of all of them, by scores of gate-up.ts. */
  listed: 'no' | 'candidates' | 'scored';
  /** Every up row is read, also of neurons that are zero. */
  dense: boolean;
}

const WORKGROUP = 64;

/** Bindings: x1; the lists' counts and the scores where there are any; out: u32 [T][COUNTS]. Dispatch: rows. */
export function countKernel({ stride, neurons, listed, dense }: CountShape): KernelText {
  const scored = listed === 'scored';
  const binding = (name: string) => ({ name, access: 'read', type: 'array<u32>' }) as const;
  return {
    name: 'count',
    constants: { STRIDE: stride, NEURONS: neurons, WG: WORKGROUP, COUNTS },
    bindings: [
      binding('x1'),
      ...(listed === 'no' ? [] : [binding('counts')]),
      ...(scored ? [binding('scores')] : []),
      { name: 'out', access: 'write', type: 'array<u32>' },
    ],
    code: /* wgsl */ `
var<workgroup> nonzero: atomic<u32>;
var<workgroup> scored: atomic<u32>;
@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let t = group.x;
  let n = ${listed === 'no' ? 'NEURONS' : 'counts[t]'};
  var mine = 0u;
  // Bits without the sign: -0 is zero too.
  for (var i = lane; i < n; i += WG) { mine += select(0u, 1u, (x1[t * STRIDE + i] & 0x7fffffffu) != 0u); }
  atomicAdd(&nonzero, mine);
  ${
    scored
      ? /* wgsl */ `var marked = 0u;
  for (var i = lane; i < NEURONS; i += WG) { marked += select(0u, 1u, scores[t * STRIDE + i] != 0u); }
  atomicAdd(&scored, marked);`
      : ''
  }
  workgroupBarrier();
  if (lane == 0u) {
    let nonzeros = atomicLoad(&nonzero);
    let at = t * COUNTS;
    out[at + ${Count.CANDIDATES}u] = n;
    out[at + ${Count.GATES}u] = ${scored ? 'NEURONS' : 'n'};
    out[at + ${Count.SCORED}u] = atomicLoad(&scored);
    out[at + ${Count.PASSED}u] = ${dense || scored ? 'n' : 'nonzeros'};
    out[at + ${Count.ACTIVE}u] = nonzeros;
  }
}`,
  };
}
