/**
 * The thread that owns the GPU. It loads every unit, reports what that took, and then serves the mailbox until told
 * to stop. A run blocks it (onnxruntime) or keeps its event loop busy (Dawn), so the thread does nothing else
 * meanwhile; between requests it sleeps on the mailbox, not on its event loop.
 */
import { parentPort, workerData } from 'node:worker_threads';

import { GpuMailbox, GpuState, type GpuUnits } from '../engine/gpu-mailbox.js';
import { HybridError } from '../errors.js';
import type { OnnxUnitsData } from './onnx-units.js';
import type { ServerStart, UnitServer } from './unit-server.js';
import type { WebGpuUnitsData } from './webgpu/units.js';

export interface GpuWorkerData {
  mailbox: GpuUnits['mailbox'];
  work: { by: 'onnxruntime'; data: OnnxUnitsData } | { by: 'webgpu'; data: WebGpuUnitsData };
}

export type GpuWorkerMessage =
  | { type: 'unit'; bytes: number; ms: number }
  | { type: 'ready'; bytes: number; device: string | null }
  | { type: 'failed'; code: HybridError['code'] | null; message: string };

const data = workerData as GpuWorkerData;
const { buffer, byteOffset, layout, spareCore } = data.mailbox;
const mailbox = new GpuMailbox(buffer, byteOffset, layout, spareCore);
const tell = (message: GpuWorkerMessage): void => parentPort!.postMessage(message);

try {
  const server = await load();
  try {
    tell({ type: 'ready', bytes: server.bytes, device: server.device });
    mailbox.setState(GpuState.serving);
    await serve(server);
  } finally {
    await server.close();
  }
} catch (error) {
  const code = error instanceof HybridError ? error.code : null;
  tell({ type: 'failed', code, message: error instanceof Error ? error.message : String(error) });
} finally {
  mailbox.setState(GpuState.gone);
}

/** Each library is loaded only where it is used. */
async function load(): Promise<UnitServer> {
  const start: ServerStart = {
    x: mailbox.x,
    y: mailbox.y,
    onUnit: (bytes, ms) => {
      tell({ type: 'unit', bytes, ms });
      return !mailbox.stopping;
    },
  };
  const { work } = data;
  if (work.by === 'webgpu') return (await import('./webgpu/units.js')).WebGpuUnits.load(work.data, start);
  return (await import('./onnx-units.js')).OnnxUnits.load(work.data, start);
}

async function serve(server: UnitServer): Promise<void> {
  for (let last = 0; ;) {
    const next = mailbox.nextRequest(last);
    if (next === null) return;
    const { request, unit, tokens } = next;
    const beginUs = nowUs();
    try {
      await server.run(unit, tokens);
      mailbox.finish(request, beginUs, nowUs());
    } catch (error) {
      // The server is poisoned: every later wait fails as well, and y is never read.
      mailbox.fail(request, error instanceof Error ? error.message : String(error));
      return;
    }
    last = request;
  }
}

/** One clock for all threads of the process; `performance.now` starts anew in each. */
function nowUs(): number {
  return Number(process.hrtime.bigint() / 1000n);
}
