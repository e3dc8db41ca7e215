/**
 * Kernel speed: how many gigabytes of weights per second the inner loops get through, from memory and not
 * from a cache. All threads run the same case on their own part of one arena, as lanes do.
 */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { Bench } from 'tinybench';
import { createArena, MAX_ARENA_BYTES } from '../engine/arena.js';
import { RuntimeFault, UsageError } from '../errors.js';
import { workerUrl } from '../io/worker-path.js';
import { WEIGHT_FORMATS, type WeightFormat } from '../kernels/layout.js';
import { adviseHugePages, type KernelChoice } from '../kernels/select.js';
import type { KernelCase, KernelMessage, KernelReply, KernelTask } from './kernels-worker.js';

/** `read`: sequential read; `attention`: what a lane does with its KV heads; the others: with FFN weights. */
export const KERNEL_CASES: Readonly<Record<KernelCase, string>> = {
  read: 'sequential read',
  dot: 'dense dot products (S1)',
  dotLists: 'scattered rows, 10 %, dot products',
  sumLists: 'dense row sum (S3)',
  records: 'scattered neuron records, 10 %: up dot, down sum (S2, S3)',
  attention: 'attention over 2048 positions',
};

export interface KernelBenchOptions {
  /** @default 1 */
  threads?: number;
  /** @default all */
  formats?: readonly WeightFormat[];
  /** @default all */
  cases?: readonly KernelCase[];
  /** Columns of a row, d. @default 4096 */
  cols?: number;
  /** Weights per thread, in bytes. Must be well above the share of the last-level cache. @default 384 MiB */
  bytesPerThread?: number;
  /** Measuring time per case, in milliseconds. @default 400 */
  timeMs?: number;
  onProgress?: (row: KernelBenchRow) => void;
}

export interface KernelBenchRow {
  /** As in reports, such as `wasm (relaxed-simd)`. */
  kernels: string;
  case: KernelCase;
  /** null for the sequential read. */
  format: WeightFormat | null;
  cols: number;
  threads: number;
  /** Gigabytes (10^9) of weights per second, all threads together: the median of the samples. */
  gbPerSecond: number;
  /** Standard deviation of gbPerSecond. */
  deviation: number;
  samples: number;
}

const DEFAULT_BYTES = 384 * 2 ** 20;
const DEFAULT_TIME_MS = 400;
/** The scattered cases rotate over ten disjoint choices: after ten samples everything was read once. */
const MIN_SAMPLES = 10;
/** What a thread keeps besides its records (kernels-worker.ts); a part must have room for both. */
const MIN_BYTES = 64 * 2 ** 20;
const PART_ALIGNMENT = 4096;

/**
 * Measures every case and format with the chosen kernels.
 * @throws UsageError when the threads' parts do not fit into one arena, or are too small
 */
export async function benchKernels(
  kernels: KernelChoice,
  options: KernelBenchOptions = {},
): Promise<KernelBenchRow[]> {
  const { threads = 1, cols = 4096, formats = WEIGHT_FORMATS, timeMs = DEFAULT_TIME_MS } = options;
  const cases = options.cases ?? (Object.keys(KERNEL_CASES) as KernelCase[]);
  const bytes = Math.floor((options.bytesPerThread ?? DEFAULT_BYTES) / PART_ALIGNMENT) * PART_ALIGNMENT;
  if (bytes < MIN_BYTES || threads * bytes > MAX_ARENA_BYTES - PART_ALIGNMENT) {
    throw new UsageError(`kernel benchmark: ${threads} threads with ${bytes} bytes each do not fit`, '');
  }

  const memory = createArena(threads * bytes + PART_ALIGNMENT);
  adviseHugePages(kernels, memory);
  const crew = startThreads(threads, (index) => ({
    memory,
    kernels,
    begin: PART_ALIGNMENT + index * bytes,
    bytes,
    cols,
  }));
  try {
    const rows: KernelBenchRow[] = [];
    for (const [index, format] of formats.entries()) {
      await tell(crew, { type: 'prepare', format });
      for (const name of cases) {
        if (name === 'read' && index > 0) continue; // the same bytes in every format
        if (name === 'attention' && format === 'q4') continue; // no such cache
        const measured = await measure(crew, name, timeMs);
        const row = {
          kernels: kernels.name,
          case: name,
          format: name === 'read' ? null : format,
          cols,
          threads,
        };
        rows.push({ ...row, ...measured });
        options.onProgress?.(rows.at(-1)!);
      }
    }
    return rows;
  } finally {
    await Promise.all(crew.workers.map((worker) => worker.terminate()));
  }
}

type Measured = Pick<KernelBenchRow, 'gbPerSecond' | 'deviation' | 'samples'>;

/** One sample: all threads do the case once; time counts from the first one's start to the last one's end. */
async function measure(crew: Crew, name: KernelCase, timeMs: number): Promise<Measured> {
  const rates: number[] = [];
  let sample = 0;
  const bench = new Bench({
    time: timeMs,
    iterations: MIN_SAMPLES,
    warmupTime: 0,
    warmupIterations: 1,
    throws: true,
  });
  bench.add(
    name,
    async () => {
      const replies = await tell(crew, { type: 'run', case: name, sample: sample++ });
      const begin = replies.reduce(
        (least, reply) => (reply.begin < least ? reply.begin : least),
        replies[0].begin,
      );
      const end = replies.reduce((most, reply) => (reply.end > most ? reply.end : most), 0n);
      const ms = Number(end - begin) / 1e6;
      const bytes = replies.reduce((sum, reply) => sum + reply.bytes, 0);
      rates.push(bytes / ms / 1e6);
      return { overriddenDuration: ms };
    },
    // Warm-up passes are not samples.
    { beforeAll: () => void (rates.length = 0) },
  );
  await bench.run();
  const sorted = [...rates].sort((a, b) => a - b);
  const mean = rates.reduce((sum, rate) => sum + rate, 0) / rates.length;
  const variance = rates.reduce((sum, rate) => sum + (rate - mean) ** 2, 0) / Math.max(1, rates.length - 1);
  return {
    gbPerSecond: sorted[Math.floor(sorted.length / 2)],
    deviation: Math.sqrt(variance),
    samples: rates.length,
  };
}

interface Crew {
  workers: Worker[];
  /** Rejects when a thread throws or ends before it is told to. */
  failed: Promise<never>;
}

function startThreads(threads: number, task: (index: number) => KernelTask): Crew {
  const url = workerUrl(import.meta.url, './kernels-worker.js');
  const workers = Array.from({ length: threads }, (_, index) => new Worker(url, { workerData: task(index) }));
  const failed = new Promise<never>((_, reject) => {
    const fail = (cause: unknown): void =>
      reject(new RuntimeFault('LANE_FAILED', 'a thread of the kernel benchmark ended early', { cause }));
    for (const worker of workers) worker.once('error', fail).once('exit', fail);
  });
  failed.catch(() => undefined); // ending the threads when all is done is no failure
  return { workers, failed };
}

/** Sends one message to every thread and waits for all replies. */
function tell({ workers, failed }: Crew, message: KernelMessage): Promise<KernelReply[]> {
  const replies = workers.map(async (worker) => {
    worker.postMessage(message);
    return ((await once(worker, 'message')) as [KernelReply])[0];
  });
  return Promise.race([Promise.all(replies), failed]);
}
