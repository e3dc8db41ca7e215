/**
 * Where to cut an activation that has no zeros: tables of how small the neurons of each layer are, and the search
 * for the deepest cut whose perplexity is still within a limit, by running the model with it.
 *
 *     gate          CATS: the same share of every layer's neurons, those with the smallest |sigma(g)|
 *     contribution  CETT: neurons whose |x1| ||W_down[:, i]|| together make the same part of every layer's sum of them
 */
import type { ActivationCut } from '../engine/ffn-plan.js';
import type { Engine } from '../engine/engine.js';
import { activeNeurons, expertShape } from '../model/block.js';
import { sigma } from '../kernels/reference.js';
import { evaluate } from '../evaluate/evaluate.js';
import type { OnProgress } from '../io/progress.js';
import { downNorms } from './pack-rows.js';
import type { Passages } from './passages.js';
import { stopWhenAsked } from './record.js';

/** Windows whose neurons make the tables. */
const TABLE_WINDOWS = 16;
/** Values kept a layer: a quantile of a million is sure to 0.1 %. */
const TABLE_VALUES = 1 << 20;
const POINTS = 1000;
/** Halvings of a level: the last interval is below 1 % of what is left out. */
const STEPS = 7;
/** Levels from 0 to this are searched. Half of all contributions gone is far beyond what any model bears. */
const DEEPEST = { gate: 0.95, contribution: 0.5 } as const;

export type CutKind = keyof typeof DEEPEST;

/** Of one layer: point i is the cut at level i / POINTS. */
export type CutTable = Record<CutKind, Float32Array>;

/** A search's result: the deepest level within the limit; 0: none. */
export interface FoundCut {
  kind: CutKind;
  level: number;
  /** Of perplexity, there. */
  increase: number;
  /** By layer. */
  cuts: ActivationCut[];
}

/** @param engine in FFN mode `exact` without cuts; reads windows that are trained on */
export async function tabulate(
  engine: Engine,
  { windows, window, chooseFrom }: Passages,
  signal?: AbortSignal,
): Promise<CutTable[]> {
  const { config } = engine.layout;
  const { layers, activation } = config;
  const { size } = expertShape(config);
  const met = activeNeurons(config);
  const count = Math.min(TABLE_WINDOWS, chooseFrom);
  // Half a window: gates and activations then take no more memory than a recording does.
  const tokens = Math.max(1, window >> 1);
  const per = Math.max(1, Math.floor(TABLE_VALUES / count));
  const step = Math.max(1, Math.ceil((tokens * met) / per)) | 1;
  const kept = Math.ceil((tokens * met) / step);
  const values = Array.from({ length: layers }, () => ({
    gate: new Float32Array(count * kept),
    contribution: new Float32Array(count * kept),
  }));
  const norms = Array.from({ length: layers }, (_, l) => downNorms(engine.pack, l));
  const buffers = new Map<string, SharedArrayBuffer>();
  for (let i = 0; i < count; i++) {
    stopWhenAsked(signal);
    const ids = windows[Math.floor((i * chooseFrom) / count)].slice(0, tokens);
    const trace = { gates: true, activations: true };
    const { gates, activations, experts } = await engine.logits({
      tokens: ids,
      logits: false,
      trace,
      buffers,
      signal,
    });
    for (let l = 0; l < layers; l++) {
      const end = (l + 1) * tokens * met;
      for (let at = l * tokens * met, to = i * kept; at < end; at += step, to++) {
        const expert = experts ? experts.ids[Math.floor(at / size)] : 0;
        values[l].gate[to] = Math.abs(sigma(activation.kind, 0, gates![at]));
        values[l].contribution[to] = Math.abs(activations![at]) * norms[l][expert * size + (at % size)];
      }
    }
  }
  return values.map(({ gate, contribution }) => ({
    gate: quantiles(gate.sort()),
    contribution: massQuantiles(contribution.sort()),
  }));
}

/** @param sorted ascending */
const quantiles = (sorted: Float32Array): Float32Array =>
  Float32Array.from({ length: POINTS + 1 }, (_, i) => sorted[Math.round((i / POINTS) * (sorted.length - 1))]);

/** Point i: all values below it together make i / POINTS of the sum. */
function massQuantiles(sorted: Float32Array): Float32Array {
  const total = sorted.reduce((a, b) => a + b, 0);
  const out = new Float32Array(POINTS + 1);
  let [at, sum] = [0, 0];
  for (let i = 1; i <= POINTS; i++) {
    while (at < sorted.length - 1 && sum + sorted[at] <= (i / POINTS) * total) sum += sorted[at++];
    out[i] = sorted[at];
  }
  return out;
}

/** What every layer cuts at a level. */
export const cutsAtLevel = (tables: readonly CutTable[], kind: CutKind, level: number): ActivationCut[] =>
  tables.map((table) => {
    const cut = level <= 0 ? 0 : table[kind][Math.round(level * POINTS)];
    return kind === 'gate' ? { gate: cut, contribution: 0 } : { gate: 0, contribution: cut };
  });

export interface SearchOptions {
  window: number;
  signal?: AbortSignal;
  onProgress?: OnProgress;
}

/** The perplexity of `ids` with these cuts in FFN mode `exact`. */
export async function perplexityWith(
  engine: Engine,
  cuts: readonly ActivationCut[],
  ids: readonly number[],
  { window, signal, onProgress }: SearchOptions,
): Promise<number> {
  stopWhenAsked(signal);
  await engine.setModes(
    cuts.map(() => 'exact'),
    cuts,
  );
  const report = (done: number, total: number): void =>
    onProgress?.({ stage: 'cuts', done, total, unit: 'tokens' });
  return (await evaluate(engine, ids, { window, compare: false, signal, onProgress: report })).perplexity;
}

/**
 * The deepest level whose perplexity on `ids` is at most (1 + limit) times `uncut`.
 * @param engine is left in FFN mode `exact` with some cuts
 */
export async function searchCut(
  engine: Engine,
  tables: readonly CutTable[],
  kind: CutKind,
  ids: readonly number[],
  uncut: number,
  limit: number,
  options: SearchOptions,
): Promise<FoundCut> {
  let [low, high, increase]: number[] = [0, DEEPEST[kind], 0];
  for (let step = 0; step < STEPS; step++) {
    const level = (low + high) / 2;
    const cuts = cutsAtLevel(tables, kind, level);
    const found = (await perplexityWith(engine, cuts, ids, options)) / uncut - 1;
    if (found <= limit) [low, increase] = [level, found];
    else high = level;
  }
  return { kind, level: low, increase, cuts: cutsAtLevel(tables, kind, low) };
}
