/** A step as pieces: dispatches whose kernels and buffers are known when the model is loaded, their number not. */
import type { GpuDevice } from './device.js';
import type { BufferPart, Dispatch, KernelText, Workgroups } from './kernel.js';

export interface StepSize {
  rows: number;
  /** Rows whose logits are wanted. */
  outputs: number;
}

/** The dispatches of one part of a step. */
export type Piece = (size: StepSize) => readonly Dispatch[];

/** A piece of one dispatch. */
export async function piece(
  gpu: GpuDevice,
  text: KernelText,
  buffers: readonly BufferPart[],
  workgroups: (size: StepSize) => Workgroups,
): Promise<Piece> {
  const kernel = await gpu.kernel(text);
  const bindings = kernel.bind(...buffers);
  return (size) => [{ kernel, bindings, workgroups: workgroups(size) }];
}
