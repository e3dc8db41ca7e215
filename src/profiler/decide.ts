/** From fitted layers to a plan: thresholds, modes, and what the finished plan does on windows that chose nothing. */
import { Engine } from '../engine/engine.js';
import { evaluate, type Evaluation } from '../evaluate/evaluate.js';
import { openPack } from '../pack/reader.js';
import type { Pack } from '../pack/types.js';
import type { LayerChoice, PredictorLayer } from '../predictor/artifact.js';
import { layerPlan } from './find-plan.js';
import type { ProfileOptions, ResolvedOptions } from './options.js';
import type { Passages } from './passages.js';
import { chooseMode, densitiesAt, sizesOf } from './plan.js';
import type { Recorded } from './record.js';
import { applyThresholds, searchRecall } from './search.js';
import {
  COMPARE_AT_WEIGHTED_RECALL,
  cutsOf,
  decideSparsified,
  type Sparsified,
  type SparsifyCuts,
} from './sparsify.js';
import { equalSlopes } from './thresholds.js';
import type { TrainedLayer } from './train-worker.js';

/** Where predictors are compared when perplexity is the target: there quality stops moving. */
const COMPARE_AT_RECALL = 0.99;

/** The recall that predictors are compared at. */
export const compareAt = ({ target, sparsify }: ResolvedOptions): number =>
  sparsify !== null ? COMPARE_AT_WEIGHTED_RECALL : 'recall' in target ? target.recall : COMPARE_AT_RECALL;

export interface Decision {
  layers: PredictorLayer[];
  evaluation: Evaluation;
  target: string;
  sparsified: Sparsified | null;
}

/** Chooses thresholds and modes, and evaluates the finished plan on windows that chose nothing. */
export async function decide(
  pack: Pack,
  trained: readonly TrainedLayer[],
  { counts, routed, tokens }: Recorded,
  passages: Passages,
  resolved: ResolvedOptions,
  options: ProfileOptions,
  found: SparsifyCuts | null,
): Promise<Decision> {
  const { window, threads, kernels, target } = resolved;
  const { signal, onProgress } = options;
  const choose = passages.windows.slice(passages.chooseFrom, passages.reportFrom).flat();
  const report = passages.windows.slice(passages.reportFrom).flat();
  const curves = trained.map((layer) => layer.curve);
  const choices = (recall: number): LayerChoice[] => {
    const points = equalSlopes(curves, recall);
    return trained.map((layer, l) => {
      const at = points[l];
      const chosenBy = densitiesAt(layer.curve, at, layer.sparsity);
      const figures = densitiesAt(layer.report, at, layer.report.sparsity);
      const threshold = layer.curve.threshold[at];
      return chooseMode(layer.predictor, threshold, sizesOf(pack.header, l, routed[l]), chosenBy, figures);
    });
  };
  const together = (chosen: readonly LayerChoice[]): PredictorLayer[] =>
    chosen.map((choice, l) => ({ ...choice, predictor: trained[l].predictor, curve: trained[l].curve }));

  const start = together(choices(compareAt(resolved)));
  const engine = await Engine.open(openPack(pack.path), {
    contextLength: window,
    batchTokens: window,
    threads,
    kernels,
    signal,
    plan: {
      layers: start.map((layer, l) =>
        layerPlan(
          found ? { ...layer, cuts: cutsOf(found, l) } : layer,
          Float32Array.from(counts[l], (n) => n / tokens),
          layer.threshold,
          'predicted',
        ),
      ),
    },
  });
  const run = async (
    layers: readonly PredictorLayer[],
    text: readonly number[],
    compare: boolean,
  ): Promise<Evaluation> => {
    await engine.setModes(layers.map((layer) => layer.mode));
    await applyThresholds(
      engine,
      trained.map((layer) => layer.predictor),
      layers.map((layer) => layer.threshold),
    );
    return evaluate(engine, text, {
      window,
      compare,
      signal,
      onProgress: (done, total) => onProgress?.({ stage: 'evaluate', done, total, unit: 'tokens' }),
    });
  };
  try {
    if (found)
      return await decideSparsified(engine, found, trained, passages, { window, signal, onProgress });
    if ('recall' in target) {
      const points = equalSlopes(curves, target.recall);
      const mean = curves.reduce((sum, { recall }, l) => sum + recall[points[l]], 0) / curves.length;
      const missed = mean < target.recall ? ` (reached ${mean.toFixed(4)})` : '';
      return {
        layers: start,
        evaluation: await run(start, report, true),
        target: `recall ${target.recall}${missed}`,
        sparsified: null,
      };
    }
    const limit = target.maxPerplexityIncrease;
    await engine.setModes(start.map(() => 'dense'));
    const dense = (await evaluate(engine, choose, { window, compare: false, signal })).perplexity;
    const { recall, met } = await searchRecall(limit, async (r) => {
      const { perplexity } = await run(together(choices(r)), choose, false);
      return perplexity / dense - 1;
    });
    const layers = together(choices(recall));
    const words = `perplexity increase at most ${(100 * limit).toFixed(3)} %`;
    return {
      layers,
      evaluation: await run(layers, report, true),
      target: `${words}: recall ${recall.toFixed(4)}${met ? '' : ' (not reached)'}`,
      sparsified: null,
    };
  } finally {
    await engine.close();
  }
}
