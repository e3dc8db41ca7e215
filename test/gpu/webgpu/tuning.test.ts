/** Tiles: kept per device, checked when read, and without influence on results. */
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { createFrom, createStorage, createUniform, readBuffer } from '../../../src/gpu/webgpu/buffers.js';
import { GpuDevice, type AdapterFacts } from '../../../src/gpu/webgpu/device.js';
import { encodePass } from '../../../src/gpu/webgpu/kernel.js';
import { rowDot } from '../../../src/gpu/webgpu/kernels/row-dot.js';
import { shuffleLanes } from '../../../src/gpu/webgpu/tune.js';
import {
  defaultTuning,
  keepTuning,
  tuningFor,
  tuningPath,
  type Tuning,
} from '../../../src/gpu/webgpu/tuning.js';
import { normals } from '../../kernels/samples.js';
import { reason } from './adapter.js';
import { rowsOf, uploadTestRows } from './rows.js';

const FACTS: AdapterFacts = {
  ...{
    name: 'Card 9000',
    vendor: 'acme',
    architecture: 'x',
    software: false,
    timestamps: true,
    halves: false,
  },
  ...{ subgroups: { min: 32, max: 32 }, maxBindingBytes: 2 ** 27, maxBufferBytes: 2 ** 28 },
  ...{ maxWorkgroupInvocations: 256, maxWorkgroupBytes: 16_384, maxWorkgroups: 65_535 },
  ...{ storageBuffersPerKernel: 8, bindingAlignment: 256 },
};
const TUNED: Tuning = { ...defaultTuning(FACTS), single: { units: 8, rows: 2 }, shuffleLanes: 32 };

describe('a tuning', () => {
  beforeEach(() => {
    process.env.HYBRID_INFER_CACHE = mkdtempSync(join(tmpdir(), 'hybrid-tuning-'));
  });

  it('is the default before the device was tuned, and what was kept afterwards', async () => {
    expect(tuningFor(FACTS)).toEqual(defaultTuning(FACTS));
    await keepTuning(FACTS, TUNED);
    expect(tuningFor(FACTS)).toEqual(TUNED);
    expect(tuningFor({ ...FACTS, name: 'another card' })).toEqual(defaultTuning(FACTS));
  });

  it('is not taken from a broken file, nor where the device cannot do it', async () => {
    await keepTuning(FACTS, TUNED);
    const small = { ...FACTS, maxWorkgroupInvocations: 128 };
    expect(tuningFor(small)).toEqual(defaultTuning(small));
    expect(tuningFor({ ...FACTS, subgroups: { min: 8, max: 32 } }).shuffleLanes).toBe(1);
    const path = tuningPath(FACTS);
    const text = readFileSync(path, 'utf8');
    for (const broken of ['', '[]', text.slice(0, -5), text.replace('"rows":2', '"rows":1e9')]) {
      writeFileSync(path, broken);
      expect(tuningFor(FACTS)).toEqual(defaultTuning(FACTS));
    }
  });
});

describe.skipIf(reason !== null)(`tiles on a device${reason === null ? '' : ` (skipped: ${reason})`}`, () => {
  it('give the same bits, whether lanes shuffle or share memory', { timeout: 60_000 }, async () => {
    const gpu = await GpuDevice.open();
    const lanes = await shuffleLanes(gpu);
    const plain = defaultTuning(gpu.facts);
    const rows = await uploadTestRows(gpu, rowsOf('q8', 19, 300, 1));
    const x = await createFrom(
      gpu,
      'x',
      Float32Array.from({ length: 320 }, (_, i) => (i < 300 ? normals(300, 2)[i] : 0)),
    );
    const step = await createUniform(gpu, 'step', [1]);
    const bits: number[][] = [];
    for (const single of [
      { units: 1, rows: 1 },
      { units: 4, rows: 1 },
      { units: 2, rows: 2 },
    ]) {
      const out = await createStorage(gpu, 'out', 19 * 4);
      const tuning = {
        ...plain,
        single,
        batch: { ...single, tokens: 1 },
        shuffleLanes: single.units === 1 ? 1 : lanes,
      };
      const dot = await rowDot(gpu, tuning, rows, { outStride: 19 }, { x, step, out });
      gpu.submit((encoder) => encodePass(encoder, dot.dispatches(1)));
      bits.push([...new Uint32Array((await readBuffer(gpu, out)).buffer)]);
    }
    await gpu.close();
    expect(new Set(bits[0]).size).toBe(19);
    expect(bits[1]).toEqual(bits[0]);
    expect(bits[2]).toEqual(bits[0]);
  });
});
