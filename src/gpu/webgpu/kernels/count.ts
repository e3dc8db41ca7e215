/** What a layer's FFN did for each token, for the statistics: one work-group a token. */
import { COUNTS } from '../../../engine/gpu-step.js';
import type { KernelText } from '../kernel.js';

export interface CountShape {
  /** Floats of x1 from one token to the next. */
  stride: number;
  /** Neurons of a token where it has no list. */
  neurons: number;
  listed: boolean;
  /** Every up row is read, also of neurons that are zero. */
  dense: boolean;
}

const WORKGROUP = 64;

/** Bindings: x1, the lists' counts where there are any, out: u32 [T][COUNTS]. Dispatch: rows. */
export function countKernel({ stride, neurons, listed, dense }: CountShape): KernelText {
  return {
    name: 'count',
    constants: { STRIDE: stride, NEURONS: neurons, WG: WORKGROUP, COUNTS },
    bindings: [
      { name: 'x1', access: 'read', type: 'array<u32>' },
      ...(listed ? ([{ name: 'counts', access: 'read', type: 'array<u32>' }] as const) : []),
      { name: 'out', access: 'write', type: 'array<u32>' },
    ],
    code: /* wgsl */ `
var<workgroup> nonzero: atomic<u32>;
@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let t = group.x;
  let n = ${listed ? 'counts[t]' : 'NEURONS'};
  var mine = 0u;
  // Bits without the sign: -0 is zero too.
  for (var i = lane; i < n; i += WG) { mine += select(0u, 1u, (x1[t * STRIDE + i] & 0x7fffffffu) != 0u); }
  atomicAdd(&nonzero, mine);
  workgroupBarrier();
  if (lane == 0u) {
    let all = atomicLoad(&nonzero);
    out[t * COUNTS] = n;
    out[t * COUNTS + 1u] = ${dense ? 'n' : 'all'};
    out[t * COUNTS + 2u] = all;
  }
}`,
  };
}
