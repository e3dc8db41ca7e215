/**
 * The lanes from the main thread's side: a piscina pool with one long task per lane, jobs posted to all of
 * them, and what happens when one dies or hangs: every other lane is told to leave the job, the job fails
 * with one error, the pool is destroyed. The arenas survive, so a new pool is quick.
 */
import { availableParallelism } from 'node:os';
import { MessageChannel, type MessagePort } from 'node:worker_threads';
import { Piscina } from 'piscina';
import { HybridError, RuntimeFault } from '../errors.js';
import { workerUrl } from '../io/worker-path.js';
import type { KernelChoice } from '../kernels/select.js';
import { controlWords, Word } from './control.js';
import type { LaneJob, LaneMessage, LaneTask, SequenceEvent, SequenceMessage } from './jobs.js';
import type { ModelLayout } from './layout.js';
import { statsBytes } from './stats.js';
import { stepBytes } from './step.js';
import { timelineBytes } from './timeline.js';

/** After the first failure of a job the other lanes leave it at their next barrier; one that does not is hung. */
const GRACE_MS = 3000;
/**
 * A job with barriers in which none is passed, and no lane says that it waits on purpose, for this long: a lane
 * hangs. Between two barriers lies a part of one layer: milliseconds, a second on a machine that swaps.
 */
const HANG_MS = 5000;
const WATCH_MS = 500;

export interface JobHandlers {
  /** Bytes loaded since the last call, by any lane. */
  onProgress?: (bytes: number) => void;
  onEvents?: (events: SequenceEvent[]) => void;
}

interface Running {
  handlers: JobHandlers;
  waiting: number;
  failure: HybridError | null;
  grace: NodeJS.Timeout | null;
  resolve: () => void;
  reject: (error: HybridError) => void;
}

export class LanePool {
  readonly control: Int32Array;
  /** One recording a lane (timeline.ts); null: none. */
  readonly timelines: SharedArrayBuffer[] | null;
  private readonly pool: Piscina;
  private readonly ports: MessagePort[] = [];
  private inbox!: MessagePort;
  private running: Running | null = null;
  private watch: NodeJS.Timeout | null = null;
  private death: HybridError | null = null;
  private closing = false;

  private constructor(
    private readonly layout: ModelLayout,
    timeline: boolean,
  ) {
    const { laneCount } = layout;
    this.control = new Int32Array(new SharedArrayBuffer(controlWords(laneCount) * 4));
    this.timelines = timeline
      ? Array.from({ length: laneCount }, () => new SharedArrayBuffer(timelineBytes))
      : null;
    this.pool = new Piscina({
      filename: workerUrl(import.meta.url, './lane-worker.js').href,
      minThreads: laneCount,
      maxThreads: laneCount,
      concurrentTasksPerWorker: 1,
      atomics: 'disabled', // a lane sleeps on its own control word, not on piscina's
      recordTiming: false,
    });
  }

  /** Start the lanes and wait until each has its kernels. @throws RuntimeFault LANE_FAILED */
  static async start(
    layout: ModelLayout,
    memories: WebAssembly.Memory[],
    kernels: KernelChoice,
    timeline = false,
  ): Promise<LanePool> {
    const lanes = new LanePool(layout, timeline);
    await lanes.launch(memories, kernels);
    return lanes;
  }

  private launch(memories: WebAssembly.Memory[], kernels: KernelChoice): Promise<void> {
    const { layout } = this;
    this.pool.on('error', (error) => this.died(error));
    const ready = this.expect({});
    const stats = new SharedArrayBuffer(statsBytes(layout));
    const step = new SharedArrayBuffer(stepBytes(layout.batchTokens));
    const inbox = new MessageChannel();
    this.inbox = inbox.port1;
    this.inbox.unref();
    for (let lane = 0; lane < layout.laneCount; lane++) {
      const { port1, port2 } = new MessageChannel();
      this.ports.push(port1);
      port1.on('message', (message: LaneMessage) => this.receive(message));
      const task: LaneTask = {
        lane,
        layout,
        memories,
        kernels,
        control: this.control.buffer as SharedArrayBuffer,
        step,
        stats,
        cores: availableParallelism(),
        timeline: this.timelines?.[lane] ?? null,
        port: port2,
        inbox: lane === 0 ? inbox.port2 : null,
      };
      this.pool.run(task, { transferList: lane === 0 ? [port2, inbox.port2] : [port2] }).then(
        () => this.closing || this.died(new Error('a lane ended by itself')),
        (error) => this.died(error as Error),
      );
    }
    return ready;
  }

  get dead(): boolean {
    return this.death !== null;
  }

  /** The threads, for tests that kill one. */
  get threads(): Piscina['threads'] {
    return this.pool.threads;
  }

  /** Let the process exit while the lanes sleep; call with true while a job runs. */
  hold(alive: boolean): void {
    for (const thread of this.pool.threads) {
      if (alive) thread.ref();
      else thread.unref();
    }
    for (const port of this.ports) {
      if (alive) port.ref();
      else port.unref();
    }
  }

  /**
   * Post a job to all lanes and wait for all of them. One job at a time: the caller queues.
   * @throws HybridError what the first failing lane threw, or LANE_FAILED when a lane died or hangs
   */
  run(job: LaneJob, handlers: JobHandlers = {}): Promise<void> {
    if (this.death) return Promise.reject(this.death);
    const result = this.expect(handlers);
    for (const word of [Word.ARRIVED, Word.SLEEPERS, Word.FAULT, Word.MAIL]) {
      Atomics.store(this.control, word, 0);
    }
    for (const port of this.ports) port.postMessage(job);
    this.wake(Word.JOB);
    if (job.type === 'serve') this.startWatch();
    return result;
  }

  /** The job under way ends early: lanes leave it where they look, and it counts as done. */
  interrupt(): void {
    Atomics.store(this.control, Word.FAULT, 1);
  }

  /** Pages of the KV cache, as of the last step. */
  get pages(): { used: number; cached: number; total: number } {
    return {
      used: Atomics.load(this.control, Word.PAGES_USED),
      cached: Atomics.load(this.control, Word.PAGES_CACHED),
      total: this.layout.kvPages,
    };
  }

  /** A single row made the last job fail: the sequences of the others can go on. */
  get failedRow(): boolean {
    return Atomics.load(this.control, Word.FAILED_ROW) > 0;
  }

  /** A message to lane 0 about sequences; read when a `serve` job begins and between its steps. */
  send(message: SequenceMessage): void {
    this.inbox.postMessage(message);
    this.wake(Word.INBOX);
  }

  /** Lane 0 looks around: a message or a mask is there. */
  wake(word: number = Word.INBOX): void {
    Atomics.add(this.control, word, 1);
    Atomics.notify(this.control, word);
  }

  async close(): Promise<void> {
    this.closing = true;
    if (!this.death) {
      for (const port of this.ports) port.postMessage({ type: 'close' } satisfies LaneJob);
      this.wake(Word.JOB);
    }
    await this.destroy();
  }

  private expect(handlers: JobHandlers): Promise<void> {
    this.hold(true);
    return new Promise<void>((resolve, reject) => {
      const waiting = this.layout.laneCount;
      this.running = { handlers, waiting, failure: null, grace: null, resolve, reject };
    }).finally(() => {
      if (this.watch) clearInterval(this.watch);
      this.watch = null;
      this.hold(false);
    });
  }

  private startWatch(): void {
    const c = this.control;
    const progress = (): string => `${Atomics.load(c, Word.GENERATION)} ${Atomics.load(c, Word.HEARTBEAT)}`;
    let seen = progress();
    let still = 0;
    this.watch = setInterval(() => {
      const now = progress();
      still = now === seen ? still + WATCH_MS : 0;
      seen = now;
      if (still < HANG_MS) return;
      this.end(
        new RuntimeFault('LANE_FAILED', `a worker thread has not answered for ${HANG_MS / 1000} s`, {
          hint: 'The request was lost; the next one starts new workers. If it happens again, use fewer --threads.',
        }),
      );
    }, WATCH_MS);
    this.watch.unref();
  }

  private receive(message: LaneMessage): void {
    const job = this.running;
    if (!job) return;
    switch (message.type) {
      case 'progress':
        job.handlers.onProgress?.(message.done);
        return;
      case 'events':
        Atomics.store(this.control, Word.MAIL, 0);
        job.handlers.onEvents?.(message.events);
        return;
      case 'failed':
        job.failure ??= new RuntimeFault(message.code, message.message, { hint: message.hint });
        job.grace ??= setTimeout(() => this.hung(), GRACE_MS);
        break;
    }
    job.waiting--;
    if (job.waiting > 0) return;
    this.running = null;
    if (job.grace) clearTimeout(job.grace);
    if (job.failure) job.reject(job.failure);
    else job.resolve();
  }

  /** A job failed and some lane never left it: only ending its thread helps. The job's own failure is the news. */
  private hung(): void {
    const failure = this.running?.failure;
    if (failure) this.end(failure);
  }

  private died(cause: Error): void {
    this.end(
      new RuntimeFault('LANE_FAILED', `a worker thread died: ${cause.message}`, {
        hint: 'The request was lost; the next one starts new workers. If it ran out of memory, use a smaller model or --context.',
        cause,
      }),
    );
  }

  private end(reason: HybridError): void {
    if (this.closing || this.death) return;
    this.death = reason;
    Atomics.store(this.control, Word.FAULT, 1);
    Atomics.notify(this.control, Word.GENERATION);
    Atomics.notify(this.control, Word.JOB);
    Atomics.notify(this.control, Word.INBOX);
    const job = this.running;
    this.running = null;
    if (job?.grace) clearTimeout(job.grace);
    void this.destroy().finally(() => job?.reject(reason));
  }

  private async destroy(): Promise<void> {
    for (const port of this.ports) port.close();
    this.inbox.close();
    await this.pool.destroy();
  }
}
