/**
 * The memory bandwidth that speed is judged by: all threads read one large arena from end to end, with the
 * same kernels, memory and huge pages the engine uses. Sampled between the runs it is compared with.
 */
import { once } from 'node:events';
import { availableParallelism, totalmem } from 'node:os';
import { Worker } from 'node:worker_threads';
import { createArena } from '../engine/arena.js';
import { RuntimeFault } from '../errors.js';
import { workerUrl } from '../io/worker-path.js';
import { adviseHugePages, type KernelChoice } from '../kernels/select.js';
import type { ProbeReply, ProbeTask } from './bandwidth-worker.js';
import { setTimeout as sleep } from 'node:timers/promises';
import { median } from '../evaluate/paired.js';

/** Far more than any cache holds; a small machine gives an eighth of its memory. */
const PROBE_BYTES = 1024 * 2 ** 20;
const PART_ALIGNMENT = 4096;
/** Threads of the run before may still spin for a moment, and then a read looks slow. */
const SETTLE_MS = 150;
/** Reads of a sample. What else runs can only make a read slower, so the fastest one counts. */
const READS = 5;

/** No run can be faster than its bytes can be read: past this a share of the floor is a mistake of measurement. */
export const MOST_OF_FLOOR = 1.05;
/** Smaller models are read from caches, where memory is no floor. */
export const CACHED_BYTES = 256 * 2 ** 20;

export class BandwidthProbe {
  /** GB/s (10^9 bytes) of every sample so far. */
  readonly samples: number[] = [];

  private constructor(
    private readonly workers: Worker[],
    private readonly bytes: number,
  ) {}

  /** Starts the threads and touches the memory. */
  static async start(
    threads: number,
    kernels: KernelChoice,
    bytes = defaultBytes(),
  ): Promise<BandwidthProbe> {
    const memory = createArena(bytes);
    adviseHugePages(kernels, memory);
    const part = Math.floor(bytes / threads / PART_ALIGNMENT) * PART_ALIGNMENT;
    const url = workerUrl(import.meta.url, './bandwidth-worker.js');
    const workers = Array.from({ length: threads }, (_, index) => {
      const workerData: ProbeTask = { memory, kernels, begin: index * part, bytes: part };
      return new Worker(url, { workerData });
    });
    const probe = new BandwidthProbe(workers, part * threads);
    await probe.replies(); // each says when its part is written
    return probe;
  }

  /** Median of a few samples with one thread per core. */
  static async measure(kernels: KernelChoice, samples = 3): Promise<number> {
    const probe = await BandwidthProbe.start(availableParallelism(), kernels);
    try {
      for (let i = 0; i < samples; i++) await probe.sample();
      return median(probe.samples);
    } finally {
      await probe.close();
    }
  }

  /** Lets the machine settle, then reads everything a few times. @returns GB/s of the fastest read */
  async sample(): Promise<number> {
    await sleep(SETTLE_MS);
    let fastest = 0;
    for (let i = 0; i < READS; i++) fastest = Math.max(fastest, await this.read());
    this.samples.push(fastest);
    return fastest;
  }

  /** One read of everything. @returns GB/s from the first thread's start to the last one's end */
  private async read(): Promise<number> {
    const replies = this.replies();
    for (const worker of this.workers) worker.postMessage('read');
    const times = await replies;
    const begin = times.reduce((a, t) => (t.begin < a ? t.begin : a), times[0].begin);
    const end = times.reduce((a, t) => (t.end > a ? t.end : a), times[0].end);
    return this.bytes / Number(end - begin);
  }

  async close(): Promise<void> {
    await Promise.all(this.workers.map((worker) => worker.terminate()));
  }

  private replies(): Promise<ProbeReply[]> {
    return Promise.all(
      this.workers.map(async (worker) => {
        const [reply] = (await once(worker, 'message')) as [ProbeReply];
        return reply;
      }),
    ).catch((cause: Error) => {
      throw new RuntimeFault('LANE_FAILED', `the bandwidth probe failed: ${cause.message}`, { cause });
    });
  }
}

const defaultBytes = (): number => Math.min(PROBE_BYTES, Math.floor(totalmem() / 8));
