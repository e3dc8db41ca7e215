/** A device and its ends: kernels, errors with lines, memory, being lost, being closed. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  createFrom,
  createStorage,
  createUniform,
  destroyBuffer,
  readBuffer,
} from '../../../src/gpu/webgpu/buffers.js';
import { GpuDevice } from '../../../src/gpu/webgpu/device.js';
import { encodePass, type KernelText } from '../../../src/gpu/webgpu/kernel.js';
import { reason } from './adapter.js';

const DOUBLE: KernelText = {
  name: 'double',
  constants: { N: 5, FACTOR: 2.5, SIZE: 64 },
  bindings: [
    { name: 'x', access: 'read', type: 'array<f32>' },
    { name: 'shift', access: 'uniform', type: 'vec4<u32>' },
    { name: 'out', access: 'write', type: 'array<f32>' },
  ],
  code: `@compute @workgroup_size(SIZE) fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    if (at.x >= N) { return; }
    out[at.x] = FACTOR * x[at.x] + f32(shift.x);
  }`,
};

describe.skipIf(reason !== null)(`a WebGPU device${reason === null ? '' : ` (skipped: ${reason})`}`, () => {
  let gpu: GpuDevice;
  beforeAll(async () => void (gpu = await GpuDevice.open()));
  afterAll(() => gpu.close());

  it('says what it is and how much it takes', () => {
    expect(gpu.facts.name).not.toBe('');
    expect(gpu.facts.maxBindingBytes).toBeGreaterThanOrEqual(2 ** 27);
    expect(gpu.facts.storageBuffersPerKernel).toBeGreaterThanOrEqual(8);
  });

  it('computes what the text says with its constants', async () => {
    const kernel = await gpu.kernel(DOUBLE);
    const x = await createFrom(gpu, 'x', Float32Array.of(1, 2, 3, 4, 5));
    const shift = await createUniform(gpu, 'shift', [7]);
    const out = await createStorage(gpu, 'out', 24);
    gpu.submit((encoder) =>
      encodePass(encoder, [{ kernel, bindings: kernel.bind(x, shift, out), workgroups: [1] }]),
    );
    const values = new Float32Array((await readBuffer(gpu, out)).buffer);
    expect([...values]).toEqual([9.5, 12, 14.5, 17, 19.5, 0]);
  });

  it('compiles a text once', async () => {
    expect(await gpu.kernel({ ...DOUBLE })).toBe(await gpu.kernel(DOUBLE));
    expect(await gpu.kernel({ ...DOUBLE, constants: { ...DOUBLE.constants, N: 4 } })).not.toBe(
      await gpu.kernel(DOUBLE),
    );
  });

  it('names the line that does not compile, and goes on', async () => {
    const broken = { ...DOUBLE, code: DOUBLE.code.replace('at.x >= N', 'at.x >= 1.5') };
    await expect(gpu.kernel(broken)).rejects.toMatchObject({
      code: 'GPU_FAILED',
      message: expect.stringMatching(/kernel double does not compile.*line 8: .*at\.x >= 1\.5/s) as string,
    });
    await gpu.finished();
  });

  it('counts the bytes of its buffers and refuses what cannot fit', async () => {
    const before = gpu.allocatedBytes;
    const buffer = await createStorage(gpu, 'buffer', 1001);
    expect(gpu.allocatedBytes - before).toBe(1004);
    destroyBuffer(gpu, buffer);
    expect(gpu.allocatedBytes).toBe(before);
    await expect(createStorage(gpu, 'far too much', 2 ** 45)).rejects.toMatchObject({
      code: 'OUT_OF_MEMORY',
    });
    await gpu.finished();
  });
});

describe.skipIf(reason !== null)('the end of a WebGPU device', () => {
  it('refuses work after it was closed', async () => {
    const gpu = await GpuDevice.open();
    await gpu.close();
    await gpu.close();
    expect(() => gpu.submit(() => {})).toThrow(expect.objectContaining({ code: 'CLOSED' }));
  });

  it('tells everybody who waits when the device is lost', async () => {
    const gpu = await GpuDevice.open();
    const out = await createStorage(gpu, 'out', 64);
    const reading = readBuffer(gpu, out);
    gpu.raw.destroy(); // as a driver would: nobody called close
    await expect(reading).rejects.toMatchObject({ code: 'GPU_FAILED' });
    expect(await gpu.lost).toMatchObject({
      code: 'GPU_FAILED',
      message: expect.stringContaining('lost') as string,
    });
    expect(() => gpu.submit(() => {})).toThrow(expect.objectContaining({ code: 'GPU_FAILED' }));
    await gpu.close();
  });

  it('a name that no adapter has is an error that lists those there are', async () => {
    await expect(GpuDevice.open({ name: 'no such adapter' })).rejects.toMatchObject({
      code: 'GPU_UNAVAILABLE',
      message: expect.stringMatching(/called "no such adapter", found \w/) as string,
    });
  });
});
