/**
 * Choosing a device's tiles by timing them (`doctor --tune-gpu`): products of one token and of several, lists, the
 * down sum, on q4 matrices well above any cache. Choices change no result (tuning.ts), so they can be made on any
 * shape; those of a 7B model are the ones that matter.
 */
import { GROUP, rowBytes, scaleOffset } from '../../kernels/layout.js';
import { createFrom, createStorage, createUniform, destroyBuffer, readBuffer } from './buffers.js';
import type { GpuDevice } from './device.js';
import { encodePass, type KernelText } from './kernel.js';
import { downSum, downSumScratch } from './kernels/down-sum.js';
import { rowDot } from './kernels/row-dot.js';
import { LANES } from './kernels/unit.js';
import type { Operation } from './operation.js';
import { destroyRows, uploadRows, vectorStride, type GpuRows } from './rows.js';
import { GpuTimer } from './timer.js';
import { defaultTuning, type Tile, type Tuning } from './tuning.js';

/** Rows and columns of the matrix that is timed: 184 MB on a real device. */
const COLS = 4096;
const ROWS = 88_064;
/** A software adapter chooses between its tiles on a hundredth of that. */
const SOFTWARE_ROWS = 512;
const TOKENS = 8;
const ROUNDS = 9;

export interface TuneReport {
  tuning: Tuning;
  /** What was tried, and the median time on the device. */
  tried: { choice: string; microseconds: number }[];
}

export async function tuneDevice(
  gpu: GpuDevice,
  onStep: (step: string) => void = () => {},
): Promise<TuneReport> {
  const timer = await GpuTimer.create(gpu, 1);
  const rows = await randomRows(gpu, 'tuning', gpu.facts.software ? SOFTWARE_ROWS : ROWS, COLS);
  const tried: TuneReport['tried'] = [];
  const tuning = { ...defaultTuning(gpu.facts), shuffleLanes: await shuffleLanes(gpu) };
  const rounds = gpu.facts.software ? 1 : ROUNDS;

  const x = await createFrom(gpu, 'x', new Float32Array(TOKENS * vectorStride(COLS)).fill(0.5));
  const step = await createUniform(gpu, 'step', [TOKENS]);
  const out = await createStorage(gpu, 'out', TOKENS * rows.rows * 4);
  const ids = await createFrom(
    gpu,
    'ids',
    Uint32Array.from({ length: rows.rows / 8 }, (_, i) => 8 * i),
  );
  const counts = await createFrom(gpu, 'counts', Uint32Array.of(rows.rows / 8));
  const partial = await createStorage(gpu, 'partial', downSumScratch(rows.rows, COLS, 1) * 4);

  /** The quickest of `candidates`. */
  const best = async <T>(
    name: string,
    candidates: readonly T[],
    tokens: number,
    make: (candidate: T) => Promise<Operation>,
  ): Promise<T> => {
    let quickest: { candidate: T; microseconds: number } | null = null;
    for (const candidate of candidates) {
      const choice = `${name} ${JSON.stringify(candidate)}`;
      onStep(choice);
      const dispatches = (await make(candidate)).dispatches(tokens);
      const times: number[] = [];
      for (let round = 0; round <= rounds; round++) times.push((await timer.time([dispatches]))[0]);
      const sorted = times.slice(1).sort((a, b) => a - b);
      const microseconds = sorted[sorted.length >> 1] / 1000;
      tried.push({ choice, microseconds });
      if (quickest === null || microseconds < quickest.microseconds) quickest = { candidate, microseconds };
    }
    return quickest!.candidate;
  };

  try {
    const tiles = tilesOf(gpu);
    const product = { x, step, out };
    const shape = { outStride: rows.rows };
    tuning.single = await best('one token', tiles, 1, (single) =>
      rowDot(gpu, { ...tuning, single }, rows, shape, product),
    );
    const batches = tiles.flatMap((tile) => batchTokens(gpu).map((tokens) => ({ ...tile, tokens })));
    const small = batches.filter((batch) => batch.rows * batch.tokens <= 16);
    tuning.batch = await best('several tokens', small, TOKENS, (batch) =>
      rowDot(gpu, { ...tuning, batch }, rows, shape, product),
    );
    tuning.list = await best('listed rows', tiles, 1, (list) =>
      rowDot(
        gpu,
        { ...tuning, list },
        rows,
        { ...shape, listStride: rows.rows / 8 },
        { ...product, ids, counts },
      ),
    );
    tuning.downWords = await best('down sum', [1, 2, 4] as const, 1, (downWords) =>
      downSum(
        gpu,
        { ...tuning, downWords },
        rows,
        { offset: 0, entryStride: rows.rows, outStride: vectorStride(COLS), listed: false },
        { coef: out, partial, out: x },
      ),
    );
    return { tuning, tried };
  } finally {
    for (const buffer of [x, step, out, ids, counts, partial]) destroyBuffer(gpu, buffer);
    destroyRows(gpu, rows);
    timer.destroy();
  }
}

/** A software adapter compiles wide tiles for many seconds and gains nothing from them. */
function tilesOf({ facts }: GpuDevice): Tile[] {
  if (facts.software) return [1, 2, 4].map((units) => ({ units, rows: 1 }));
  return [1, 2, 4, 8]
    .filter((units) => units * LANES <= facts.maxWorkgroupInvocations)
    .flatMap((units) => [1, 2, 4, 8].map((rows) => ({ units, rows })));
}

const batchTokens = ({ facts }: GpuDevice): number[] => (facts.software ? [2] : [2, 4, 8]);

/** q4 rows with codes of all kinds and a scale of 1/128. */
export async function randomRows(
  gpu: GpuDevice,
  label: string,
  rows: number,
  cols: number,
): Promise<GpuRows> {
  const stride = rowBytes('q4', cols);
  let state = 1;
  return uploadRows(gpu, label, { format: 'q4', rows, cols, stride }, (piece) => {
    for (let at = 0; at < piece.length; at += stride) {
      for (let i = 0; i < scaleOffset('q4', cols); i++) {
        state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
        piece[at + i] = state >>> 24;
      }
      const scales = new DataView(piece.buffer, piece.byteOffset + at + scaleOffset('q4', cols));
      // 0x3c00 is 2^-7 in bf16.
      for (let g = 0; g < cols / GROUP; g++) scales.setUint16(2 * g, 0x3c00, true);
    }
  });
}

/**
 * How many lanes that follow each other exchange values by shuffles. WGSL does not promise that a work-group's
 * invocations stand in its subgroups in their order, so every lane says whom it met.
 */
export async function shuffleLanes(gpu: GpuDevice): Promise<Tuning['shuffleLanes']> {
  const { subgroups } = gpu.facts;
  if (subgroups === null) return 1;
  const size = Math.min(256, gpu.facts.maxWorkgroupInvocations);
  const steps = [1, 2, 4, 8, 16].filter((step) => 2 * step <= subgroups.min);
  const text: KernelText = {
    name: 'whom lanes meet',
    constants: { SIZE: size },
    bindings: [{ name: 'met', access: 'write', type: 'array<u32>' }],
    code: `@compute @workgroup_size(SIZE) fn main(@builtin(local_invocation_index) lane: u32) {
  ${steps.map((step, i) => `met[${i}u * SIZE + lane] = subgroupShuffleXor(lane, ${step}u);`).join('\n  ')}
}`,
    enable: ['subgroups'],
  };
  const met = await createStorage(gpu, text.name, Math.max(1, steps.length) * size * 4);
  const kernel = await gpu.kernel(text);
  gpu.submit((encoder) => encodePass(encoder, [{ kernel, bindings: kernel.bind(met), workgroups: [1] }]));
  const found = new Uint32Array((await readBuffer(gpu, met)).buffer);
  destroyBuffer(gpu, met);
  let lanes = 1;
  for (const [i, step] of steps.entries()) {
    for (let lane = 0; lane < size; lane++) {
      if (found[i * size + lane] !== (lane ^ step)) return lanes as Tuning['shuffleLanes'];
    }
    lanes = 2 * step;
  }
  return lanes as Tuning['shuffleLanes'];
}
