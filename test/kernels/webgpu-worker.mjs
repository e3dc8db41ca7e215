/** The worker of webgpu-kernels.ts: a call's pointers into buffers, its kernel, and the results back. */
import { parentPort, workerData } from 'node:worker_threads';

const built = (path) => import(new URL(`../../dist/${path}`, import.meta.url));
const { createUniform, readBuffer } = await built('gpu/webgpu/buffers.js');
const { GpuDevice } = await built('gpu/webgpu/device.js');
const { encodePass } = await built('gpu/webgpu/kernel.js');
const { attentionKernel } = await built('gpu/webgpu/kernels/attention.js');
const { embedGroups, embedKernel } = await built('gpu/webgpu/kernels/embed.js');
const { headsKernel, kvRowWords } = await built('gpu/webgpu/kernels/heads.js');
const { normKernel } = await built('gpu/webgpu/kernels/norm.js');
const { downSum, downSumScratch } = await built('gpu/webgpu/kernels/down-sum.js');
const { gateUp } = await built('gpu/webgpu/kernels/gate-up.js');
const { rowDot } = await built('gpu/webgpu/kernels/row-dot.js');
const { select } = await built('gpu/webgpu/kernels/select.js');
const { vectorStride } = await built('gpu/webgpu/rows.js');
const { defaultTuning } = await built('gpu/webgpu/tuning.js');
const layout = await built('kernels/layout.js');
const { GROUP, KV_PAGE, isSketch, paddedCols, q8aLayout, rowBytes, sketchBits, sketchRowBytes } = layout;

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
/**
 * Lengths and strides are constants of a kernel, and a kernel takes longer to compile than most cases: lengths are
 * rounded up and a call for one row takes the stride that its matrix had before, so that calls share a kernel.
 */
const roomy = (n) => Math.max(1, Math.ceil(n / 1024)) * 1024;
const strides = new Map();
const step = (tokens) => createUniform(gpu, 'step', [tokens]);

async function run(operation, tokens, out) {
  gpu.submit((encoder) => encodePass(encoder, operation.dispatches(tokens)));
  return (await readBuffer(gpu, out)).buffer;
}

/** Dispatches one kernel. @returns the content of `out` */
async function once(text, workgroups, out, ...buffers) {
  const kernel = await gpu.kernel(text);
  const dispatch = { kernel, bindings: kernel.bind(...buffers), workgroups };
  gpu.submit((encoder) => encodePass(encoder, [dispatch]));
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

/**
 * Rows as GpuRows; a call for one row may say that the next one stands 0 bytes further on.
 * @param listed rows that are to be read: all others are poisoned (a NaN in an f32 and in a scale)
 */
function matrix({ u8 }, format, w, stride, rows, cols, listed = null) {
  const size = isSketch(format) ? sketchRowBytes(sketchBits(format), cols) : rowBytes(format, cols);
  const apart = stride || (strides.get(`${format} ${cols}`) ?? size);
  strides.set(`${format} ${cols}`, apart);
  const bytes = u8.slice(w, w + (rows - 1) * apart + size);
  const wanted = listed && new Set(listed);
  for (let r = 0; wanted && r < rows; r++) {
    if (!wanted.has(r)) bytes.fill(0xff, r * apart, r * apart + size);
  }
  return { format, cols, stride: apart, rows, parts: [{ buffer: buffer(bytes), first: 0, rows }] };
}

/** Numbers as f32 rows of one column: their products with the vector [1] are they themselves. */
function column(values) {
  const rows = new Float32Array(4 * Math.max(1, values.length));
  values.forEach((value, i) => (rows[4 * i] = value));
  const part = { buffer: buffer(rows), first: 0, rows: values.length };
  return { format: 'f32', cols: 1, stride: 16, rows: values.length, parts: [part] };
}
const one = () => buffer(Float32Array.of(1, 0, 0, 0));

/** A norm's shape for one row. */
const rowOfNorm = (n, more) => ({
  ...{ width: n, stride: n, offset: 0, branchStride: n, outStride: n, epsilon: 0, layerNorm: false },
  ...{ branch: null, bias: -1, sum: null, out: null, gather: -1, workgroup: n >= 1024 ? 256 : 64, ...more },
});

/** One query head, one of the keys and one of the values; the step says position, slot and page table. */
const oneHead = (headDim, more) => ({
  ...{ heads: 1, kvHeads: 1, headDim, kvRows: KV_PAGE, kvFormat: 'f32', rotaryDims: 0 },
  ...{ bias: -1, qNorm: -1, kNorm: -1, biasOnValuesOnly: false, epsilon: 0 },
  ...{ position: 0, slot: 1, tables: 2, tablePages: 1, ...more },
});

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
  const listed = Array.from(counts, (count, t) => [...flat.subarray(t * most, t * most + count)]).flat();
  return { at, counts, most, rows: Math.max(0, ...flat) + 1, flat, list, listed };
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
    const { at, counts, most, rows, flat, listed } = lists(views, offsets, ids, tokens);
    const result = room(tokens * most);
    const operation = await rowDot(
      gpu,
      tuning,
      matrix(views, format, w, stride, rows, cols, listed),
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
    const { counts, most, rows, flat, list, listed } = lists(views, offsets, ids, tokens);
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
      { ...matrix(views, format, w, stride, rows, cols, listed), rows: Math.max(rows, most) },
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

  /** Up rows of neurons that did not pass are poisoned, as far as one number can be. */
  async gateUp(views, kind, act, up, n) {
    if (n === 0) return 0;
    const acts = views.f32.slice(act / 4, act / 4 + n);
    const ups = views.f32.slice(up / 4, up / 4 + n).map((value, i) => (acts[i] === 0 ? NaN : value));
    const x1 = room(n);
    const shape = { kind, outStride: roomy(n), given: 'act' };
    const buffers = { x: one(), given: buffer(acts), x1 };
    const operation = await gateUp(gpu, tuning, null, column(ups), shape, buffers);
    const found = new Float32Array(await run(operation, 1, x1)).subarray(0, n);
    views.f32.set(found, act / 4);
    return found.reduce((count, value) => count + (value !== 0 ? 1 : 0), 0);
  },

  /** What gate-up makes of gates, but for the sign; contributions take no rectified up. */
  async contribution(views, kind, gate, up, n) {
    if (n === 0) return;
    const gates = views.f32.slice(gate / 4, gate / 4 + n);
    const x1 = room(n);
    const shape = { kind: kind === 'drelu' ? 'relu' : kind, outStride: roomy(n) };
    const operation = up
      ? await gateUp(
          ...[gpu, tuning, null, column(views.f32.slice(up / 4, up / 4 + n))],
          { ...shape, given: 'raw' },
          { x: one(), given: buffer(gates), x1 },
        )
      : await gateUp(gpu, tuning, column(gates), null, shape, { x: one(), x1 });
    const found = new Float32Array(await run(operation, 1, x1)).subarray(0, n);
    views.f32.set(found.map(Math.abs), gate / 4);
  },

  /** gate-up with norms makes zeros of what is too small, select finds the others. */
  async keepLarge(views, act, times, ids, n, weight, least, outIds, outAct) {
    if (n === 0) return 0;
    const acts = views.f32.slice(act / 4, act / 4 + n);
    const given = views.u32.slice(ids / 4, ids / 4 + n);
    const neurons = Math.max(...given) + 1;
    const factors = new Float32Array(neurons).fill(NaN);
    given.forEach((id, i) => (factors[id] = times ? views.f32[times / 4 + i] : 1));
    const [x1, chosen, counts, kept] = [room(n), room(n), room(1), room(n)];
    const weighed = await gateUp(
      ...[gpu, tuning, null, column(factors)],
      { kind: 'relu', given: 'act', outStride: roomy(n), listStride: roomy(n) },
      {
        ...{ x: one(), given: buffer(acts), x1, ids: buffer(given), counts: buffer(Uint32Array.of(n)) },
        norms: buffer(views.f32.slice(weight / 4, weight / 4 + neurons)),
      },
      { least },
    );
    const found = await select(
      gpu,
      { test: 'nonzero', valueStride: roomy(n), listStride: roomy(n) },
      { entries: n },
      { values: x1, ids: chosen, counts, kept },
    );
    await run(weighed, 1, x1);
    const count = new Uint32Array(await run(found, 1, counts))[0];
    const places = new Uint32Array((await readBuffer(gpu, chosen)).buffer).subarray(0, count);
    views.u32.set(
      places.map((place) => given[place]),
      outIds / 4,
    );
    views.f32.set(
      Float32Array.from(places, (place) => acts[place]),
      outAct / 4,
    );
    return count;
  },

  async biasRelu(views, x, bias, n) {
    const out = room(n);
    const values = views.f32.slice(x / 4, x / 4 + n);
    const operation = await rowDot(
      ...[gpu, alone, column(values)],
      { outStride: roomy(n), relu: true },
      {
        ...{ x: one(), step: await step(1), out },
        ...(bias ? { bias: buffer(views.f32.slice(bias / 4, bias / 4 + n)) } : {}),
      },
    );
    views.f32.set(new Float32Array(await run(operation, 1, out)).subarray(0, n), x / 4);
  },

  async addListed(views, x, bias, ids, n) {
    if (n === 0) return;
    const given = views.u32.slice(ids / 4, ids / 4 + n);
    const listed = new Set(given);
    const values = Float32Array.from({ length: Math.max(...given) + 1 }, (_, i) =>
      listed.has(i) ? views.f32[bias / 4 + i] : NaN,
    );
    const out = buffer(views.f32.slice(x / 4, x / 4 + n));
    const operation = await rowDot(
      ...[gpu, alone, column(values)],
      { outStride: roomy(n), listStride: roomy(n), add: true },
      { x: one(), step: await step(1), out, ids: buffer(given), counts: buffer(Uint32Array.of(n)) },
    );
    views.f32.set(new Float32Array(await run(operation, 1, out)).subarray(0, n), x / 4);
  },

  rmsNorm: (views, x, weight, out, n, epsilon) => norm(views, false, x, weight, 0, out, n, epsilon),
  layerNorm: (views, x, weight, bias, out, n, epsilon) => norm(views, true, x, weight, bias, out, n, epsilon),

  async addScaled(views, x, y, scale, n) {
    const [xs, ys] = [x, y].map((at) => buffer(views.f32.slice(at / 4, at / 4 + n)));
    const text = normKernel(rowOfNorm(n, { branch: { bias: -1, scale, norm: null } }));
    const sums = new Float32Array(await once(text, [1], xs, room(1), room(1), xs, ys));
    views.f32.set(sums.subarray(0, n), x / 4);
  },

  async rope(views, x, cos, sin, headDim) {
    const qkv = new Float32Array(3 * headDim);
    qkv.set(views.f32.subarray(x / 4, x / 4 + headDim));
    const angles = Float32Array.from(
      { length: headDim },
      (_, i) => views.f32[(i % 2 ? sin : cos) / 4 + (i >> 1)],
    );
    const heads = buffer(qkv);
    const cache = () => room(KV_PAGE * headDim);
    const text = headsKernel(oneHead(headDim, { rotaryDims: headDim }));
    const turned = await once(text, [1, 1], heads, room(3), room(1), buffer(angles), heads, cache(), cache());
    views.f32.set(new Float32Array(turned, 0, headDim), x / 4);
  },

  async storeKv(views, format, x, data, scales, row, headDim) {
    const qkv = new Float32Array(3 * headDim);
    qkv.set(views.f32.subarray(x / 4, x / 4 + headDim), headDim);
    const words = kvRowWords(format, headDim);
    const [keys, values] = [room(KV_PAGE * words), room(KV_PAGE * words)];
    const text = headsKernel(oneHead(headDim, { kvFormat: format }));
    const where = buffer(Uint32Array.of(row, 0, 0));
    const stored = await once(text, [3, 1], keys, where, room(1), room(2), buffer(qkv), keys, values);
    const bytes = format === 'f32' ? headDim * 4 : headDim;
    views.u8.set(new Uint8Array(stored, row * words * 4, bytes), data + row * bytes);
    if (format === 'q8') views.f32[scales / 4 + row] = new Float32Array(stored)[row * words + headDim / 4];
  },

  /** Rows before the window, behind the last position and of other pages are poisoned. */
  async attention(
    views,
    format,
    q,
    kData,
    kScales,
    vData,
    vScales,
    table,
    out,
    _,
    group,
    begin,
    nPos,
    headDim,
    scale,
  ) {
    const pages = views.u32.slice(table / 4, table / 4 + Math.ceil(nPos / KV_PAGE));
    const words = kvRowWords(format, headDim);
    const rows = (Math.max(...pages) + 1) * KV_PAGE;
    const bytes = format === 'f32' ? headDim * 4 : headDim;
    const cache = (data, scales) => {
      const content = new Uint8Array(rows * words * 4).fill(0xff);
      for (let p = begin; p < nPos; p++) {
        const row = pages[Math.floor(p / KV_PAGE)] * KV_PAGE + (p % KV_PAGE);
        content.set(views.u8.subarray(data + row * bytes, data + (row + 1) * bytes), row * words * 4);
        if (format === 'q8')
          new Float32Array(content.buffer)[row * words + headDim / 4] = views.f32[scales / 4 + row];
      }
      return buffer(content);
    };
    const heads = new Float32Array((group + 2) * headDim);
    heads.set(views.f32.subarray(q / 4, q / 4 + group * headDim));
    const result = room(group * headDim);
    const window = begin === 0 ? Infinity : nPos - begin;
    const shape = { heads: group, kvFormat: format, outStride: group * headDim, scale, window };
    const found = await once(
      ...[attentionKernel(oneHead(headDim, shape)), [group, 1], result],
      ...[buffer(Uint32Array.of(nPos - 1, 0, ...pages)), buffer(heads)],
      ...[cache(kData, kScales), cache(vData, vScales), result],
    );
    views.f32.set(new Float32Array(found, 0, group * headDim), out / 4);
  },

  /** The row behind it is poisoned. */
  async dequantizeRow(views, format, w, out, cols) {
    const stride = rowBytes(format, cols);
    const table = new Uint8Array(2 * stride).fill(0xff);
    table.set(views.u8.subarray(w, w + stride));
    const x = room(cols);
    const shape = { format, cols, stride, outStride: cols, firstRow: 0, rows: 2 };
    const text = embedKernel({ ...shape, source: 0, shift: 0, scale: 1, add: false });
    const values = await once(text, [embedGroups(cols), 1], x, room(1), buffer(table), x);
    views.f32.set(new Float32Array(values, 0, cols), out / 4);
  },
};

async function norm(views, layerNorm, x, weight, bias, out, n, epsilon) {
  const vectors = new Float32Array(2 * n);
  vectors.set(views.f32.subarray(weight / 4, weight / 4 + n));
  if (bias) vectors.set(views.f32.subarray(bias / 4, bias / 4 + n), n);
  const shape = { epsilon, layerNorm, out: { weight: 0, bias: bias ? n : -1 } };
  const [weights, result] = [buffer(vectors), room(n)];
  const given = buffer(views.f32.slice(x / 4, x / 4 + n));
  const found = await once(
    normKernel(rowOfNorm(n, shape)),
    [1],
    result,
    room(1),
    weights,
    weights,
    given,
    result,
  );
  views.f32.set(new Float32Array(found, 0, n), out / 4);
}

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
