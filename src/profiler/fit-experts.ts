/**
 * A layer's predictor, expert by expert: each is fitted to the tokens that met it, like a layer of its own. A layer
 * without a mixture is one expert that every token meets.
 *
 * Experts that few tokens met lean on the inputs of the others (moments.ts) and leave no neuron out for good. Below
 * LEAST_TOKENS there is nothing to fit to: all neurons of such an expert are candidates. Where neurons are left out by
 * their contribution the cuts are known beforehand, and rows are rounded for the inputs of all tokens instead.
 */
import type { Pack } from '../pack/types.js';
import { fitContribution } from '../predictor/fit-contribution.js';
import { fitLayer, type Attempt, type FittedLayer } from '../predictor/fit-layer.js';
import { allCandidates, joinAttempts, joinPredictors } from '../predictor/join-experts.js';
import { createMatrices } from '../predictor/matrix.js';
import { inputMoments, type Moments } from '../predictor/moments.js';
import { toQ8 } from '../predictor/rows.js';
import type { SampleParts, SampleRange, Samples } from '../predictor/samples.js';
import type { Biases } from '../predictor/scorer.js';
import type { SketchFormat } from '../predictor/sketch.js';
import type { LayerPredictor } from '../predictor/types.js';
import { measureCurve, type Measurable, type MeasuredLayer } from './curve.js';
import { downNorms, gateRows, gateThresholds, neuronBias, upRows, type NeuronRange } from './pack-rows.js';
import { bitBytes, type LayerRecording } from './recording-files.js';
import type { TrainJob } from './train-worker.js';

/** Predictor bits per gate weight, scales included. Above it, reading the gate itself is hardly dearer. */
const MAX_BITS = 3.25;
/** From fewer training tokens cuts are guesses: the standard error of 64 errs by 9 %. */
const LEAST_TOKENS = 64;
/** A neuron that stayed silent in fewer keeps its row: it may fire in one token of 300 (with 95 % confidence). */
const SURELY_DEAD_TOKENS = 1024;

export interface FittedExperts extends MeasuredLayer {
  predictor: LayerPredictor;
  attempts: Attempt[];
  /** By stage, of all experts. */
  seconds: Record<string, number>;
  /** Experts whose neurons all are candidates, as too few training tokens met them. */
  unfitted: { expert: number; tokens: number }[];
}

/** What the experts of a layer share. */
interface LayerParts {
  job: TrainJob;
  pack: Pack;
  recording: LayerRecording;
  norms: Float32Array;
  thresholds: Float32Array | number;
  /** With contributions. */
  biases: Biases | null;
  /** Of a mixture. */
  prior?: Moments;
  check: () => void;
  seconds: Record<string, number>;
}

export async function fitExperts(
  job: TrainJob,
  pack: Pack,
  recording: LayerRecording,
  check: () => void,
): Promise<FittedExperts> {
  const { layer, parts } = job;
  const { shape, d } = recording;
  const mixture = shape.count > 1;
  const shared = await layerParts(job, pack, recording, check);
  const { seconds } = shared;
  const all = Array.from({ length: shape.count }, (_, e) => e);
  const tokens = all.map((e) => tokensOf(shared, e).count);
  const fits: (FittedLayer | null)[] = [];
  for (const e of all) fits.push(await fitExpert(shared, e));
  const tried = fits.map((fit) => fit?.attempts ?? []);
  if (mixture) {
    const best = joinAttempts(tried, tokens, shape)[0]?.format as SketchFormat | undefined;
    for (const e of all) {
      if (!fits[e] || fits[e].predictor.fc2.format === best) continue;
      fits[e] = await fitExpert(shared, e, best);
      tried[e] = [...tried[e], ...fits[e]!.attempts];
    }
  }
  const attempts = mixture ? joinAttempts(tried, tokens, shape) : tried[0];
  const format = fits.find((fit) => fit !== null)?.predictor.fc2.format ?? 'q1';
  const experts = fits.map((fit) => fit?.predictor ?? allCandidates(layer, shape.size, format, d));
  const neurons = shape.count * shape.size;
  const measured = await timed(seconds, 'curve', async () =>
    measureCurve(measurable(shared, experts), {
      choose: neurons * (parts.choose.end - parts.choose.begin),
      report: neurons * (parts.report.end - parts.report.begin),
    }),
  );
  const unfitted = all.filter((e) => fits[e] === null).map((expert) => ({ expert, tokens: tokens[expert] }));
  return { predictor: joinPredictors(experts, shape.size), ...measured, attempts, seconds, unfitted };
}

async function layerParts(
  job: TrainJob,
  pack: Pack,
  recording: LayerRecording,
  check: () => void,
): Promise<LayerParts> {
  const { layer, contribution, provider, threads } = job;
  const { gateBias, upBias } = pack.header.layers[layer];
  const { kind } = pack.header.config.activation;
  const biased = { activation: kind, gate: neuronBias(pack, gateBias), up: neuronBias(pack, upBias) };
  const seconds: Record<string, number> = {};
  const read = await timed(seconds, 'read', async () => ({
    norms: downNorms(pack, layer),
    thresholds: gateThresholds(pack, layer),
    biases: contribution === null ? null : biased,
  }));
  const shared: LayerParts = { job, pack, recording, ...read, check, seconds };
  if (recording.shape.count === 1) return shared;
  const matrices = await createMatrices({ provider, threads, check });
  try {
    const prior = await timed(seconds, 'moments', () => inputMoments(recording, job.parts.train, matrices));
    return { ...shared, prior };
  } finally {
    await matrices.release();
  }
}

/**
 * @param format the only one to try; default: those that the job allows
 * @returns null: too few tokens met the expert
 */
async function fitExpert(shared: LayerParts, e: number, format?: SketchFormat): Promise<FittedLayer | null> {
  const { job, pack, recording, norms, thresholds, biases, prior, check, seconds } = shared;
  const { layer } = job;
  const own = tokensOf(shared, e);
  const few = own.count < LEAST_TOKENS;
  if (few && !biases) return null;
  // Nothing is known of what the expert would have done with the tokens of others.
  const { samples, parts } = few ? { samples: unlabelled(recording), parts: job.parts } : own;
  const range = rangeOf(shared, e);
  const { gate, ffn } = pack.header.layers[layer];
  const weights = await timed(seconds, 'read', async () => ({
    gateRows: gateRows(pack, layer, range),
    upRows: biases && upRows(pack, layer, range),
  }));
  const common = {
    ...weights,
    layer,
    downNorms: norms.subarray(range.begin, range.end),
    gateRowBytes: gate.stride,
    recordBytes: ffn.stride,
    sketches: format && [format],
    prior,
    dropUnseen: own.count >= SURELY_DEAD_TOKENS,
    provider: job.provider,
    threads: job.threads,
    check,
  };
  const fitted = biases
    ? await fitContribution(
        {
          ...common,
          least: job.contribution!,
          weightedRecall: job.recall,
          biases: biasesIn(biases, range),
        },
        samples,
        parts,
      )
    : await fitLayer(
        {
          ...common,
          kind: job.kind,
          recall: job.recall,
          maxBits: MAX_BITS,
          ranks: job.rank === 'auto' ? undefined : [job.rank],
          epochs: job.epochs,
          seed: job.seed,
          gateThreshold: typeof thresholds === 'number' ? thresholds : thresholds.subarray(range.begin, range.end), // prettier-ignore
        },
        samples,
        parts,
      );
  for (const [stage, value] of Object.entries(fitted.seconds)) {
    seconds[stage] = (seconds[stage] ?? 0) + value;
  }
  return fitted;
}

/** Each expert with what met it, read as it is asked for. */
function* measurable(shared: LayerParts, experts: readonly LayerPredictor[]): Generator<Measurable> {
  const { job, pack, norms, biases } = shared;
  for (const [e, predictor] of experts.entries()) {
    const range = rangeOf(shared, e);
    const { samples, parts } = tokensOf(shared, e);
    yield {
      predictor,
      samples,
      parts,
      norms: norms.subarray(range.begin, range.end),
      biases: biases && biasesIn(biases, range),
      gates: predictor.kind === 'up' ? toQ8(gateRows(pack, job.layer, range), samples.nFf, samples.d) : null,
    };
  }
}

// ---- an expert's share of a layer ------------------------------------------------------------------------

const rangeOf = ({ recording: { shape } }: LayerParts, e: number): NeuronRange => ({
  begin: e * shape.size,
  end: (e + 1) * shape.size,
});

const biasesIn = ({ activation, gate, up }: Biases, { begin, end }: NeuronRange): Biases => ({
  activation,
  gate: gate && gate.subarray(begin, end),
  up: up && up.subarray(begin, end),
});

/** What met the expert; `count`: to train on. */
function tokensOf(
  { recording, job: { parts } }: LayerParts,
  e: number,
): { samples: Samples; parts: SampleParts; count: number } {
  const samples = recording.expert(e);
  const before = (row: number): number => {
    const at = samples.rows.findIndex((of) => of >= row);
    return at < 0 ? samples.rows.length : at;
  };
  const within = ({ begin, end }: SampleRange): SampleRange => ({ begin: before(begin), end: before(end) });
  const train = within(parts.train);
  return {
    samples,
    parts: { train, choose: within(parts.choose), report: within(parts.report) },
    count: train.end - train.begin,
  };
}

/** The inputs of all tokens for one expert's neurons. */
function unlabelled(recording: LayerRecording): Samples {
  const { samples, d, shape } = recording;
  return {
    samples,
    d,
    nFf: shape.size,
    bits: new Uint8Array(samples * bitBytes(shape.size)),
    magnitudes: new Float32Array(0),
    magnitudeAt: new Uint32Array(samples),
    inputs: (begin, end) => recording.inputs(begin, end),
  };
}

async function timed<T>(seconds: Record<string, number>, stage: string, work: () => Promise<T>): Promise<T> {
  const begin = performance.now();
  const result = await work();
  seconds[stage] = (seconds[stage] ?? 0) + (performance.now() - begin) / 1000;
  return result;
}
