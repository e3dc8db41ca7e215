/** The proof run of WebGPU: a kernel of ours on the adapter, its numbers compared; then what crossings and weights cost. */
import { median } from '../../evaluate/paired.js';
import { rowBytes } from '../../kernels/layout.js';
import type { ProbeReport } from '../providers.js';
import { createFrom, createStorage, createUniform, Readback } from './buffers.js';
import { GpuDevice } from './device.js';
import { encodePass, type Dispatch, type KernelText } from './kernel.js';
import { rowDot } from './kernels/row-dot.js';
import { cutRows, vectorStride, type GpuRows } from './rows.js';
import { tuningFor } from './tuning.js';

/** Runs whose median is the crossing; the first ones compile shaders and are left out. */
const WARM_RUNS = 3;
const TIMED_RUNS = 15;
/** So many dispatches more tell what one costs. */
const MORE_DISPATCHES = 100;
/** Bandwidth is measured on 4-bit rows, grown until a run is long beside the crossing. */
const BANDWIDTH_COLS = 8192;
const BANDWIDTH_ROWS = [128, 1024, 4096, 16_384];
const LONG_RUN_CROSSINGS = 20;
const BANDWIDTH_RUNS = 5;
const WIDTH = 32;

const RELU: KernelText = {
  name: 'proof',
  constants: { WIDTH },
  bindings: [
    { name: 'x', access: 'read', type: 'array<f32>' },
    { name: 'out', access: 'write', type: 'array<f32>' },
  ],
  code: '@compute @workgroup_size(WIDTH) fn main(@builtin(local_invocation_index) i: u32) { out[i] = max(x[i], 0.0); }',
};

/** @throws HybridError GPU_UNAVAILABLE, GPU_FAILED; Error when the numbers are wrong */
export async function probeWebGpu(measure: boolean): Promise<ProbeReport> {
  const began = performance.now();
  const gpu = await GpuDevice.open();
  try {
    const kernel = await gpu.kernel(RELU);
    const input = Float32Array.from({ length: WIDTH }, (_, i) => i - WIDTH / 2);
    const x = await createFrom(gpu, 'x', input);
    const out = await createStorage(gpu, 'out', WIDTH * 4);
    const back = await Readback.create(gpu, 'proof', WIDTH * 4);
    const proof: Dispatch = { kernel, bindings: kernel.bind(x, out), workgroups: [1] };
    const createMs = performance.now() - began;
    /** A crossing as a step has it: numbers in, dispatches, numbers back. */
    const cross = async (dispatches: number): Promise<number> => {
      const start = performance.now();
      gpu.raw.queue.writeBuffer(x, 0, input);
      gpu.submit((encoder) => {
        encodePass(encoder, Array<Dispatch>(dispatches).fill(proof));
        back.copy(encoder, out, 0, WIDTH * 4);
      });
      const values = new Float32Array((await back.read(WIDTH * 4)).buffer);
      const took = performance.now() - start;
      if (input.some((v, i) => values[i] !== Math.max(v, 0)))
        throw new Error('the proof run gave wrong numbers');
      return took;
    };
    for (let i = 0; i < WARM_RUNS; i++) await cross(1 + MORE_DISPATCHES);
    const [one, many] = [await medianOf(() => cross(1)), await medianOf(() => cross(1 + MORE_DISPATCHES))];
    return {
      nodes: [],
      device: gpu.facts.name,
      software: gpu.facts.software,
      createMs,
      crossingUs: one * 1000,
      dispatchUs: (Math.max(0, many - one) * 1000) / MORE_DISPATCHES,
      half: gpu.facts.halves,
      packed: true,
      bytesPerSecond: measure ? await bandwidth(gpu, one) : null,
    };
  } finally {
    await gpu.close();
  }
}

async function medianOf(run: () => Promise<number>): Promise<number> {
  const times: number[] = [];
  for (let i = 0; i < TIMED_RUNS; i++) times.push(await run());
  return median(times);
}

/** Weight bytes a second of a product with one vector, the crossing taken off. */
async function bandwidth(gpu: GpuDevice, crossingMs: number): Promise<number> {
  let bytesPerSecond = 0;
  const stride = rowBytes('q4', BANDWIDTH_COLS);
  const x = await createStorage(gpu, 'x', vectorStride(BANDWIDTH_COLS) * 4);
  const step = await createUniform(gpu, 'step', [1]);
  const back = await Readback.create(gpu, 'bandwidth', 4);
  for (const rows of BANDWIDTH_ROWS) {
    const shape = { format: 'q4' as const, rows, cols: BANDWIDTH_COLS, stride };
    const parts = [];
    for (const [first, count] of cutRows(
      shape,
      Math.min(gpu.facts.maxBindingBytes, gpu.facts.maxBufferBytes),
    ))
      parts.push({ buffer: await createStorage(gpu, 'weights', count * stride), first, rows: count });
    const matrix: GpuRows = { ...shape, parts };
    const out = await createStorage(gpu, 'out', rows * 4);
    const product = await rowDot(gpu, tuningFor(gpu.facts), matrix, { outStride: rows }, { x, step, out });
    let fastest = Infinity;
    for (let i = 0; i <= BANDWIDTH_RUNS; i++) {
      const start = performance.now();
      gpu.submit((encoder) => {
        encodePass(encoder, product.dispatches(1));
        back.copy(encoder, out, 0, 4);
      });
      await back.read(4);
      if (i > 0) fastest = Math.min(fastest, performance.now() - start);
    }
    bytesPerSecond = (rows * stride) / (Math.max(fastest - crossingMs, fastest / 10) / 1000);
    if (fastest > LONG_RUN_CROSSINGS * crossingMs) break;
  }
  return bytesPerSecond;
}
