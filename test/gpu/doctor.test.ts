import { describe, expect, it } from 'vitest';

import { cudaInstructions, runDoctor } from '../../src/gpu/doctor.js';
import type { ProviderProbe } from '../../src/gpu/providers.js';
import { webgpuMissing } from './adapter.js';

const missing = await webgpuMissing();

const absent = (missingLibraries: string[]): ProviderProbe => ({
  provider: 'cuda',
  ok: false,
  reason: 'no',
  missingLibraries,
  report: null,
});

describe('runDoctor', () => {
  it('reports the machine, the kernels and every provider', async () => {
    const steps: string[] = [];
    const report = await runDoctor({
      measureGpu: false,
      memoryBandwidth: () => Promise.resolve(12.5),
      onStep: (step) => steps.push(step),
    });
    expect(report.node).toBe(process.version);
    expect(report.cores).toBeGreaterThan(0);
    expect(report.availableMemoryBytes).toBeLessThanOrEqual(report.memoryBytes);
    expect(report.kernels.name).toMatch(/native|wasm|reference/);
    expect(report.onnxruntime).toEqual({
      version: '1.30.0',
      installed: true,
      add: 'npm install onnxruntime-node@1.30.0 --ignore-scripts',
    });
    expect(report.memoryBandwidthGBps).toBe(12.5);
    expect(report.providers.map((p) => p.provider)).toContain('webgpu');
    for (const { reason } of report.providers) expect(reason).not.toBe('');
    const webgpu = report.providers.find((p) => p.provider === 'webgpu')!;
    expect(webgpu.ok).toBe(missing === null);
    expect(steps.at(-1)).toBe('memory bandwidth');
  });
});

describe.skipIf(process.platform !== 'linux' || process.arch !== 'x64')('cudaInstructions', () => {
  it('says nothing when CUDA works', () => {
    expect(cudaInstructions({ ...absent([]), ok: true })).toEqual([]);
  });

  it('names the driver, the provider files and the libraries, each in its own step', () => {
    const steps = cudaInstructions(
      absent(['libonnxruntime_providers_cuda.so', 'libcudnn.so.9', 'libcublas.so.12', 'libcuda.so.1']),
    );
    expect(steps).toHaveLength(3);
    expect(steps[0]).toMatch(/driver/);
    expect(steps[1]).toMatch(/node .*script\/install\.js --onnxruntime-node-install=true/);
    expect(steps[2]).toMatch(/libcudnn\.so\.9, libcublas\.so\.12/);
  });

  it('repeats the reason when nothing is missing', () => {
    expect(cudaInstructions(absent([]))).toEqual(['Everything was found, but: no']);
  });
});
