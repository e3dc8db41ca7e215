import { expect, test } from 'vitest';
import { benchKernels, type KernelBenchRow } from '../../src/bench/kernels.js';
import { UsageError } from '../../src/errors.js';
import { selectKernels } from '../../src/kernels/select.js';

const MIB = 2 ** 20;

test('every case gives a rate, on two threads', async () => {
  const seen: KernelBenchRow[] = [];
  const rows = await benchKernels(selectKernels('wasm'), {
    threads: 2,
    formats: ['q8', 'q4'],
    cols: 1024,
    bytesPerThread: 64 * MIB,
    timeMs: 1,
    onProgress: (row) => seen.push(row),
  });
  const weights = ['dot', 'dotLists', 'sumLists', 'records'];
  expect(rows.map((row) => row.case)).toEqual(['read', ...weights, 'attention', ...weights]);
  expect(seen).toEqual(rows);
  for (const row of rows) {
    expect(row.gbPerSecond).toBeGreaterThan(0.01);
    expect(row.samples).toBeGreaterThanOrEqual(10);
    expect(row.threads).toBe(2);
  }
});

test('parts that do not fit one arena are refused', async () => {
  await expect(
    benchKernels(selectKernels('reference'), { threads: 8, bytesPerThread: 1024 * MIB }),
  ).rejects.toThrow(UsageError);
});
