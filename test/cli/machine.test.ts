import { expect, it } from 'vitest';
import { baseConfig, writeModel } from '../helpers/any-model.js';
import { cli, json } from './command.js';

it('doctor reports the machine, the kernels and every provider tried', async () => {
  const report = await json<{
    cores: number;
    kernels: { name: string };
    providers: { provider: string; ok: boolean; reason: string }[];
  }>(['doctor']);
  expect(report.code).toBe(0);
  expect(report.cores).toBeGreaterThan(0);
  expect(report.kernels.name).toMatch(/^(native|wasm) \(/);
  for (const provider of report.providers) expect(provider.reason).not.toBe('');
});

it('estimate says what a budget holds, and a larger budget is never slower', async () => {
  const given = ['--cpu-bandwidth', '30', '--gpu-bandwidth', '900', '--crossing', '5'];
  const estimates = await Promise.all(
    ['0', '256KiB', '4MiB'].map((budget) =>
      json<{ hybrid: { tokensPerSecond: number; gpuBytes: number }; cpuOnly: { tokensPerSecond: number } }>([
        ...['estimate', '--gpu-memory', budget, ...given],
      ]),
    ),
  );
  expect(estimates[0].hybrid.gpuBytes).toBe(0);
  expect(estimates[1].hybrid.gpuBytes).toBeLessThanOrEqual(256 * 1024);
  const speeds = estimates.map((e) => e.hybrid.tokensPerSecond);
  expect(speeds).toEqual([...speeds].sort((a, b) => a - b));
  expect(speeds[2]).toBeGreaterThan(estimates[2].cpuOnly.tokensPerSecond);
});

it('estimate of a mixture counts the chosen experts, and no GPU is asked for its speed', async () => {
  const fields = { num_local_experts: 8, intermediate_size: 2048 };
  const speeds = [];
  for (const active of [1, 8]) {
    const folder = writeModel(baseConfig('MixtralForCausalLM', { ...fields, num_experts_per_tok: active }));
    const args = ['estimate', folder, '--gpu-memory', '1MiB', '--cpu-bandwidth', '1'];
    const result = await json<{ hardware: object; cpuOnly: { tokensPerSecond: number } }>(args);
    expect(result).toMatchObject({ code: 0, hardware: { cpuBytesPerSecond: 1e9 } });
    expect(Object.keys(result.hardware)).toEqual(['cpuBytesPerSecond']);
    speeds.push(result.cpuOnly.tokensPerSecond);
  }
  expect(speeds[0]).toBeGreaterThan(3 * speeds[1]);
});

it('estimate wants a budget that is a size', async () => {
  expect(await json(['estimate'])).toMatchObject({ code: 2, error: { code: 'USAGE' } });
  expect(await json(['estimate', '--gpu-memory', 'much'])).toMatchObject({
    code: 2,
    error: { code: 'USAGE' },
  });
});

it('bench --kernels measures every backend beside the sequential read', async () => {
  const result = await json<{
    kernels: { kernels: string; case: string; gbPerSecond: number; shareOfRead: number }[];
  }>([...['bench', '--kernels', '--threads', '1', '--quant', 'q4']]);
  expect(result.code).toBe(0);
  expect(new Set(result.kernels.map((row) => row.case))).toContain('records');
  expect(result.kernels.some((row) => row.kernels.startsWith('wasm'))).toBe(true);
  for (const row of result.kernels) {
    expect(row.gbPerSecond).toBeGreaterThan(0);
    if (row.case === 'read') expect(row.shareOfRead).toBe(1);
  }
}, 180_000);

it('bench --kernels refuses a backend that does not exist', async () => {
  const { code, stderr } = await cli(['bench', '--kernels', 'cuda']);
  expect(code).toBe(2);
  expect(stderr).toContain('--kernels is "cuda"');
});
