/**
 * The WGSL kernels as Kernels over an arena, for the conformance suite: each call goes to a worker that owns the
 * device, uploads what the pointers point at, runs the kernel and writes back, while this thread waits. Vectors in
 * Q8A form are multiplied as the floats they stand for: activations are not rounded on a GPU.
 */
import { Worker } from 'node:worker_threads';

import type { Kernels } from '../../src/kernels/kernels.js';
import { KERNEL_NAMES, type KernelName } from '../../src/kernels/table.js';
import { createReferenceKernels } from '../../src/kernels/reference.js';

/** What no WGSL kernel does, and why; the bridge has all others. */
export const WEBGPU_LACKS: Partial<Record<KernelName, string>> = {
  quantize: 'activations are not rounded on a GPU',
  quantizeRows: 'rows are made on the CPU',
  softmax: 'a part of attention there',
  readProbe: 'measures the CPU',
};
const BRIDGED = KERNEL_NAMES.filter((name) => !(name in WEBGPU_LACKS));

const FAILED = 2;
const MESSAGE_BYTES = 4096;
/** A pipeline of a software adapter takes a second on a busy machine. */
const PATIENCE_MS = 120_000;

export class WebGpuKernels {
  private readonly control = new SharedArrayBuffer(8 + MESSAGE_BYTES);
  private readonly worker: Worker;

  constructor() {
    this.worker = new Worker(new URL('./webgpu-worker.mjs', import.meta.url), { workerData: this.control });
    this.worker.unref();
  }

  create(memory: WebAssembly.Memory): Kernels {
    const call = (name: string, args: unknown[]): number => this.call(memory, name, args);
    return {
      ...createReferenceKernels(memory),
      name: 'webgpu',
      ...Object.fromEntries(BRIDGED.map((name) => [name, (...args: unknown[]) => call(name, args)])),
    };
  }

  async close(): Promise<void> {
    const ended = new Promise((resolve) => this.worker.once('exit', resolve));
    this.worker.postMessage(null);
    await ended;
  }

  private call(memory: WebAssembly.Memory, name: string, args: unknown[]): number {
    const state = new Int32Array(this.control, 0, 2);
    Atomics.store(state, 0, 0);
    this.worker.postMessage({ memory, name, args });
    if (Atomics.wait(state, 0, 0, PATIENCE_MS) === 'timed-out') throw new Error(`${name}: no answer`);
    if (state[0] !== FAILED) return state[1];
    const message = Buffer.from(new Uint8Array(this.control, 8, state[1]));
    throw new Error(`${name}: ${message.toString('utf8')}`);
  }
}
