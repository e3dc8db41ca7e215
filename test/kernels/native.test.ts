/** The native kernels pass the conformance suite in every variant this CPU runs; they refuse what lies outside the arena. */
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { adviseHugePages, createNativeKernels, nativeStatus } from '../../src/kernels/native/loader.js';
import { conformance } from './conformance.js';

const root = fileURLToPath(new URL('../../', import.meta.url));
const compiledLoader = path.join(root, 'dist/kernels/native/loader.js');
const status = nativeStatus();

function arena(pages: number): WebAssembly.Memory {
  return new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
}

afterEach(() => {
  vi.unstubAllEnvs();
});

describe.skipIf(!status.available)(
  `native kernels${status.available ? '' : ` (skipped: ${status.reason})`}`,
  () => {
    for (const variant of status.variants ?? []) {
      describe(variant, () => {
        conformance({
          name: `native (${variant})`,
          create: (memory) => createNativeKernels(memory, variant),
        });
      });
    }

    test('the best variant is chosen, and named in reports', () => {
      expect(status.variant).toBe(status.variants![0]);
      expect(createNativeKernels(arena(1)).name).toBe(`native (${status.variant})`);
    });

    test('HYBRID_INFER_NATIVE_ISA chooses a variant; one this CPU lacks is refused with the list', () => {
      vi.stubEnv('HYBRID_INFER_NATIVE_ISA', 'scalar');
      expect(createNativeKernels(arena(1)).name).toBe('native (scalar)');
      vi.stubEnv('HYBRID_INFER_NATIVE_ISA', 'sse9');
      expect(nativeStatus()).toMatchObject({
        available: false,
        reason: expect.stringContaining('scalar') as string,
        hint: expect.stringContaining('unset') as string,
      });
      expect(() => createNativeKernels(arena(1))).toThrow(/sse9/);
    });

    test('HYBRID_INFER_NATIVE=off makes them unavailable, with the reason', () => {
      vi.stubEnv('HYBRID_INFER_NATIVE', 'off');
      expect(nativeStatus()).toMatchObject({
        available: false,
        reason: expect.stringContaining('switched off') as string,
      });
      expect(adviseHugePages(arena(1))).toBe(false);
    });

    test.each([
      ['an offset outside the arena', 65_536, 64, 16],
      ['a range that ends outside', 65_000, 64, 1024],
      ['a negative offset', -16, 64, 16],
      ['a fraction', 16.5, 64, 16],
      ['NaN', NaN, 64, 16],
      ['an unaligned vector', 18, 64, 16],
    ])('%s is a RangeError and not a crash', (_name, x, out, n) => {
      const kernels = createNativeKernels(arena(1));
      expect(() => kernels.addScaled(x, out, 1, n)).toThrow(RangeError);
    });

    test('a row list that points outside the arena is a RangeError', () => {
      const memory = arena(1);
      const kernels = createNativeKernels(memory);
      new Uint32Array(memory.buffer, 1024, 4).set([0, 2, 0, 4_000_000_000]);
      const list = [1024, 1032, 1] as const;
      expect(() => kernels.dotLists('f32', 2048, 64, ...list, 64, 0, 512, 16)).toThrow(/dotLists/);
      expect(() => kernels.sumLists('f32', 2048, 64, ...list, 64, 512, 16, 16)).toThrow(/sumLists/);
    });

    test('lists whose offsets go backwards are a RangeError', () => {
      const memory = arena(1);
      const kernels = createNativeKernels(memory);
      new Uint32Array(memory.buffer, 1024, 3).set([0, 9, 1]);
      expect(() => kernels.dotLists('f32', 2048, 64, 1024, 1100, 2, 8192, 64, 16_384, 16)).toThrow(
        RangeError,
      );
    });

    test('a page table that points outside the arena is a RangeError; pages before the window are not read', () => {
      const memory = arena(1);
      const kernels = createNativeKernels(memory);
      new Uint32Array(memory.buffer, 1024, 2).set([4_000_000_000, 0]);
      const attend = (begin: number): void =>
        kernels.attention('f32', 64, 4096, 0, 8192, 0, 1024, 512, 16_384, 1, begin, 40, 16, 1);
      expect(() => attend(31)).toThrow(/attention/);
      expect(() => attend(32)).not.toThrow();
    });

    test('kernels keep working after many arenas were collected', () => {
      for (let i = 0; i < 200; i++) createNativeKernels(arena(1)).addScaled(64, 1024, 2, 16);
      (globalThis as { gc?: () => void }).gc?.();
      const memory = arena(1);
      const kernels = createNativeKernels(memory);
      new Float32Array(memory.buffer).fill(3, 16, 32);
      kernels.addScaled(64, 64, 1, 16);
      expect(new Float32Array(memory.buffer)[16]).toBe(6);
    });

    test('huge pages can be asked for on any arena', () => {
      expect(typeof adviseHugePages(arena(64))).toBe('boolean');
    });

    test.skipIf(!existsSync(compiledLoader))('several worker threads share one arena', async () => {
      const memory = arena(4);
      const values = new Float32Array(memory.buffer);
      const code = `
      import { workerData } from 'node:worker_threads';
      const { createNativeKernels } = await import(workerData.loader);
      const kernels = createNativeKernels(workerData.memory);
      const x = 64 + workerData.lane * 65536;
      new Float32Array(workerData.memory.buffer).fill(workerData.lane + 1, x / 4, x / 4 + 16);
      for (let i = 0; i < 1000; i++) kernels.addScaled(x, x, 0, 16);
      kernels.addScaled(x, x, 1, 16);`;
      const url = new URL(`data:text/javascript,${encodeURIComponent(code)}`);
      const workers = [0, 1, 2].map(
        (lane) =>
          new Worker(url, { workerData: { memory, lane, loader: new URL(`file://${compiledLoader}`).href } }),
      );
      const codes = await Promise.all(
        workers.map(
          (worker) =>
            new Promise((resolve, reject) => {
              worker.once('error', reject);
              worker.once('exit', resolve);
            }),
        ),
      );
      expect(codes).toEqual([0, 0, 0]);
      expect([0, 1, 2].map((lane) => values[(64 + lane * 65_536) / 4])).toEqual([2, 4, 6]);
    });
  },
);

describe('tools/build-native.mjs', () => {
  /** A copy of what the build reads, so that the real dist/ stays as it is. */
  function buildIn(env: Record<string, string>): {
    code: number | null;
    stderr: string;
    info: Record<string, unknown>;
  } {
    const folder = mkdtempSync(path.join(tmpdir(), 'native-build-'));
    try {
      cpSync(path.join(root, 'tools/build-native.mjs'), path.join(folder, 'tools/build-native.mjs'));
      cpSync(path.join(root, 'src/kernels/native'), path.join(folder, 'src/kernels/native'), {
        recursive: true,
      });
      symlinkSync(path.join(root, 'node_modules'), path.join(folder, 'node_modules'));
      const { status: code, stderr } = spawnSync(process.execPath, ['tools/build-native.mjs'], {
        cwd: folder,
        env,
        encoding: 'utf8',
      });
      const info = readFileSync(path.join(folder, 'dist/kernels/native/build-info.json'), 'utf8');
      return { code, stderr, info: JSON.parse(info) as Record<string, unknown> };
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }

  test('without a compiler it says so in one line, writes down why, and succeeds', () => {
    const { code, stderr, info } = buildIn({ PATH: '' });
    expect(code).toBe(0);
    expect(stderr.trim().split('\n')).toHaveLength(1);
    expect(info).toMatchObject({
      available: false,
      reason: expect.stringContaining('no C++ compiler') as string,
    });
  });

  test('a compiler that fails is a reason too', () => {
    const { code, info } = buildIn({ PATH: process.env.PATH ?? '', CXX: 'true' });
    expect(code).toBe(0);
    expect(info).toMatchObject({
      available: false,
      reason: expect.stringContaining('linking failed') as string,
    });
  });

  test('HYBRID_INFER_NATIVE=off does not build', () => {
    const { code, info } = buildIn({ PATH: process.env.PATH ?? '', HYBRID_INFER_NATIVE: 'off' });
    expect(code).toBe(0);
    expect(info).toMatchObject({ available: false, reason: 'switched off by HYBRID_INFER_NATIVE' });
  });
});
