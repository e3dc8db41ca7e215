/**
 * A lane of the training: onnxruntime's run blocks its thread, so every lane is a thread of its own and works on
 * its own part of a step's batches. Weights come from shared memory and gradient sums go there; onnxruntime takes
 * no shared memory, so a lane has a copy of both.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { HybridError } from '../errors.js';
import { f32Tensor, OnnxSession, type TensorValue } from '../onnx/session.js';
import { METRICS, TEACHER } from './graphs.js';
import type { LaneInit, LaneJob, LaneReply, MeasuredPart, StepMetrics, Tokens } from './lanes.js';
import type { Parameter } from './parameters.js';

const init = workerData as LaneInit;
const { parameters } = init;
const trained = parameters.filter((p) => p.trained);

/** Views of a flat array as tensors, by name. */
function tensorsOf(flat: Float32Array, list: readonly Parameter[], prefix = ''): Record<string, TensorValue> {
  return Object.fromEntries(
    list.map(({ name, shape, begin, size }) => [
      prefix + name,
      f32Tensor(flat.subarray(begin, begin + size), shape),
    ]),
  );
}

const shared = new Float32Array(init.weights);
const weights = Float32Array.from(shared);
const feeds = tensorsOf(weights, parameters);
const teacher = init.teacher
  ? tensorsOf(
      Float32Array.from(new Float32Array(init.teacher)),
      parameters.filter(({ name }) => !name.includes(':')),
      TEACHER,
    )
  : {};
const sums = new Float32Array(init.sums);

/** Sessions are made when they are first needed: a threshold search trains nothing. */
const sessions: { training?: OnnxSession; measuring?: OnnxSession } = {};
const sessionFor = async (kind: 'training' | 'measuring'): Promise<OnnxSession> =>
  (sessions[kind] ??= await OnnxSession.create(init[kind], { threads: init.threads }));

function refreshWeights(all: boolean): void {
  for (const { begin, size } of all ? parameters : trained)
    weights.set(shared.subarray(begin, begin + size), begin);
}

const tokenFeeds = ({ ids, labels }: Tokens): Record<string, TensorValue> => ({
  ids: { type: 'int64', dims: [ids.length], data: ids },
  labels: { type: 'int64', dims: [labels.length, 1], data: labels },
});

/** Gradients of all parts, added in their order: the sum does not depend on when other lanes finish. */
async function train(parts: Tokens[], lambda: number): Promise<StepMetrics[]> {
  const session = await sessionFor('training');
  const metrics: StepMetrics[] = [];
  let running: Record<string, TensorValue> = Object.fromEntries(
    trained.map(({ name, shape, size }) => [`sum:${name}`, f32Tensor(new Float32Array(size), shape)]),
  );
  for (const part of parts) {
    const result = await session.run({
      ...feeds,
      ...teacher,
      ...running,
      ...tokenFeeds(part),
      lambda: f32Tensor(Float32Array.of(lambda), []),
    });
    running = Object.fromEntries(
      trained.map(({ name, shape }) => [
        `sum:${name}`,
        f32Tensor(result[`new:${name}`].data as Float32Array, shape),
      ]),
    );
    metrics.push(
      Object.fromEntries(METRICS.map((name) => [name, Number(result[name].data[0])])) as StepMetrics,
    );
  }
  let at = 0;
  for (const { name, size } of trained) {
    sums.set(running[`sum:${name}`].data as Float32Array, at);
    at += size;
  }
  return metrics;
}

async function measure(
  parts: (Tokens & { scored: Float32Array })[],
  threshold: number,
): Promise<MeasuredPart[]> {
  const session = await sessionFor('measuring');
  const measured: MeasuredPart[] = [];
  for (const part of parts) {
    const result = await session.run({
      ...feeds,
      ...tokenFeeds(part),
      scored: f32Tensor(part.scored, [part.scored.length, 1]),
      threshold: f32Tensor(Float32Array.of(threshold), []),
    });
    measured.push({ nll: Number(result.nll.data[0]), zeros: Array.from(result.zeros.data as Int32Array) });
  }
  return measured;
}

parentPort!.on('message', (job: LaneJob) => {
  refreshWeights(job.reload ?? false);
  const work = job.type === 'train' ? train(job.parts, job.lambda) : measure(job.parts, job.threshold);
  work.then(
    (result) => parentPort!.postMessage({ ok: true, result } satisfies LaneReply),
    (error: unknown) =>
      parentPort!.postMessage({
        ok: false,
        code: error instanceof HybridError ? error.code : 'LANE_FAILED',
        message: error instanceof Error ? error.message : String(error),
      } satisfies LaneReply),
  );
});
