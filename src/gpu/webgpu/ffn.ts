/** FFNs (plain form, every neuron). */
import type { WeightFormat } from '../../kernels/layout.js';
import type { ActivationKind } from '../../kernels/kernels.js';
import { createStorage } from './buffers.js';
import type { GpuDevice } from './device.js';
import { rowDot } from './kernels/row-dot.js';
import { rowValue } from './kernels/text.js';
import type { Operation } from './operation.js';
import { oneDispatch } from './piece.js';
import type { GpuRows } from './rows.js';
import type { Tuning } from './tuning.js';

export interface FfnParts {
  gate: GpuRows;
  records: GpuRows;
  downOffset: number;
  gated: boolean;
  gateBias: GPUBuffer | null;
  upBias: GPUBuffer | null;
}

export class FfnScratch {
  private constructor(
    readonly gates: GPUBuffer,
    readonly ups: GPUBuffer,
  ) {}

  static async create(gpu: GpuDevice, T: number, neurons: number): Promise<FfnScratch> {
    return new FfnScratch(
      await createStorage(gpu, 'gates', T * neurons * 4),
      await createStorage(gpu, 'ups', T * neurons * 4),
    );
  }
}

export async function layerFfn(
  gpu: GpuDevice,
  tuning: Tuning,
  { gate, records, downOffset, gated, gateBias, upBias }: FfnParts,
  activation: { kind: ActivationKind; threshold: number },
  { gates, ups }: FfnScratch,
  { x, step, out, outStride }: { x: GPUBuffer; step: GPUBuffer; out: GPUBuffer; outStride: number },
): Promise<Operation[]> {
  const n = gate.rows;
  const list = [
    await rowDot(
      gpu,
      tuning,
      gate,
      { outStride: n },
      { x, step, out: gates, ...(gateBias ? { bias: gateBias } : {}) },
    ),
  ];
  if (gated)
    list.push(
      await rowDot(
        gpu,
        tuning,
        records,
        { outStride: n },
        { x, step, out: ups, ...(upBias ? { bias: upBias } : {}) },
      ),
    );
  const text = {
    name: 'slow down',
    constants: {
      N: n,
      COLS: records.cols,
      STRIDE: records.stride / 4,
      OS: outStride,
      OFFSET: downOffset / 4,
      T: `${activation.threshold}f`,
    },
    bindings: [
      { name: 'w', access: 'read', type: 'array<u32>' },
      { name: 'gates', access: 'read', type: 'array<f32>' },
      { name: 'ups', access: 'read', type: 'array<f32>' },
      { name: 'out', access: 'write', type: 'array<f32>' },
    ] as const,
    code: `${rowValue('w', records.format as WeightFormat, records.cols)}
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) g: vec3u) {
  if (g.x >= COLS) { return; }
  var sum = 0.0;
  for (var n = 0u; n < N; n++) {
    let a = gates[g.y * N + n];
    if (a > T) { sum += a * ${gated ? 'ups[g.y * N + n]' : '1.0'} * value(n * STRIDE + OFFSET, g.x); }
  }
  out[g.y * OS + g.x] = sum;
}`,
  };
  list.push(
    await oneDispatch(gpu, text, [records.parts[0].buffer, gates, ups, out], (rows) => [
      Math.ceil(records.cols / 64),
      rows,
    ]),
  );
  return list;
}
