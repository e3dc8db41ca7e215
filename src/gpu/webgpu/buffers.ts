/** Memory on the GPU: buffers, weights on their way there, results on their way back. */
import { HybridError } from '../../errors.js';
import { BufferUsage, MAP_READ } from './dawn.js';
import type { GpuDevice } from './device.js';

/** Weights travel in pieces of this size: the CPU never holds a second copy of more. */
const PIECE_BYTES = 8 * 2 ** 20;
/** Dawn keeps what was written until the GPU has taken it: wait for that after so many pieces. */
const PIECES_UNDER_WAY = 4;

/**
 * A storage buffer, zero. It can be copied from and to.
 * @param bytes rounded up to a multiple of 4
 * @throws HybridError OUT_OF_MEMORY when the device has no room
 */
export const createStorage = (gpu: GpuDevice, label: string, bytes: number): Promise<GPUBuffer> =>
  createBuffer(gpu, label, bytes, BufferUsage.STORAGE | BufferUsage.COPY_DST | BufferUsage.COPY_SRC);

/** As createStorage; dispatches can take their work-groups from it too. */
export const createIndirect = (gpu: GpuDevice, label: string, bytes: number): Promise<GPUBuffer> =>
  createBuffer(
    gpu,
    label,
    bytes,
    BufferUsage.STORAGE | BufferUsage.INDIRECT | BufferUsage.COPY_DST | BufferUsage.COPY_SRC,
  );

/** A uniform buffer with these words (its size rounded up to 16 bytes); it can be written again. */
export async function createUniform(
  gpu: GpuDevice,
  label: string,
  words: Uint32Array | readonly number[],
): Promise<GPUBuffer> {
  const bytes = Math.ceil(words.length / 4) * 16;
  const buffer = await createBuffer(gpu, label, bytes, BufferUsage.UNIFORM | BufferUsage.COPY_DST);
  gpu.raw.queue.writeBuffer(buffer, 0, Uint32Array.from(words));
  return buffer;
}

/** A buffer for any use. @throws HybridError OUT_OF_MEMORY when the device has no room */
export async function createBuffer(
  gpu: GpuDevice,
  label: string,
  bytes: number,
  usage: number,
): Promise<GPUBuffer> {
  gpu.check();
  const size = Math.max(4, Math.ceil(bytes / 4) * 4);
  const full = (cause?: unknown): HybridError =>
    new HybridError('OUT_OF_MEMORY', `${gpu.facts.name} has no room for ${label} (${size} bytes)`, {
      cause,
      hint: 'Lower --gpu-memory, the context or the number of sequences.',
    });
  if (size > gpu.facts.maxBufferBytes) throw full();
  gpu.raw.pushErrorScope('validation');
  gpu.raw.pushErrorScope('out-of-memory');
  let buffer: GPUBuffer | undefined;
  let cause: unknown;
  try {
    buffer = gpu.raw.createBuffer({ label, size, usage });
  } catch (error) {
    cause = error;
  }
  const scopes = [gpu.raw.popErrorScope(), gpu.raw.popErrorScope()];
  const [memory, invalid] = await gpu.waitFor(Promise.all(scopes));
  if (buffer && !memory && !invalid) {
    gpu.allocatedBytes += size;
    return buffer;
  }
  buffer?.destroy();
  if (memory || !invalid) throw full(memory ?? cause);
  throw new HybridError('GPU_FAILED', `${label}: ${invalid.message}`, { cause: invalid });
}

/** Gives a buffer's memory back. */
export function destroyBuffer(gpu: GpuDevice, buffer: GPUBuffer): void {
  gpu.allocatedBytes -= buffer.size;
  buffer.destroy();
}

/** Fills `piece` with the bytes from `offset` on of whatever is being uploaded. */
export type ReadPiece = (piece: Uint8Array, offset: number) => void;

/**
 * Fills a buffer from `read`, piece after piece.
 * @param bytes a multiple of 4
 * @param unit pieces are whole multiples of it (rows that are gathered one by one); a multiple of 4
 */
export async function upload(
  gpu: GpuDevice,
  buffer: GPUBuffer,
  bytes: number,
  read: ReadPiece,
  unit = 4,
): Promise<void> {
  const most = Math.max(unit, Math.floor(PIECE_BYTES / unit) * unit);
  const piece = new Uint8Array(Math.min(most, bytes));
  for (let offset = 0, under = 1; offset < bytes; offset += most, under++) {
    gpu.check();
    const part = piece.subarray(0, Math.min(most, bytes - offset));
    read(part, offset);
    gpu.raw.queue.writeBuffer(buffer, offset, part);
    if (under % PIECES_UNDER_WAY === 0) await gpu.finished();
  }
  await gpu.finished();
}

/** A storage buffer with these values. */
export async function createFrom(
  gpu: GpuDevice,
  label: string,
  values: Float32Array | Uint32Array | Uint8Array,
): Promise<GPUBuffer> {
  const buffer = await createStorage(gpu, label, values.byteLength);
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  await upload(gpu, buffer, buffer.size, (piece, offset) => {
    piece.fill(0);
    piece.set(bytes.subarray(offset, offset + piece.length));
  });
  return buffer;
}

/** A way back for up to `bytes` at a time: copy into `staging` at the end of a step, then `read`. */
export class Readback {
  private constructor(
    private readonly gpu: GpuDevice,
    readonly staging: GPUBuffer,
  ) {}

  static async create(gpu: GpuDevice, label: string, bytes: number): Promise<Readback> {
    const usage = BufferUsage.MAP_READ | BufferUsage.COPY_DST;
    return new Readback(gpu, await createBuffer(gpu, label, bytes, usage));
  }

  /** Adds the copy of `bytes` (a multiple of 4) to a step. */
  copy(encoder: GPUCommandEncoder, source: GPUBuffer, offset: number, bytes: number, to = 0): void {
    encoder.copyBufferToBuffer(source, offset, this.staging, to, bytes);
  }

  /** The bytes, once the steps submitted before are done: a copy. One read at a time. */
  async read(bytes: number): Promise<Uint8Array> {
    await this.gpu.waitFor(this.staging.mapAsync(MAP_READ, 0, bytes));
    const copy = new Uint8Array(this.staging.getMappedRange(0, bytes)).slice();
    this.staging.unmap();
    return copy;
  }

  destroy(): void {
    destroyBuffer(this.gpu, this.staging);
  }
}

/** One buffer's content, outside of any loop. */
export async function readBuffer(
  gpu: GpuDevice,
  buffer: GPUBuffer,
  bytes = buffer.size,
  offset = 0,
): Promise<Uint8Array> {
  const back = await Readback.create(gpu, 'readback', bytes);
  gpu.submit((encoder) => back.copy(encoder, buffer, offset, bytes));
  const content = await back.read(bytes);
  back.destroy();
  return content;
}
