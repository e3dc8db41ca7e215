/** Prompts to token ids, on a thread of their own; a thread that dies is an error for its requests and built again. */
import { Worker } from 'node:worker_threads';
import { HybridError } from '../errors.js';
import { workerUrl } from '../io/worker-path.js';
import type { EncodeReply, EncodeRequest, EncoderData, EncodeTask } from './encode-worker.js';

interface Pending {
  resolve(ids: number[]): void;
  reject(error: Error): void;
}

export class Encoder {
  private worker: Worker | null = null;
  private readonly pending = new Map<number, Pending>();
  private nextId = 0;
  private closed = false;

  constructor(private readonly data: EncoderData) {}

  get hasTemplate(): boolean {
    return this.data.form !== null;
  }

  /** @throws HybridError TEMPLATE_INVALID, TOKENIZER_INVALID */
  encode(task: EncodeTask): Promise<number[]> {
    if (this.closed) return Promise.reject(new HybridError('CLOSED', 'the server is closing'));
    this.worker ??= this.start();
    const id = this.nextId++;
    return new Promise((resolve, reject) => {
      this.pending.set(id, { resolve, reject });
      this.worker!.postMessage({ id, task } satisfies EncodeRequest);
    });
  }

  async close(): Promise<void> {
    this.closed = true;
    await this.worker?.terminate();
  }

  private start(): Worker {
    const worker = new Worker(workerUrl(import.meta.url, './encode-worker.js'), { workerData: this.data });
    worker.unref();
    worker.on('message', (reply: EncodeReply) => {
      const waiting = this.pending.get(reply.id);
      this.pending.delete(reply.id);
      if ('ids' in reply) waiting?.resolve(reply.ids);
      else
        waiting?.reject(new HybridError(reply.error.code, reply.error.message, { hint: reply.error.hint }));
    });
    const lost = (why: string): void => {
      if (this.worker === worker) this.worker = null;
      const error = new HybridError('LANE_FAILED', `the tokenizer’s thread ended: ${why}`);
      for (const { reject } of this.pending.values()) reject(error);
      this.pending.clear();
    };
    worker.on('error', (error) => lost(String(error)));
    worker.on('exit', (code) => lost(`exit code ${code}`));
    return worker;
  }
}
