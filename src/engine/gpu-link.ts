/**
 * A lane's way to the GPU: rows of f32 into the mailbox, rows back out. Only lane 0 posts and takes; the
 * others learn of the results at the next barrier.
 */
import type { Ptr } from '../kernels/kernels.js';
import { beat } from './control.js';
import { GPU_TIMEOUT_MS, GpuMailbox, type GpuUnits } from './gpu-mailbox.js';
import type { GpuStepLayout } from './gpu-step.js';
import type { LaneContext } from './lane-context.js';

const NO_UNITS = { qkv: -1, o: -1, ffn: -1 };

export interface GpuLink {
  units: GpuUnits;
  mailbox: GpuMailbox;
  /** Number of the request under way. */
  request: number;
  /** Of a GPU that holds the whole model (gpu-step.ts); null before its first step. */
  stepLayout: GpuStepLayout | null;
}

export function openGpuLink(units: GpuUnits): GpuLink {
  const { buffer, byteOffset, layout, spareCore } = units.mailbox;
  return {
    units,
    mailbox: new GpuMailbox(buffer, byteOffset, layout, spareCore),
    request: 0,
    stepLayout: null,
  };
}

/** Unit numbers of layer l, -1 where the CPU does the work (all of it when the GPU is off for this job). */
export const gpuUnits = (context: LaneContext, l: number): { qkv: number; o: number; ffn: number } =>
  context.gpu ? context.gpu.units.layers[l] : NO_UNITS;

/** Start `unit` on n rows of `width` floats that stand `stride` bytes apart at `from`. */
export function postRows(
  context: LaneContext,
  unit: number,
  arena: number,
  from: Ptr,
  stride: number,
  n: number,
  width: number,
): void {
  const gpu = context.gpu!;
  const { f32 } = context.arenas[arena];
  for (let t = 0; t < n; t++) {
    const at = (from + t * stride) >>> 2;
    gpu.mailbox.x.set(f32.subarray(at, at + width), t * width);
  }
  gpu.request = gpu.mailbox.post(unit, n);
}

/** Wait for the unit under way and copy its n rows of `width` floats out. @throws RuntimeFault GPU_FAILED */
export function takeRows(
  context: LaneContext,
  arena: number,
  to: Ptr,
  stride: number,
  n: number,
  width: number,
): void {
  const { y } = awaitUnit(context);
  const { f32 } = context.arenas[arena];
  for (let t = 0; t < n; t++) f32.set(y.subarray(t * width, (t + 1) * width), (to + t * stride) >>> 2);
}

/** Wait for the unit under way and add its n rows of `width` floats. @throws RuntimeFault GPU_FAILED */
export function addRows(
  context: LaneContext,
  arena: number,
  to: Ptr,
  stride: number,
  n: number,
  width: number,
): void {
  const { y } = awaitUnit(context);
  const { f32 } = context.arenas[arena];
  for (let t = 0; t < n; t++) {
    const at = (to + t * stride) >>> 2;
    for (let i = 0; i < width; i++) f32[at + i] += y[t * width + i];
  }
}

/** Wait for the unit under way. @throws RuntimeFault GPU_FAILED */
export function awaitUnit(context: LaneContext): GpuMailbox {
  const { mailbox, request, units } = context.gpu!;
  mailbox.wait(request, units.timeoutMs ?? GPU_TIMEOUT_MS, () => beat(context.control));
  const { beginUs, endUs } = mailbox.lastTimes();
  context.timeline?.gpu('unit', beginUs, endUs);
  return mailbox;
}
