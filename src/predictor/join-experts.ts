/**
 * The predictors of a layer's experts as one: their rows and neurons stand one after the other, as in the model. All
 * have one format, the one that costs the tokens of all of them least.
 */
import type { ExpertShape } from '../model/block.js';
import { joinRows, predictorRowBytes } from './rows.js';
import type { Attempt } from './screen.js';
import type { LayerPredictor, PredictorFormat } from './types.js';

/**
 * What was considered for a layer, from what was considered for its experts: means over the tokens that met them.
 * @param attempts of each expert, none where nothing was fitted; the last of a format counts
 * @param tokens that met each of them
 * @returns one attempt a format, the cheapest first
 */
export function joinAttempts(
  attempts: readonly (readonly Attempt[])[],
  tokens: readonly number[],
  { active, count }: ExpertShape,
): Attempt[] {
  const met = Array.from(attempts.keys()).filter((e) => attempts[e].length > 0 && tokens[e] > 0);
  const byFormat = met.map((e) => new Map(attempts[e].map((attempt) => [attempt.format, attempt])));
  const total = met.reduce((sum, e) => sum + tokens[e], 0);
  const share = met.map((e) => tokens[e] / total);
  const joined = [...(byFormat[0]?.keys() ?? [])].map((format): Attempt => {
    const own = byFormat.map((of) => of.get(format)!);
    const mean = (pick: (attempt: Attempt) => number): number =>
      own.reduce((sum, attempt, i) => sum + share[i] * pick(attempt), 0);
    const candidates = mean(({ predictedSparsity }) => 1 - predictedSparsity);
    return {
      ...own[0],
      from: own.every(({ from }) => from === 'all') ? 'all' : 'sample',
      recall: mean(({ recall }) => recall),
      weightedRecall: mean(({ weightedRecall }) => weightedRecall),
      predictedSparsity: 1 - (active / count) * candidates,
      cost: active * mean(({ cost }) => cost),
      overError: Math.hypot(...own.map(({ overError }, i) => share[i] * overError)),
    };
  });
  joined.sort((a, b) => a.cost - b.cost);
  return joined.map((attempt) => ({ ...attempt, over: attempt.cost / joined[0].cost - 1 }));
}

/** No score: all neurons are always candidates. @param format of the other experts' rows */
export const allCandidates = (
  layer: number,
  neurons: number,
  format: PredictorFormat,
  d: number,
): LayerPredictor => ({
  layer,
  kind: 'sketch',
  rank: d,
  fc1: null,
  b1: null,
  fc2: { format, rows: 0, cols: d, stride: predictorRowBytes(format, d), data: new Uint8Array(0) },
  scoredIds: new Uint32Array(0),
  cut: new Float32Array(0),
  cutScale: new Float32Array(0),
  always: Uint32Array.from({ length: neurons }, (_, i) => i),
});

/** @param experts sketches of one format, each expert's neurons counted from 0 */
export function joinPredictors(experts: readonly LayerPredictor[], size: number): LayerPredictor {
  const [first] = experts;
  if (experts.length === 1) return first;
  const ids = (pick: (expert: LayerPredictor) => Uint32Array): Uint32Array =>
    Uint32Array.from(experts.flatMap((expert, e) => Array.from(pick(expert), (i) => e * size + i)));
  const numbers = (pick: (expert: LayerPredictor) => Float32Array): Float32Array => {
    const parts = experts.map(pick);
    const out = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      out.set(part, at);
      at += part.length;
    }
    return out;
  };
  return {
    ...first,
    fc2: joinRows(experts.map(({ fc2 }) => fc2)),
    ...(first.reach ? { reach: numbers(({ reach }) => reach!) } : {}),
    scoredIds: ids(({ scoredIds }) => scoredIds),
    cut: numbers(({ cut }) => cut),
    cutScale: numbers(({ cutScale }) => cutScale),
    always: ids(({ always }) => always),
  };
}
