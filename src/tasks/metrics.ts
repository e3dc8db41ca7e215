/**
 * Means of documents' scores and their standard errors. Every metric is close to a mean of influences:
 * m ~ m0 + mean(influence_i), so its error is sd(influence) / sqrt(n), and the error of a difference between two
 * runs on the same documents is that of the difference of their influences.
 */

/** A document's score: a number, or a log-likelihood with the words or bytes it is spread over. */
export type Score = number | readonly [logLikelihood: number, weight: number];

export interface Aggregate {
  value: number;
  /** Per document; mean 0. */
  influence: number[];
}

type Aggregation = (scores: readonly Score[]) => Aggregate;

const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length;
const single = (score: Score): number => (typeof score === 'number' ? score : score[0]);

const arithmetic: Aggregation = (scores) => {
  const values = scores.map(single);
  const value = mean(values);
  return { value, influence: values.map((v) => v - value) };
};

/** exp(-mean log-likelihood) */
const perplexity: Aggregation = (scores) => {
  const values = scores.map(single);
  const centre = mean(values);
  const value = Math.exp(-centre);
  return { value, influence: values.map((v) => -value * (v - centre)) };
};

/** f(sum of log-likelihoods / sum of weights), with the derivative of f. */
const ratio =
  (f: (r: number) => number, slope: (r: number) => number): Aggregation =>
  (scores) => {
    const pairs = scores.map((score): readonly [number, number] =>
      typeof score === 'number' ? [score, 1] : score,
    );
    const weight = mean(pairs.map(([, w]) => w));
    const r = mean(pairs.map(([l]) => l)) / weight;
    return { value: f(r), influence: pairs.map(([l, w]) => (slope(r) * (l - r * w)) / weight) };
  };

const weightedPerplexity = ratio(
  (r) => Math.exp(-r),
  (r) => -Math.exp(-r),
);

/** lm-eval prints this number for tasks that have no metric of their own. */
const BYPASS = 999;

const AGGREGATIONS: Readonly<Record<string, Aggregation>> = {
  perplexity,
  word_perplexity: weightedPerplexity,
  byte_perplexity: weightedPerplexity,
  bits_per_byte: ratio(
    (r) => -r / Math.LN2,
    () => -1 / Math.LN2,
  ),
  bypass: (scores) => ({ value: BYPASS, influence: scores.map(() => 0) }),
};

export function aggregate(metric: string, scores: readonly Score[]): Aggregate {
  const how = Object.hasOwn(AGGREGATIONS, metric) ? AGGREGATIONS[metric] : arithmetic;
  return how(scores);
}

/** Standard error of a mean of influences; null for a single document. */
export function standardError(influence: readonly number[]): number | null {
  const n = influence.length;
  if (n < 2) return null;
  const centre = mean(influence);
  const variance = influence.reduce((sum, v) => sum + (v - centre) ** 2, 0) / (n - 1);
  return Math.sqrt(variance / n);
}
