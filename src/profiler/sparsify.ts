/**
 * `profile --sparsify`: what can be left out of a model whose activation has no zeros, without training it.
 *
 *     tabulate how small neurons are -> search the cuts that keep the perplexity limit (cuts.ts)
 *     -> record what contributes more than half as deep a cut -> fit predictors of that -> search their recall
 *     -> compare with dense, side by side
 *
 * Everything is chosen on the passages to choose by, and told of those that decided nothing.
 */
import { alternate, median, pairedRatio } from '../evaluate/paired.js';
import { cutIn, type ActivationCut, type FfnCuts, type FfnMode, type FfnPlan } from '../engine/ffn-plan.js';
import type { Engine } from '../engine/engine.js';
import { activeNeurons } from '../model/block.js';
import { GREEDY } from '../engine/sampler.js';
import { evaluateSettings, type Evaluation } from '../evaluate/evaluate.js';
import type { PredictorLayer } from '../predictor/artifact.js';
import {
  cutsAtLevel,
  perplexityWith,
  searchCut,
  tabulate,
  type FoundCut,
  type SearchOptions,
} from './cuts.js';
import type { Passages } from './passages.js';
import { predictorBytes, sizesOf, WORTH_IT, type FfnSizes } from './plan.js';
import type { LayerPredictor } from '../predictor/types.js';
import { applyThresholds, searchRecall } from './search.js';
import { equalSlopes } from './thresholds.js';
import type { TrainedLayer } from './train-worker.js';
import type { WorkFolder } from './work-folder.js';

/** What the searches found before anything was recorded. */
export interface SparsifyCuts {
  limit: number;
  /** CATS, by the gate: what `exact` leaves out. */
  gate: FoundCut;
  /** CETT, by contributions that are known: what no predictor can exceed. */
  contribution: FoundCut;
  /** By layer: what predictors are to find, and `predicted` leaves out of what it computes. */
  labels: ActivationCut[];
}

/**
 * Predictors are to find more than the deepest cut leaves, so that what they miss costs little: the neurons dropped
 * by the labels make this part of the contributions that the limit allows to drop.
 */
const LABEL_LEVEL = 0.5;
/** Where predictors are compared: share of the contributions they find. */
export const COMPARE_AT_WEIGHTED_RECALL = 0.9;
/** Of contributions; below it quality is gone. */
const LOWEST_RECALL = 0.7;

const CUTS = 'cuts.json';

/** A plan in which `exact` computes everything until cuts are set. */
export const uncutPlan = (layers: number): FfnPlan => {
  const none = { gate: 0, contribution: 0 };
  return {
    layers: Array.from({ length: layers }, () => ({
      mode: 'exact',
      always: new Uint32Array(0),
      scored: new Uint32Array(0),
      predictor: null,
      frequency: null,
      cuts: { exact: none, predicted: none },
    })),
  };
};

const chooseText = ({ windows, chooseFrom, reportFrom }: Passages): number[] =>
  windows.slice(chooseFrom, reportFrom).flat();
const reportText = ({ windows, reportFrom }: Passages): number[] => windows.slice(reportFrom).flat();

/**
 * The cuts of a model, found once: they stay in the work folder.
 * @param engine opened with `uncutPlan`; is left in FFN mode `exact` with the labels' cuts
 */
export async function findCuts(
  engine: Engine,
  work: WorkFolder,
  passages: Passages,
  limit: number,
  options: SearchOptions,
): Promise<SparsifyCuts> {
  const known = work.readJson<SparsifyCuts>(CUTS);
  const found = known ?? (await searchCuts(engine, passages, limit, options));
  if (!known) await work.writeJson(CUTS, found);
  await engine.setModes(
    found.labels.map(() => 'exact'),
    found.labels,
  );
  return found;
}

async function searchCuts(
  engine: Engine,
  passages: Passages,
  limit: number,
  options: SearchOptions,
): Promise<SparsifyCuts> {
  const tables = await tabulate(engine, passages, options.signal);
  const ids = chooseText(passages);
  const uncut = await perplexityWith(engine, cutsAtLevel(tables, 'gate', 0), ids, options);
  const search = (kind: 'gate' | 'contribution'): Promise<FoundCut> =>
    searchCut(engine, tables, kind, ids, uncut, limit, options);
  const [gate, contribution] = [await search('gate'), await search('contribution')];
  return {
    limit,
    gate,
    contribution,
    labels: cutsAtLevel(tables, 'contribution', LABEL_LEVEL * contribution.level),
  };
}

/** One way to run the model, on text that decided nothing. */
export interface Alternative {
  name: 'dense' | 'gate' | 'contribution' | 'predicted';
  /** Share of neurons whose up rows and down columns are not read (`contribution`: down columns). */
  skipped: number;
  /** Bytes of weights of a token's FFNs. */
  ffnBytes: number;
  perplexity: number;
  /** Of perplexity, against dense. */
  increase: number;
  klDivergence: number;
  /** Decoding, median of alternating rounds; null: not run (a known contribution is no way to run). */
  tokensPerSecond: number | null;
  /** Of the rounds, against dense in the same round. */
  speedup: number | null;
}

export interface Sparsified {
  limit: number;
  /** Weighted recall the predictors were set to, and whether that kept the limit. */
  weightedRecall: number;
  met: boolean;
  alternatives: Alternative[];
  chosen: FfnMode;
  /** In words: what was chosen and whether it pays. */
  verdict: string;
}

export interface SparsifyDecision {
  layers: PredictorLayer[];
  evaluation: Evaluation;
  target: string;
  sparsified: Sparsified;
}

export const cutsOf = (found: SparsifyCuts, l: number): FfnCuts => ({
  exact: found.gate.cuts[l],
  predicted: found.labels[l],
});

/**
 * Thresholds by perplexity, then all alternatives side by side.
 * @param engine every layer with its predictor and cuts loaded
 */
export async function decideSparsified(
  engine: Engine,
  found: SparsifyCuts,
  trained: readonly TrainedLayer[],
  passages: Passages,
  options: SearchOptions,
): Promise<SparsifyDecision> {
  const { header } = engine.pack;
  const metShare = activeNeurons(header.config) / header.config.intermediateSize;
  const { limit } = found;
  const { window, signal, onProgress } = options;
  const predictors = trained.map((layer) => layer.predictor);
  // Layers give up contributions, not neurons: the smallest ones are the cheapest to miss.
  const curves = trained.map(({ curve }) => ({ ...curve, recall: curve.weightedRecall }));
  const pointsAt = (recall: number): number[] => equalSlopes(curves, recall);
  const thresholdsAt = (recall: number): number[] => pointsAt(recall).map((at, l) => curves[l].threshold[at]);
  const all = (mode: FfnMode): FfnMode[] => predictors.map(() => mode);
  const planned = (mode: FfnMode): ActivationCut[] =>
    predictors.map((_, l) => cutIn(mode, header.config.activation, cutsOf(found, l)));

  const measure = async (
    ids: readonly number[],
    settings: readonly (() => Promise<void>)[],
    compare: boolean,
  ) => {
    const report = (done: number, total: number): void =>
      onProgress?.({ stage: 'evaluate', done, total, unit: 'tokens' });
    return evaluateSettings(engine, ids, settings, { window, compare, signal, onProgress: report });
  };
  const predicted = async (recall: number): Promise<void> => {
    await engine.setModes(all('predicted'), planned('predicted'));
    await applyThresholds(engine, predictors, thresholdsAt(recall));
  };

  const choose = chooseText(passages);
  const [{ perplexity: dense }] = await measure(choose, [() => engine.setModes(all('dense'))], false);
  const { recall, met } = await searchRecall(
    limit,
    async (at) => (await measure(choose, [() => predicted(at)], false))[0].perplexity / dense - 1,
    LOWEST_RECALL,
  );

  const settings = {
    dense: () => engine.setModes(all('dense')),
    gate: () => engine.setModes(all('exact'), planned('exact')),
    contribution: () => engine.setModes(all('exact'), found.contribution.cuts),
    predicted: () => predicted(recall),
  };
  const names = Object.keys(settings) as (keyof typeof settings)[];
  const report = reportText(passages);
  const evaluations = await measure(report, Object.values(settings), true);
  const speeds = await compareSpeeds(
    engine,
    [settings.dense, settings.gate, settings.predicted],
    report,
    signal,
  );
  const speedOf = (name: keyof typeof settings): Pick<Alternative, 'tokensPerSecond' | 'speedup'> =>
    name === 'contribution'
      ? { tokensPerSecond: null, speedup: null }
      : speeds[['dense', 'gate', 'predicted'].indexOf(name)];
  const bytesAt = (name: Alternative['name'], l: number, density: Skipped): number =>
    bytesOf(sizesOf(header, l), header.config.block.ffn.gated, name, density, predictors[l]);
  const alternatives = names.map((name, i): Alternative => {
    const evaluation = evaluations[i];
    const { perplexity, densePerplexity, klDivergence, layers } = evaluation;
    const skipped =
      name === 'dense'
        ? 1 - metShare
        : name === 'predicted'
          ? evaluation.predictedSparsity!
          : evaluation.sparsity;
    const ffnBytes = layers.reduce((sum, layer, l) => {
      const { predictedSparsity, sparsity, scored } = layer;
      return sum + bytesAt(name, l, { skipped: predictedSparsity ?? sparsity, scored });
    }, 0);
    const increase = perplexity / densePerplexity! - 1;
    return { name, skipped, ffnBytes, perplexity, increase, klDivergence: klDivergence!, ...speedOf(name) };
  });

  const { chosen, verdict } = judge(alternatives, met, limit);
  const points = pointsAt(recall);
  const layers = trained.map((layer, l): PredictorLayer => {
    const at = points[l];
    const { report: of } = layer;
    const [gate, predicted] = ['gate', 'predicted'].map((name) => evaluations[names.indexOf(name as Alternative['name'])].layers[l]); // prettier-ignore
    return {
      mode: chosen,
      reason: verdict,
      threshold: layer.curve.threshold[at],
      heldOut: {
        sparsity: of.sparsity,
        predictedSparsity: of.predictedSparsity[at],
        recall: of.recall[at],
        weightedRecall: of.weightedRecall[at],
      },
      bytes: {
        dense: bytesAt('dense', l, { skipped: 0, scored: 0 }),
        exact: bytesAt('gate', l, { skipped: gate.sparsity, scored: 0 }),
        predicted: bytesAt('predicted', l, { skipped: of.predictedSparsity[at], scored: predicted.scored }),
        predictor: predictorBytes(layer.predictor, metShare * layer.predictor.cut.length),
      },
      cuts: cutsOf(found, l),
      predictor: layer.predictor,
      curve: layer.curve,
    };
  });
  const winner = { dense: 'dense', exact: 'gate', predicted: 'predicted' }[chosen];
  return {
    layers,
    evaluation: evaluations[names.indexOf(winner as Alternative['name'])],
    target: `perplexity increase at most ${(100 * limit).toFixed(3)} %, without training`,
    sparsified: { limit, weightedRecall: recall, met, alternatives, chosen, verdict },
  };
}

/** Of a layer: share of its neurons, and how many of them were scored after the gate. */
interface Skipped {
  skipped: number;
  scored: number;
}

/** Bytes of weights that a token's FFN reads. */
function bytesOf(
  { nFf, met, gateRowBytes, recordBytes }: FfnSizes,
  gated: boolean,
  name: Alternative['name'],
  { skipped, scored }: Skipped,
  predictor: LayerPredictor,
): number {
  const kept = (1 - skipped) * nFf;
  const down = gated ? recordBytes / 2 : recordBytes;
  switch (name) {
    case 'dense':
      return met * (gateRowBytes + recordBytes);
    case 'gate':
      return met * gateRowBytes + kept * recordBytes;
    case 'contribution':
      return met * (gateRowBytes + recordBytes - down) + kept * down;
    case 'predicted':
      if (predictor.kind !== 'up')
        return (
          predictorBytes(predictor, (met / nFf) * predictor.cut.length) + kept * (gateRowBytes + recordBytes)
        );
      // A bound of every neuron that is met; row and weight of those that are scored.
      return met * (gateRowBytes + 4) + kept * recordBytes + scored * (predictor.fc2.stride + 4);
  }
}

/** The alternative that reads least, if that is worth anything; what was measured may speak against it. */
function judge(
  alternatives: readonly Alternative[],
  met: boolean,
  limit: number,
): { chosen: FfnMode; verdict: string } {
  const of = (name: Alternative['name']): Alternative => alternatives.find((a) => a.name === name)!;
  const [dense, gate, predicted] = [of('dense'), of('gate'), of('predicted')];
  const share = (a: Alternative): string => `${((100 * a.ffnBytes) / dense.ffnBytes).toFixed(0)} %`;
  const best = met && predicted.ffnBytes < (1 - WORTH_IT) * gate.ffnBytes ? predicted : gate;
  if (best.ffnBytes > (1 - WORTH_IT) * dense.ffnBytes) {
    const within = `within ${(100 * limit).toFixed(2)} % of perplexity`;
    return {
      chosen: 'dense',
      verdict: `does not pay: ${within} FFNs still read ${share(best)} of dense's bytes`,
    };
  }
  const slower = best.speedup !== null && best.speedup <= 1 ? '; not faster than dense on this machine' : '';
  const chosen = best === predicted ? 'predicted' : 'exact';
  return { chosen, verdict: `reads ${share(best)} of dense's bytes${slower}` };
}

// ---- speed --------------------------------------------------------------------------------------------

/** Tokens of a turn, and how long one may take: large models take a second a token. */
const SPEED_TOKENS = 48;
const TURN_MS = 4000;
/** Turns of each setting. Of small models a turn is over before the machine has done one thing else: they get more. */
const FEWEST_ROUNDS = 7;
const MOST_ROUNDS = 61;
const SPEED_MS = 4000;

interface Speed {
  tokensPerSecond: number;
  speedup: number;
}

/** Decode speed of each setting, in turns: what else the machine does meets all of them. The first is the measure. */
async function compareSpeeds(
  engine: Engine,
  settings: readonly (() => Promise<void>)[],
  ids: readonly number[],
  signal?: AbortSignal,
): Promise<Speed[]> {
  const prompt = ids.slice(0, Math.max(1, Math.min(8, engine.layout.contextLength >> 1)));
  let maxTokens = Math.min(SPEED_TOKENS, engine.layout.contextLength - prompt.length);
  const contestants = settings.map((bringInto) => ({
    run: async (): Promise<number> => {
      await bringInto();
      const { stats } = await engine.generate({
        prompt,
        maxTokens,
        sampling: GREEDY,
        cachePrompt: false,
        signal,
      });
      return stats.decodeTokensPerSecond;
    },
  }));
  // The slowest turn of a first round, which also warms up, says how many there is time for.
  const [slowest] = (await alternate(contestants, { rounds: 1, warmups: 0, signal }))
    .flat()
    .sort((x, y) => x - y);
  maxTokens = Math.max(Math.min(4, maxTokens), Math.min(maxTokens, Math.floor((slowest * TURN_MS) / 1000)));
  const turns = (SPEED_MS * slowest) / (1000 * maxTokens * settings.length);
  const rounds = Math.max(FEWEST_ROUNDS, Math.min(MOST_ROUNDS, Math.floor(turns)));
  const measured = await alternate(contestants, { rounds, signal });
  return measured.map((speeds) => ({
    tokensPerSecond: median(speeds),
    speedup: pairedRatio(speeds, measured[0]),
  }));
}
