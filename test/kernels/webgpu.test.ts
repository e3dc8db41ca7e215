import { afterAll, describe, vi } from 'vitest';
import { reason } from '../gpu/webgpu/adapter.js';
import { conformance } from './conformance.js';
import { WEBGPU_LACKS, WebGpuKernels } from './webgpu-kernels.js';

// A software adapter compiles a kernel in a second or two.
vi.setConfig({ testTimeout: 120_000 });

describe.skipIf(reason !== null)(`WGSL kernels${reason === null ? '' : ` (skipped: ${reason})`}`, () => {
  const kernels = reason === null ? new WebGpuKernels() : null;
  afterAll(() => kernels?.close());
  conformance({
    name: 'webgpu',
    create: (memory) => kernels!.create(memory),
    lacks: WEBGPU_LACKS,
    gpu: true,
  });
});
