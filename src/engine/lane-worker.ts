/**
 * A lane: one long piscina task on one worker thread. It sleeps on the control word JOB, takes the job from
 * its port, runs its share and reports. All lanes run the same code and meet at barriers; lane 0 also keeps
 * the sequences and fills every step.
 */
import { receiveMessageOnPort } from 'node:worker_threads';
import { HybridError } from '../errors.js';
import { instantiateKernels } from '../kernels/select.js';
import { LaneInterrupted, Word } from './control.js';
import { forward } from './forward.js';
import { openGpuLink } from './gpu-link.js';
import { gpuHoldsModel, stepOnGpu } from './gpu-step.js';
import type { LaneJob, LaneMessage, LaneTask, ServeJob } from './jobs.js';
import { createLaneContext, type LaneContext } from './lane-context.js';
import { fillDownNorms, fillRopeTables, loadShare } from './load.js';
import { Sequences } from './sequences.js';
import { Step } from './step.js';
import { Timeline } from './timeline.js';
import { TraceBuffers } from './trace.js';

/** Progress messages are sent for at least this many bytes: a message costs more than copying a page. */
const PROGRESS_BYTES = 32 * 2 ** 20;

interface Lane {
  context: LaneContext;
  step: Step;
  /** Lane 0's; null elsewhere. Lives as long as the lane: prefixes stay known between jobs. */
  sequences: Sequences | null;
  post: (message: LaneMessage) => void;
}

export default function lane(task: LaneTask): void {
  const { port, layout } = task;
  const control = new Int32Array(task.control);
  const post = (message: LaneMessage): void => port.postMessage(message);
  const kernels = task.memories.map((memory) => instantiateKernels(task.kernels, memory));
  const context = createLaneContext(
    task.lane,
    layout,
    task.memories,
    kernels,
    control,
    task.stats,
    task.cores,
  );
  const step = new Step(task.step, layout.batchTokens);
  const sequences =
    task.inbox &&
    new Sequences(context, step, task.inbox, task.stats, (events) => post({ type: 'events', events }));
  const me: Lane = { context, step, sequences, post };
  const gpu = layout.gpu && openGpuLink(layout.gpu);
  if (task.timeline) context.timeline = new Timeline(task.timeline, task.lane);
  let seen = Atomics.load(control, Word.JOB);
  post({ type: 'ready' });
  for (;;) {
    const received = receiveMessageOnPort(port) as { message: LaneJob } | undefined;
    if (!received) {
      Atomics.wait(control, Word.JOB, seen);
      seen = Atomics.load(control, Word.JOB);
      continue;
    }
    const job = received.message;
    if (job.type === 'close') break;
    try {
      context.gpu = job.type === 'serve' && job.gpu ? gpu : null;
      runJob(me, job);
      post({ type: 'done' });
    } catch (error) {
      if (error instanceof LaneInterrupted) {
        post({ type: 'interrupted' });
        continue;
      }
      // The others must leave the job too: they look at FAULT at their next barrier.
      Atomics.store(control, Word.FAULT, 1);
      Atomics.notify(control, Word.GENERATION);
      post(describeFailure(error));
    }
  }
  port.close();
  task.inbox?.close();
}

function runJob(lane: Lane, job: Exclude<LaneJob, { type: 'close' }>): void {
  const { context, post } = lane;
  switch (job.type) {
    case 'load': {
      let unreported = 0;
      loadShare(context, job.fd, job.path, job.items, (bytes) => {
        unreported += bytes;
        if (unreported < PROGRESS_BYTES) return;
        post({ type: 'progress', done: unreported });
        unreported = 0;
      });
      if (context.lane === 0) fillRopeTables(context);
      return;
    }
    case 'norms':
      return fillDownNorms(context);
    case 'serve':
      return serve(lane, job);
  }
}

/** Step after step, until lane 0 finds nothing to do. */
function serve({ context, step, sequences }: Lane, job: ServeJob): void {
  context.layout.layers.forEach((layer, l) => {
    layer.mode = job.modes[l];
    layer.cut = job.cuts[l];
  });
  context.trace = job.trace && new TraceBuffers(job.trace);
  context.work.reset();
  sequences?.resume(job.culprit, job.forget);
  for (;;) {
    sequences?.fillStep();
    context.barrier.wait();
    if (step.rows === 0) break;
    if (gpuHoldsModel(context)) stepOnGpu(context, step);
    else forward(context, step);
    sequences?.takeResults();
  }
}

function describeFailure(error: unknown): LaneMessage {
  if (error instanceof HybridError) {
    return { type: 'failed', code: error.code, message: error.message, hint: error.hint };
  }
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
  return {
    type: 'failed',
    code: 'LANE_FAILED',
    message: `a lane failed: ${text}`,
    hint: 'This is a defect of hybrid-infer; please report it with this message.',
  };
}
