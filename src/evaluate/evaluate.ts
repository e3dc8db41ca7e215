/** Quality of a loaded model on a text: perplexity, distance from dense, and what the FFN layers skipped. */
import { overall, type AnswerBuffers, type Engine } from '../engine/engine.js';
import type { FfnMode } from '../engine/ffn-plan.js';
import type { LayerDensity } from '../engine/stats.js';
import { Scores, windows } from './perplexity.js';

export interface EvaluateOptions {
  /** Tokens that are scored together. @default 256, or the context if that is shorter */
  window?: number;
  /** Compare with the same engine in mode `dense`. @default true */
  compare?: boolean;
  signal?: AbortSignal;
  onProgress?: (done: number, total: number) => void;
}

export interface LayerEvaluation {
  layer: number;
  mode: FfnMode;
  sparsity: number;
  predictedSparsity: number | null;
  recall: number | null;
  weightedRecall: number | null;
  /** Mean neurons per token that were scored behind their gate. */
  scored: number;
  /** Predictor's threshold; null where there is none. */
  threshold: number | null;
  rank: number | null;
}

export interface Evaluation {
  /** Scored tokens. */
  tokens: number;
  perplexity: number;
  /** The next three are null when not compared. */
  densePerplexity: number | null;
  /** Mean KL(dense || this), in nats. */
  klDivergence: number | null;
  top1Agreement: number | null;
  sparsity: number;
  predictedSparsity: number | null;
  recall: number | null;
  weightedRecall: number | null;
  layers: LayerEvaluation[];
}

const DEFAULT_WINDOW = 256;

/** @throws UsageError when the text has not one window of tokens */
export async function evaluate(
  engine: Engine,
  ids: readonly number[],
  options: EvaluateOptions = {},
): Promise<Evaluation> {
  const [result] = await evaluateSettings(engine, ids, [async () => {}], options);
  return result;
}

/**
 * Several settings of one engine (modes, thresholds) on one text; the dense reference is computed once for all.
 * @param settings each brings the engine into its setting; called again for every window
 * @returns one evaluation for each; the engine is left in the last setting
 * @throws UsageError when the text has not one window of tokens
 */
export async function evaluateSettings(
  engine: Engine,
  ids: readonly number[],
  settings: readonly (() => Promise<void>)[],
  options: EvaluateOptions = {},
): Promise<Evaluation[]> {
  const { signal, compare = true } = options;
  const { layout } = engine;
  const length = options.window ?? Math.min(DEFAULT_WINDOW, layout.contextLength);
  const parts = windows(ids, length);
  const sums = settings.map(() => ({ scores: new Scores(), densities: [] as LayerDensity[][] }));
  const modes: FfnMode[][] = [];
  const total = parts.length * settings.length * length;
  let done = 0;
  const [own, dense]: AnswerBuffers[] = [new Map(), new Map()];
  for (const part of parts) {
    signal?.throwIfAborted();
    const reference = compare
      ? (await engine.logits({ tokens: part, ffn: 'dense', buffers: dense, signal })).logits
      : null;
    for (const [s, bringInto] of settings.entries()) {
      signal?.throwIfAborted();
      await bringInto();
      modes[s] = engine.modes;
      const measureRecall = modes[s].includes('predicted');
      const mine = await engine.logits({ tokens: part, measureRecall, buffers: own, signal });
      sums[s].densities.push(mine.layers);
      sums[s].scores.add(part, mine.logits, reference);
      options.onProgress?.((done += length), total);
    }
  }
  return sums.map(({ scores, densities }, s) => {
    const layers = meanOverWindows(densities);
    return {
      tokens: scores.scored,
      perplexity: scores.perplexity,
      densePerplexity: compare ? scores.referencePerplexity : null,
      klDivergence: compare ? scores.klDivergence : null,
      top1Agreement: compare ? scores.top1Agreement : null,
      ...overall(layers),
      layers: layers.map((density, l) => ({
        layer: l,
        mode: modes[s][l],
        sparsity: density.sparsity,
        predictedSparsity: density.predictedSparsity,
        recall: density.recall,
        weightedRecall: density.weightedRecall,
        scored: density.scored,
        threshold: null,
        rank: layout.layers[l].predictor?.rank ?? null,
      })),
    };
  });
}

/** All windows have the same number of tokens. Recall is weighted by the active neurons of its window. */
function meanOverWindows(densities: LayerDensity[][]): LayerDensity[] {
  return densities[0].map((_, l) => {
    const all = densities.map((layers) => layers[l]);
    const mean = (values: number[]): number => values.reduce((a, b) => a + b, 0) / values.length;
    const optional = (pick: (d: LayerDensity) => number | null): number | null => {
      const values = all.map(pick);
      return values.includes(null) ? null : mean(values as number[]);
    };
    const active = all.map((d) => 1 - d.sparsity);
    const totalActive = active.reduce((a, b) => a + b, 0);
    const recalls = all.map((d) => d.recall);
    return {
      sparsity: mean(all.map((d) => d.sparsity)),
      predictedSparsity: optional((d) => d.predictedSparsity),
      recall:
        recalls.includes(null) || totalActive === 0
          ? (recalls[0] ?? null)
          : recalls.reduce((sum: number, r, i) => sum + r! * active[i], 0) / totalActive,
      weightedRecall: optional((d) => d.weightedRecall),
      candidates: mean(all.map((d) => d.candidates)),
      gates: mean(all.map((d) => d.gates)),
      scored: mean(all.map((d) => d.scored)),
      gated: mean(all.map((d) => d.gated)),
    };
  });
}
