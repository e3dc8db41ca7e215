/** A step as pieces: operations on all its rows, or on those whose outputs are wanted. */
import type { GpuDevice } from './device.js';
import type { BufferPart, KernelText, Workgroups } from './kernel.js';
import { operation, type Operation } from './operation.js';

export interface Piece {
  operation: Operation;
  of: 'rows' | 'outputs';
}

/** An operation of one dispatch. @param workgroups for so many rows */
export async function oneDispatch(
  gpu: GpuDevice,
  text: KernelText,
  buffers: readonly BufferPart[],
  workgroups: (rows: number) => Workgroups,
  reads?: Operation['reads'],
): Promise<Operation> {
  const kernel = await gpu.kernel(text);
  const bindings = kernel.bind(...buffers);
  return operation(text.name, (rows) => [{ kernel, bindings, workgroups: workgroups(rows) }], reads);
}
