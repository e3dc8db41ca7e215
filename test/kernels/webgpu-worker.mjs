/** The worker of webgpu-kernels.ts: a call's pointers into buffers, its kernel, and the results back. */
import { parentPort, workerData } from 'node:worker_threads';

const built = (path) => import(new URL(`../../dist/${path}`, import.meta.url));
const { createUniform, readBuffer } = await built('gpu/webgpu/buffers.js');
const { GpuDevice } = await built('gpu/webgpu/device.js');
const { encodePass } = await built('gpu/webgpu/kernel.js');
const { downSum, downSumScratch } = await built('gpu/webgpu/kernels/down-sum.js');
const { gateUp } = await built('gpu/webgpu/kernels/gate-up.js');
const { rowDot } = await built('gpu/webgpu/kernels/row-dot.js');
const { select } = await built('gpu/webgpu/kernels/select.js');
const { vectorStride } = await built('gpu/webgpu/rows.js');
const { defaultTuning } = await built('gpu/webgpu/tuning.js');
const layout = await built('kernels/layout.js');
const { GROUP, isSketch, paddedCols, q8aLayout, rowBytes, sketchBits, sketchRowBytes } = layout;

const gpu = await GpuDevice.open();
const tuning = defaultTuning(gpu.facts);
/** Products of one token need no kernel for several. */
const alone = { ...tuning, batch: { ...tuning.single, tokens: 1 } };
const STORAGE_AND_COPIES = 0x80 | 0x04 | 0x08;

let made = [];
/** A buffer with a copy of these bytes; gone after the call. */
function buffer(values) {
  const size = Math.max(16, Math.ceil(values.byteLength / 16) * 16);
  const one = gpu.raw.createBuffer({ size, usage: STORAGE_AND_COPIES, mappedAtCreation: true });
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  new Uint8Array(one.getMappedRange()).set(bytes);
  one.unmap();
  made.push(one);
  return one;
}
const room = (words) => buffer(new Uint32Array(words));
/** Lengths are constants of a kernel: rounded up, so that calls of many lengths share one. */
const roomy = (n) => Math.max(1, Math.ceil(n / 256)) * 256;
const step = (tokens) => createUniform(gpu, 'step', [tokens]);

async function run(operation, tokens, out) {
  gpu.submit((encoder) => encodePass(encoder, operation.dispatches(tokens)));
  return (await readBuffer(gpu, out)).buffer;
}

/** A Q8A vector, or an f32 one, as floats. */
function vector({ f32, i8 }, format, x, cols) {
  if (format === 'f32') return f32.slice(x / 4, x / 4 + cols);
  const scales = (x + q8aLayout(cols).scales) / 4;
  return Float32Array.from({ length: cols }, (_, c) => i8[x + c] * f32[scales + Math.floor(c / GROUP)]);
}

function vectors(views, format, x, xStride, tokens, cols) {
  const all = new Float32Array(tokens * vectorStride(cols));
  for (let t = 0; t < tokens; t++) {
    all.set(vector(views, format, x + t * xStride, cols), t * vectorStride(cols));
  }
  return buffer(all);
}

/** Rows as GpuRows; a call for one row may say that the next one stands 0 bytes further on. */
function matrix({ u8 }, format, w, stride, rows, cols) {
  const size = isSketch(format) ? sketchRowBytes(sketchBits(format), cols) : rowBytes(format, cols);
  const apart = stride || size;
  const bytes = u8.slice(w, w + (rows - 1) * apart + size);
  return { format, cols, stride: apart, rows, parts: [{ buffer: buffer(bytes), first: 0, rows }] };
}

/** Compressed lists as one list of `most` entries a token. */
function lists({ u32 }, offsets, ids, tokens) {
  const at = u32.slice(offsets / 4, offsets / 4 + tokens + 1);
  const counts = Uint32Array.from({ length: tokens }, (_, t) => at[t + 1] - at[t]);
  const most = roomy(Math.max(1, ...counts));
  const list = (source, values) => {
    for (let t = 0; t < tokens; t++) values.set(source.subarray(at[t], at[t + 1]), t * most);
    return values;
  };
  const flat = list(u32.subarray(ids / 4), new Uint32Array(tokens * most));
  return { at, counts, most, rows: Math.max(0, ...flat) + 1, flat, list };
}

const calls = {
  async dot(views, format, w, stride, rows, x, xStride, tokens, out, outStride, cols) {
    if (rows === 0) return;
    const apart = roomy(rows);
    const result = room(tokens * apart);
    const operation = await rowDot(
      gpu,
      tokens === 1 ? alone : tuning,
      matrix(views, format, w, stride, rows, cols),
      { outStride: apart },
      { x: vectors(views, format, x, xStride, tokens, cols), step: await step(tokens), out: result },
    );
    const found = new Float32Array(await run(operation, tokens, result));
    for (let t = 0; t < tokens; t++) {
      views.f32.set(found.subarray(t * apart, t * apart + rows), out / 4 + t * outStride);
    }
  },

  async dotLists(views, format, w, stride, offsets, ids, tokens, x, xStride, out, cols) {
    const { at, counts, most, rows, flat } = lists(views, offsets, ids, tokens);
    const result = room(tokens * most);
    const operation = await rowDot(
      gpu,
      tuning,
      matrix(views, format, w, stride, rows, cols),
      { outStride: most, listStride: most },
      {
        x: vectors(views, format, x, xStride, tokens, cols),
        step: await step(tokens),
        out: result,
        ids: buffer(flat),
        counts: buffer(counts),
      },
    );
    const found = new Float32Array(await run(operation, tokens, result));
    for (let t = 0; t < tokens; t++) {
      views.f32.set(found.subarray(t * most, t * most + counts[t]), out / 4 + at[t]);
    }
  },

  async sumLists(views, format, w, stride, offsets, ids, tokens, coef, out, outStride, cols) {
    const { counts, most, rows, flat, list } = lists(views, offsets, ids, tokens);
    const n = paddedCols(format, cols);
    const before = new Float32Array(tokens * n);
    for (let t = 0; t < tokens; t++) {
      before.set(views.f32.subarray(out / 4 + t * outStride, out / 4 + t * outStride + n), t * n);
    }
    const result = buffer(before);
    const entries = list(views.f32.subarray(coef / 4), new Float32Array(tokens * most));
    const operation = await downSum(
      gpu,
      tuning,
      { ...matrix(views, format, w, stride, rows, cols), rows: Math.max(rows, most) },
      { offset: 0, entryStride: most, outStride: n, listed: true, add: true },
      {
        coef: buffer(entries),
        ids: buffer(flat),
        counts: buffer(counts),
        partial: room(downSumScratch(most, cols, tokens)),
        out: result,
      },
    );
    const found = new Float32Array(await run(operation, tokens, result));
    for (let t = 0; t < tokens; t++) {
      views.f32.set(found.subarray(t * n, t * n + n), out / 4 + t * outStride);
    }
  },

  async activate(views, kind, threshold, gate, n, ids, firstId, weight, outIds, outAct) {
    if (weight !== 0) throw new Error('activate has no weights here');
    const [chosen, counts, kept] = [room(n), room(1), room(n)];
    const given = ids
      ? { givenIds: buffer(views.u32.slice(ids / 4, ids / 4 + n)), givenCounts: buffer(Uint32Array.of(n)) }
      : {};
    const operation = await select(
      gpu,
      { test: 'gate', kind, valueStride: roomy(n), listStride: roomy(n), listed: ids !== 0 },
      { entries: n, first: firstId, threshold },
      { values: buffer(views.f32.slice(gate / 4, gate / 4 + n)), ...given, ids: chosen, counts, kept },
    );
    const count = new Uint32Array(await run(operation, 1, counts))[0];
    views.u32.set(new Uint32Array((await readBuffer(gpu, chosen)).buffer).subarray(0, count), outIds / 4);
    views.f32.set(new Float32Array((await readBuffer(gpu, kept)).buffer).subarray(0, count), outAct / 4);
    return count;
  },

  async selectAbove(views, score, cut, n, firstId, outIds) {
    // The neurons before firstId are those that are chosen always.
    const [chosen, counts] = [room(firstId + n), room(1)];
    const operation = await select(
      gpu,
      { test: 'above', valueStride: roomy(n), listStride: roomy(firstId + n) },
      { entries: n, first: firstId },
      {
        values: buffer(views.f32.slice(score / 4, score / 4 + n)),
        cuts: buffer(views.f32.slice(cut / 4, cut / 4 + n)),
        ids: chosen,
        counts,
      },
    );
    const count = new Uint32Array(await run(operation, 1, counts))[0];
    const ids = new Uint32Array((await readBuffer(gpu, chosen)).buffer).subarray(firstId, count);
    views.u32.set(ids, outIds / 4);
    return count - firstId;
  },

  /** The up product of a row [u] with the vector [1] is u. */
  async gateUp(views, kind, act, up, n) {
    if (n === 0) return 0;
    const rows = new Float32Array(4 * n);
    views.f32.subarray(up / 4, up / 4 + n).forEach((value, i) => (rows[4 * i] = value));
    const x1 = room(n);
    const operation = await gateUp(
      gpu,
      tuning,
      null,
      { format: 'f32', cols: 1, stride: 16, rows: n, parts: [{ buffer: buffer(rows), first: 0, rows: n }] },
      { kind, outStride: roomy(n), given: 'act' },
      { x: buffer(Float32Array.of(1, 0, 0, 0)), given: buffer(views.f32.slice(act / 4, act / 4 + n)), x1 },
    );
    const found = new Float32Array(await run(operation, 1, x1)).subarray(0, n);
    views.f32.set(found, act / 4);
    return found.reduce((count, value) => count + (value !== 0 ? 1 : 0), 0);
  },
};

const state = new Int32Array(workerData, 0, 2);
const message = new Uint8Array(workerData, 8);
const answer = (kind, value) => {
  state[1] = value;
  Atomics.store(state, 0, kind);
  Atomics.notify(state, 0);
};

parentPort.on('message', async (call) => {
  if (call === null) {
    await gpu.close();
    parentPort.close();
    return;
  }
  try {
    const { memory, name, args } = call;
    const { buffer: arena } = memory;
    const views = {
      f32: new Float32Array(arena),
      u32: new Uint32Array(arena),
      u8: new Uint8Array(arena),
      i8: new Int8Array(arena),
    };
    const result = await calls[name](views, ...args);
    answer(1, result ?? 0);
  } catch (error) {
    const text = Buffer.from(error.stack).subarray(0, message.length);
    message.set(text);
    answer(2, text.length);
  } finally {
    for (const one of made) one.destroy();
    made = [];
  }
});
