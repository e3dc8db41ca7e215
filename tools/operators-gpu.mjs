/**
 * operators.mjs --gpu: the WGSL operators against dense on a WebGPU device, q4, beside the published figures.
 *
 *     dense up     rows that lie one after the other                 S2   raw gates are there: sigma, and up rows where
 *     dense down   the same, every coefficient                            they passed, one dispatch
 *                                                                    S3   select and compact, then the listed records
 *
 * Times are the device's own timestamps around a pass that does an operator on each layer once, layers rotated and
 * all operators in turn; medians. A software adapter's times say nothing about speed: none is shown as a speed-up.
 */
const built = (path) => import(new URL(`../dist/${path}`, import.meta.url));
const { createFrom, createStorage, createUniform, destroyBuffer, readBuffer } =
  await built('gpu/webgpu/buffers.js');
const { GpuDevice } = await built('gpu/webgpu/device.js');
const { encodePass } = await built('gpu/webgpu/kernel.js');
const { downSum, downSumScratch } = await built('gpu/webgpu/kernels/down-sum.js');
const { gateUp } = await built('gpu/webgpu/kernels/gate-up.js');
const { rowDot } = await built('gpu/webgpu/kernels/row-dot.js');
const { select } = await built('gpu/webgpu/kernels/select.js');
const { destroyRows, vectorStride } = await built('gpu/webgpu/rows.js');
const { GpuTimer } = await built('gpu/webgpu/timer.js');
const { randomRows } = await built('gpu/webgpu/tune.js');
const { tuningFor } = await built('gpu/webgpu/tuning.js');

/** Together more than any GPU's last-level cache; a software adapter does one. */
const LAYERS = 8;
const WARM_ROUNDS = 2;

/**
 * @param shapes of prosparse-card.mjs
 * @param rounds null: 30, and 1 on a software adapter
 * @param onStep told what is measured
 */
export async function measureGpu(shapes, rounds, onStep) {
  const gpu = await GpuDevice.open();
  try {
    const { software, name } = gpu.facts;
    const timer = await GpuTimer.create(gpu, 8);
    const counted = rounds ?? (software ? 1 : 30);
    const rows = [];
    for (const shape of shapes) {
      const layers = await makeLayers(gpu, shape, software ? 1 : LAYERS);
      for (const row of shape.rows) {
        onStep(`${shape.name}, ${row.setting}`);
        rows.push(await measureRow(gpu, timer, shape, layers, row, counted));
      }
      for (const { records } of layers) destroyRows(gpu, records);
    }
    return { adapter: { name, software }, tuning: tuningFor(gpu.facts), rounds: counted, rows };
  } finally {
    await gpu.close();
  }
}

/** Records of every layer; the same bytes read as rows are dense's, with nothing between them. */
async function makeLayers(gpu, { d, nFf }, count) {
  const layers = [];
  for (let l = 0; l < count; l++) {
    const rows = await randomRows(gpu, `layer ${l}`, 2 * nFf, d);
    const { format, cols, stride, parts } = rows;
    const [{ buffer }] = parts;
    layers.push({
      records: { format, cols, stride: 2 * stride, rows: nFf, parts: [{ buffer, first: 0, rows: nFf }] },
      plain: { format, cols, stride, rows: nFf, parts: [{ buffer, first: 0, rows: nFf }] },
    });
  }
  return layers;
}

async function measureRow(gpu, timer, { name, d, nFf, published }, layers, row, rounds) {
  const tuning = tuningFor(gpu.facts);
  let state = 7;
  const random = () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
  const vector = (n, value) => createFrom(gpu, 'vector', Float32Array.from({ length: n }, value));
  const active = 1 - row.sparsity;
  const x = await vector(vectorStride(d), () => random() - 0.5);
  const gates = await vector(nFf, () => (random() < active ? 0.1 + random() : -random()));
  const coefs = await vector(nFf, () => random() + 0.1);
  const step = await createUniform(gpu, 'step', [1]);
  const [up, x1, kept] = [
    await createStorage(gpu, 'up', nFf * 4),
    await createStorage(gpu, 'x1', nFf * 4),
    await createStorage(gpu, 'kept', nFf * 4),
  ];
  const [ids, counts] = [await createStorage(gpu, 'ids', nFf * 4), await createStorage(gpu, 'counts', 4)];
  const partial = await createStorage(gpu, 'partial', downSumScratch(nFf, d, 1) * 4);
  const out = await createStorage(gpu, 'out', vectorStride(d) * 4);
  const buffers = [x, gates, coefs, step, up, x1, kept, ids, counts, partial, out];

  const sums = { entryStride: nFf, outStride: vectorStride(d) };
  const chosen = await select(
    gpu,
    { test: 'nonzero', valueStride: nFf, listStride: nFf },
    { entries: nFf },
    { values: x1, ids, counts, kept },
  );
  const operations = { denseUp: [], s2: [], denseDown: [], select: [], s3: [] };
  for (const { plain, records } of layers) {
    operations.denseUp.push(await rowDot(gpu, tuning, plain, { outStride: nFf }, { x, step, out: up }));
    operations.s2.push(
      await gateUp(
        gpu,
        tuning,
        null,
        records,
        { kind: 'relu', outStride: nFf, given: 'raw' },
        { x, given: gates, x1 },
      ),
    );
    operations.denseDown.push(
      await downSum(gpu, tuning, plain, { ...sums, offset: 0, listed: false }, { coef: coefs, partial, out }),
    );
    operations.select.push(chosen);
    operations.s3.push(
      await downSum(
        gpu,
        tuning,
        records,
        { ...sums, offset: plain.stride, listed: true },
        { coef: kept, ids, counts, partial, out },
      ),
    );
  }
  const dispatches = Object.fromEntries(
    Object.entries(operations).map(([op, list]) => [op, list.map((operation) => operation.dispatches(1))]),
  );
  // Lists are there before the first round, whatever order the operators come in.
  gpu.submit((encoder) => encodePass(encoder, [...dispatches.s2[0], ...dispatches.select[0]]));
  const neurons = new Uint32Array((await readBuffer(gpu, counts)).buffer)[0];

  const names = Object.keys(dispatches);
  const samples = Object.fromEntries(names.map((op) => [op, []]));
  for (let round = 0; round < rounds + (rounds > 1 ? WARM_ROUNDS : 0); round++) {
    const turned = names.map((_, i) => names[(i + round) % names.length]);
    const rotate = (list) => [...list.slice(round % list.length), ...list.slice(0, round % list.length)];
    const times = await timer.time(turned.map((op) => rotate(dispatches[op]).flat()));
    if (rounds > 1 && round < WARM_ROUNDS) continue;
    turned.forEach((op, i) => samples[op].push(times[i] / 1000 / layers.length));
  }
  for (const buffer of buffers) destroyBuffer(gpu, buffer);

  const us = Object.fromEntries(names.map((op) => [op, median(samples[op])]));
  const s3Us = us.select + us.s3;
  const speedUp = (dense, sparse) => (gpu.facts.software ? null : dense / sparse);
  return {
    shape: name,
    setting: row.setting,
    sparsity: row.sparsity,
    activeNeurons: neurons,
    denseUpUs: us.denseUp,
    s2Us: us.s2,
    s2SpeedUp: speedUp(us.denseUp, us.s2),
    denseDownUs: us.denseDown,
    selectUs: us.select,
    s3Us,
    s3SpeedUp: speedUp(us.denseDown, s3Us),
    published: { ...published, s2Us: row.s2Us, s2SpeedUp: row.s2, s3Us: row.s3Us, s3SpeedUp: row.s3 },
  };
}

export function gpuTable({ adapter, rounds, rows }) {
  const lines = [
    `${adapter.name}, WebGPU, q4, medians of ${rounds} alternating rounds; published: PowerInfer on one A100, f16`,
    ...(adapter.software
      ? ['This adapter is software: its times say nothing about a GPU, and no speed-up is shown.']
      : []),
    '| shape | setting | sparsity | dense up µs | S2 µs | speed-up | published µs | speed-up | dense down µs | S3 µs (select) | speed-up | published µs | speed-up |',
    '|---|---|---|---|---|---|---|---|---|---|---|---|---|',
  ];
  const us = (value) => value.toFixed(value < 100 ? 1 : 0);
  const times = (value) => (value === null ? '' : value.toFixed(2));
  for (const r of rows) {
    const p = r.published;
    const cells = [
      ...[r.shape, r.setting, r.sparsity],
      ...[us(r.denseUpUs), us(r.s2Us), times(r.s2SpeedUp), `${p.s2DenseUs} → ${p.s2Us}`, times(p.s2SpeedUp)],
      ...[us(r.denseDownUs), `${us(r.s3Us)} (${us(r.selectUs)})`, times(r.s3SpeedUp)],
      ...[`${p.s3DenseUs} → ${p.s3Us}`, times(p.s3SpeedUp)],
    ];
    lines.push(`| ${cells.join(' | ')} |`);
  }
  return lines.join('\n');
}

function median(list) {
  const sorted = [...list].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}
