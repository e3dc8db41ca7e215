/**
 * S2, select and S3 against plain sums, with every row and record that is not to be read poisoned (NaN scales, NaN
 * values): one such row in a sum would make it NaN.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createFrom, createStorage, createUniform, readBuffer } from '../../../src/gpu/webgpu/buffers.js';
import { GpuDevice } from '../../../src/gpu/webgpu/device.js';
import { encodePass } from '../../../src/gpu/webgpu/kernel.js';
import { downSum, downSumScratch } from '../../../src/gpu/webgpu/kernels/down-sum.js';
import { gateUp } from '../../../src/gpu/webgpu/kernels/gate-up.js';
import { rowDot } from '../../../src/gpu/webgpu/kernels/row-dot.js';
import { select } from '../../../src/gpu/webgpu/kernels/select.js';
import type { Operation } from '../../../src/gpu/webgpu/operation.js';
import { vectorStride } from '../../../src/gpu/webgpu/rows.js';
import { defaultTuning, type Tuning } from '../../../src/gpu/webgpu/tuning.js';
import { ACTIVATION_KINDS, isSmooth, type ActivationKind } from '../../../src/kernels/kernels.js';
import { WEIGHT_FORMATS, type WeightFormat } from '../../../src/kernels/layout.js';
import { sigma } from '../../../src/kernels/reference.js';
import { normals, random } from '../../kernels/samples.js';
import { reason } from './adapter.js';
import { poisonRows, recordsOf, rowsOf, uploadTestRows } from './rows.js';

const [NEURONS, COLS, TOKENS] = [301, 160, 3];
const THRESHOLD = 0.2;

describe.skipIf(reason !== null)(
  `sparse FFN operators${reason === null ? '' : ` (skipped: ${reason})`}`,
  () => {
    let gpu: GpuDevice;
    let tuning: Tuning;
    beforeAll(async () => {
      gpu = await GpuDevice.open();
      tuning = defaultTuning(gpu.facts);
    });
    afterAll(() => gpu.close());

    const stride = vectorStride(COLS);
    const vectors = (seed: number): Float32Array => {
      const x = new Float32Array(TOKENS * stride);
      for (let t = 0; t < TOKENS; t++) x.set(normals(COLS, seed + t, 0.1), t * stride);
      return x;
    };
    const dot = (row: number[], x: Float32Array, t: number): number =>
      row.reduce((sum, value, c) => sum + value * x[t * stride + c], 0);
    const floats = async (buffer: GPUBuffer): Promise<Float32Array> =>
      new Float32Array((await readBuffer(gpu, buffer)).buffer);
    const words = async (buffer: GPUBuffer): Promise<Uint32Array> =>
      new Uint32Array((await readBuffer(gpu, buffer)).buffer);
    const run = (...operations: Operation[]): void =>
      gpu.submit((encoder) =>
        encodePass(
          encoder,
          operations.flatMap((o) => [...o.dispatches(TOKENS)]),
        ),
      );
    const step = (): Promise<GPUBuffer> => createUniform(gpu, 'step', [TOKENS]);

    /** Each token's ids, [TOKENS][NEURONS] with room to spare, and counts; the union of what is listed. */
    async function lists(shares: number[], seed: number) {
      const next = random(seed);
      const ids = shares.map((share) => [...Array(NEURONS).keys()].filter(() => next() < share));
      const flat = new Uint32Array(TOKENS * NEURONS).fill(0xffff_ffff);
      ids.forEach((list, t) => flat.set(list, t * NEURONS));
      return {
        ids,
        listed: new Set(ids.flat()),
        idBuffer: await createFrom(gpu, 'ids', flat),
        countBuffer: await createFrom(
          gpu,
          'counts',
          Uint32Array.from(ids, ({ length }) => length),
        ),
      };
    }

    it.each([...WEIGHT_FORMATS, 'q2' as const])('dots with listed %s rows read no other', async (format) => {
      const rows = rowsOf(format, NEURONS, COLS, 3);
      const { ids, listed, idBuffer, countBuffer } = await lists([0.1, 0, 0.6], 5);
      poisonRows(rows, (id) => !listed.has(id));
      const x = vectors(7);
      const out = await createStorage(gpu, 'out', TOKENS * NEURONS * 4);
      const buffers = {
        x: await createFrom(gpu, 'x', x),
        step: await step(),
        out,
        ids: idBuffer,
        counts: countBuffer,
      };
      for (const maxBytes of [undefined, rows.stride * 77]) {
        const shape = { outStride: NEURONS, listStride: NEURONS };
        run(await rowDot(gpu, tuning, await uploadTestRows(gpu, rows, maxBytes), shape, buffers));
        const found = await floats(out);
        ids.forEach((list, t) => {
          list.forEach((id, k) => expect(found[t * NEURONS + k]).toBeCloseTo(dot(rows.values[id], x, t), 4));
          expect(found[t * NEURONS + list.length]).toBe(0);
        });
      }
    });

    it('selects as the CPU does, in order: scores, gates of each activation, what is not zero', async () => {
      const values = new Float32Array(TOKENS * NEURONS).map((_, i) => (i % 5 === 0 ? 0 : Math.sin(i * 1.7)));
      values[NEURONS + 3] = NaN;
      const cuts = normals(NEURONS, 9, 0.5);
      const [ids, counts, kept] = [
        await createStorage(gpu, 'ids', TOKENS * (NEURONS + 4) * 4),
        await createStorage(gpu, 'counts', TOKENS * 4),
        await createStorage(gpu, 'kept', TOKENS * (NEURONS + 4) * 4),
      ];
      const shape = { valueStride: NEURONS, listStride: NEURONS + 4 };
      const given = { values: await createFrom(gpu, 'values', values), ids, counts };
      const expectLists = async (
        lists: [id: number, value: number][][],
        withValues: boolean,
      ): Promise<void> => {
        const [foundIds, foundCounts, foundValues] = [
          await words(ids),
          await words(counts),
          await floats(kept),
        ];
        lists.forEach((list, t) => {
          const at = t * (NEURONS + 4);
          expect(foundCounts[t]).toBe(list.length);
          expect([...foundIds.subarray(at, at + list.length)]).toEqual(list.map(([id]) => id));
          if (!withValues) return;
          list.forEach(([, value], k) => {
            if (Number.isNaN(value)) expect(foundValues[at + k]).toBeNaN();
            else expect(Math.abs(foundValues[at + k] - value)).toBeLessThan(2e-6);
          });
        });
      };
      const eachToken = (make: (value: number, i: number) => [number, number][]): [number, number][][] =>
        Array.from({ length: TOKENS }, (_, t) =>
          [...values.subarray(t * NEURONS, (t + 1) * NEURONS)].flatMap((value, i) => make(value, i)),
        );

      run(
        await select(
          gpu,
          { ...shape, test: 'above' },
          { entries: NEURONS, first: 4 },
          { ...given, cuts: await createFrom(gpu, 'cuts', cuts) },
        ),
      );
      const always: [number, number][] = [0, 1, 2, 3].map((id) => [id, 0]);
      await expectLists(
        eachToken((value, i) => (value >= cuts[i] ? [[i + 4, value]] : [])).map((list) => [
          ...always,
          ...list,
        ]),
        false,
      );
      for (const kind of ACTIVATION_KINDS) {
        run(
          await select(
            gpu,
            { ...shape, test: 'gate', kind },
            { entries: NEURONS, threshold: THRESHOLD },
            { ...given, kept },
          ),
        );
        await expectLists(
          eachToken((value, i) =>
            passes(kind, value) ? [[i, sigma(kind, Math.fround(THRESHOLD), value)]] : [],
          ),
          true,
        );
      }
      run(
        await select(
          gpu,
          { ...shape, test: 'nonzero' },
          { entries: NEURONS, first: 100 },
          { ...given, kept },
        ),
      );
      await expectLists(
        eachToken((value, i) => (value !== 0 ? [[100 + i, value]] : [])),
        true,
      );
    });

    const passes = (kind: ActivationKind, gate: number): boolean => {
      const value = Math.fround(sigma(kind, Math.fround(THRESHOLD), gate));
      return isSmooth(kind) ? !(Math.abs(value) <= Math.fround(THRESHOLD)) : value !== 0;
    };

    it.each(ACTIVATION_KINDS)('S2 with %s reads up rows only where the gate passed', async (kind) => {
      const [gate, ups] = [rowsOf('q8', NEURONS, COLS, 11), recordsOf('q4', NEURONS, COLS, 12)];
      const x = vectors(21);
      const bias = normals(NEURONS, 22, 0.1);
      const gates = Array.from({ length: TOKENS }, (_, t) =>
        gate.values.map((row, i) => dot(row, x, t) + bias[i]),
      );
      const passed = gates.map((row) => row.map((g) => passes(kind, g)));
      poisonRows(ups.rows, (id) => passed.every((row) => !row[id]));
      const x1 = await createStorage(gpu, 'x1', TOKENS * NEURONS * 4);
      const buffers = {
        ...{ x: await createFrom(gpu, 'x', x), gateBias: await createFrom(gpu, 'bias', bias), x1 },
        step: await step(), // two tokens side by side, and the third
      };
      const [g, u] = [await uploadTestRows(gpu, gate), await uploadTestRows(gpu, ups.rows)];
      run(await gateUp(gpu, tuning, g, u, { kind, outStride: NEURONS }, buffers, { threshold: THRESHOLD }));
      const found = await floats(x1);
      gates.forEach((row, t) =>
        row.forEach((value, i) => {
          const up = dot(ups.rows.values[i], x, t);
          const a = sigma(kind, Math.fround(THRESHOLD), value);
          const expected = passed[t][i] ? a * (kind === 'drelu' ? Math.max(0, up) : up) : 0;
          // A gate within rounding of the threshold may fall on either side of it.
          if (Math.abs(Math.abs(isSmooth(kind) ? a : value) - (kind === 'relu' ? 0 : THRESHOLD)) < 1e-5)
            return;
          expect(Math.abs(found[t * NEURONS + i] - expected)).toBeLessThan(1e-4);
        }),
      );
      expect(passed.flat().filter(Boolean).length).toBeGreaterThan(20);
      expect(passed.flat().filter((p) => !p).length).toBeGreaterThan(20);
    });

    it('S2 over listed candidates reads no other gate; what weighs too little is left out', async () => {
      const [gate, ups] = [rowsOf('q4', NEURONS, COLS, 31), recordsOf('q4', NEURONS, COLS, 32)];
      const { ids, listed, idBuffer, countBuffer } = await lists([0.2, 0.05, 0], 33);
      poisonRows(gate, (id) => !listed.has(id));
      poisonRows(ups.rows, (id) => !listed.has(id));
      const x = vectors(34);
      const norms = normals(NEURONS, 35).map(Math.abs);
      const x1 = await createStorage(gpu, 'x1', TOKENS * NEURONS * 4);
      const buffers = {
        ...{ x: await createFrom(gpu, 'x', x), norms: await createFrom(gpu, 'norms', norms) },
        ...{ ids: idBuffer, counts: countBuffer, x1 },
      };
      const shape = { kind: 'relu' as const, outStride: NEURONS, listStride: NEURONS };
      const cut = NEURONS * gate.stride; // one part; the records are cut at the same rows
      run(await gateUp(gpu, tuning, await uploadTestRows(gpu, gate, cut), await uploadTestRows(gpu, ups.rows), shape, buffers, { least: 0.3 })); // prettier-ignore
      const found = await floats(x1);
      let zeros = 0;
      ids.forEach((list, t) =>
        list.forEach((id, k) => {
          const product = Math.max(0, dot(gate.values[id], x, t)) * dot(ups.rows.values[id], x, t);
          const expected = Math.abs(product) * norms[id] < 0.3 ? 0 : product;
          if (Math.abs(Math.abs(product) * norms[id] - 0.3) < 1e-4) return;
          if (expected === 0) zeros++;
          expect(found[t * NEURONS + k]).toBeCloseTo(expected, 3);
        }),
      );
      expect(zeros).toBeGreaterThan(5);
    });

    async function checkDown(
      format: WeightFormat,
      listed: boolean,
      cols: number,
      cut: boolean,
      downWords: 1 | 2 | 4,
    ) {
      const records = recordsOf(format, NEURONS, cols, 41);
      const given = await lists([0.3, 0, 1], 42);
      const ids = listed ? given.ids : Array.from({ length: TOKENS }, () => [...Array(NEURONS).keys()]);
      const coef = normals(TOKENS * NEURONS, 43).map((v, i) => (i % 3 === 0 ? v : 0));
      const used = new Set(
        ids.flatMap((list, t) => list.filter((id, k) => coef[t * NEURONS + (listed ? k : id)] !== 0)),
      );
      poisonRows(records.rows, (id) => !used.has(id));
      const rows = await uploadTestRows(
        gpu,
        { ...records.rows, bytes: records.rows.bytes },
        cut ? records.rows.stride * 140 : undefined,
      );
      const before = normals(TOKENS * stride * 2, 44);
      const out = await createFrom(gpu, 'out', before);
      const outStride = Math.max(stride, vectorStride(cols));
      const shape = { offset: records.downOffset, entryStride: NEURONS, outStride, listed, add: true };
      const partial = await createStorage(gpu, 'partial', downSumScratch(NEURONS, cols, TOKENS) * 8);
      run(
        await downSum(gpu, { ...tuning, downWords }, rows, shape, {
          ...{ coef: await createFrom(gpu, 'coef', coef), partial, out },
          ...(listed ? { ids: given.idBuffer, counts: given.countBuffer } : {}),
        }),
      );
      const found = await floats(out);
      ids.forEach((list, t) => {
        for (let c = 0; c < cols; c++) {
          const sum = list.reduce(
            (total, id, k) => {
              const factor = coef[t * NEURONS + (listed ? k : id)];
              return factor === 0 ? total : total + factor * records.downValues[id][c];
            },
            before[t * outStride + c],
          );
          expect(Math.abs(found[t * outStride + c] - sum)).toBeLessThan(1e-4);
        }
      });
    }

    describe.each(WEIGHT_FORMATS)('S3 over %s records', (format) => {
      it('adds the listed ones whose coefficient is not zero, and reads no other', () =>
        checkDown(format, true, COLS, false, 1));
      it('over all neurons', () => checkDown(format, false, 100, false, 1));
      it('cut into parts, listed or not', async () => {
        await checkDown(format, true, 288, true, 2);
        await checkDown(format, false, 288, true, 4);
      });
    });
  },
);
