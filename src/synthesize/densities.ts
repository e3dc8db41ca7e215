/**
 * How a synthetic layer must be built to have given densities. Per neuron i, with z and e independent N(0,1):
 *
 *     gate_i  = t - tau_i + sqrt(rho) z_i + sqrt(1 - rho) e_i        active: gate_i > t, in other words
 *     score_i = z_i   (what the predictor sees)                       sqrt(rho) z + sqrt(1-rho) e > tau_i
 *     candidate: P(active | z_i) >= some probability, in other words  z_i >= (tau_i + sqrt(1-rho) q) / sqrt(rho)
 *
 * tau_i ~ N(mu, skew^2): skew 0 makes all neurons equally hot, 1 spreads their frequencies from 1e-5 to 0.9.
 * mu follows from the sparsity; q and rho follow from predicted sparsity and recall.
 */
import { UsageError } from '../errors.js';
import { density, upperQuantile, upperTail } from './normal.js';

export interface DensityTarget {
  /** Share of neurons whose gate does not pass. */
  gateSparsity: number;
  predictedSparsity: number;
  recall: number;
  /** Standard deviation of tau over the neurons. */
  skew: number;
}

export interface DensityPlan extends DensityTarget {
  /** Mean of tau. */
  mu: number;
  /** Share of the gate's variance that the low-rank part explains. */
  rho: number;
  /** Caution of the predictor: larger means fewer candidates. */
  q: number;
}

/** tau of the neuron with rank `position` in (0, 1), hottest first. */
export const tauAt = (plan: Pick<DensityPlan, 'mu' | 'skew'>, position: number): number =>
  plan.mu - plan.skew * upperQuantile(position);

/** Score from which neurons with this tau are candidates. */
export const cutOf = (plan: Pick<DensityPlan, 'rho' | 'q'>, tau: number): number =>
  (tau + Math.sqrt(1 - plan.rho) * plan.q) / Math.sqrt(plan.rho);

/** @throws UsageError when no predictor can have these densities */
export function planDensities(target: DensityTarget): DensityPlan {
  const { gateSparsity, predictedSparsity, recall, skew } = target;
  for (const [name, value] of Object.entries({ gateSparsity, predictedSparsity, recall })) {
    if (!(value > 0 && value < 1))
      throw new UsageError(`${name}: expected a share between 0 and 1, found ${value}`);
  }
  if (!(skew >= 0 && skew <= 3)) throw new UsageError(`skew: expected 0 to 3, found ${skew}`);
  // tau + N(0, skew^2) is crossed by N(0,1): together one normal of variance 1 + skew^2.
  const mu = Math.sqrt(1 + skew * skew) * upperQuantile(1 - gateSparsity);
  const at = (rho: number) => {
    const q = solveCaution({ ...target, mu, rho });
    return { ...target, mu, rho, q };
  };
  const low = at(RHO_MIN);
  const high = at(RHO_MAX);
  if (recallOf(low) > recall || recallOf(high) < recall) {
    const range = `${recallOf(low).toFixed(3)} to ${recallOf(high).toFixed(3)}`;
    throw new UsageError(
      `recall ${recall} is impossible at sparsity ${gateSparsity} and predicted sparsity ${predictedSparsity}`,
      `Predictors with that predicted sparsity have a recall of ${range}.`,
    );
  }
  const rho = bisect(RHO_MIN, RHO_MAX, (r) => recallOf(at(r)) < recall);
  return at(rho);
}

/** The same with the caution that a predictor of this rho needs for the recall, and the predicted sparsity it then has. */
export function cautionFor(plan: DensityPlan): DensityPlan {
  const most = mostCaution(plan.rho);
  const q = bisect(-most, most, (q) => recallOf({ ...plan, q }) > plan.recall);
  return { ...plan, q, predictedSparsity: pointAt(plan, q).predictedSparsity };
}

const RHO_MIN = 0.01;
const RHO_MAX = 0.9999;
/** Points that stand for the distribution of tau, and for the integral over the score. */
const TAU_POINTS = 48;
const SCORE_POINTS = 64;

const taus = (plan: Pick<DensityPlan, 'mu' | 'skew'>): number[] =>
  Array.from({ length: TAU_POINTS }, (_, k) => tauAt(plan, (k + 0.5) / TAU_POINTS));

function solveCaution(plan: Omit<DensityPlan, 'q'>): number {
  const tau = taus(plan);
  const candidates = (q: number) => mean(tau.map((t) => upperTail(cutOf({ rho: plan.rho, q }, t))));
  const most = mostCaution(plan.rho);
  return bisect(-most, most, (q) => candidates(q) > 1 - plan.predictedSparsity);
}

/** Moves a cut by twelve standard deviations: from all neurons to none. */
const mostCaution = (rho: number): number => 12 / Math.sqrt(1 - rho);

/** P(candidate and active) / P(active), over all neurons. */
export function recallOf(plan: DensityPlan): number {
  const tau = taus(plan);
  const both = mean(tau.map((t) => jointTail(cutOf(plan, t), t, plan.rho)));
  return both / mean(tau.map(upperTail));
}

/** What a predictor with other caution reaches: the curve that an artifact carries. */
export function pointAt(
  plan: DensityPlan,
  q: number,
): { recall: number; weightedRecall: number; predictedSparsity: number } {
  const tau = taus(plan);
  const other = { ...plan, q };
  const found = mean(tau.map((t) => jointExcess(cutOf(other, t), t, plan.rho)));
  const all = mean(tau.map((t) => density(t) - t * upperTail(t)));
  return {
    recall: recallOf(other),
    weightedRecall: found / all,
    predictedSparsity: 1 - mean(tau.map((t) => upperTail(cutOf(other, t)))),
  };
}

/** P(z > cut and sqrt(rho) z + sqrt(1 - rho) e > tau), by the midpoint rule over z. */
function jointTail(cut: number, tau: number, rho: number): number {
  const from = Math.max(cut, -7);
  if (from > 7) return 0;
  const step = (7 - from) / SCORE_POINTS;
  let sum = 0;
  for (let k = 0; k < SCORE_POINTS; k++) {
    const z = from + (k + 0.5) * step;
    sum += density(z) * upperTail((tau - Math.sqrt(rho) * z) / Math.sqrt(1 - rho));
  }
  return sum * step;
}

/** As jointTail, weighted with the activation y - tau: what weighted recall counts (up and down are independent). */
function jointExcess(cut: number, tau: number, rho: number): number {
  const from = Math.max(cut, -7);
  if (from > 7) return 0;
  const spread = Math.sqrt(1 - rho);
  const step = (7 - from) / SCORE_POINTS;
  let sum = 0;
  for (let k = 0; k < SCORE_POINTS; k++) {
    const z = from + (k + 0.5) * step;
    const gap = (tau - Math.sqrt(rho) * z) / spread;
    sum += density(z) * spread * (density(gap) - gap * upperTail(gap));
  }
  return sum * step;
}

/** E[a^2] with a = gate where gate > t, else 0; for `t` near 0 as in FATReLU models. */
export function meanSquareActivation(plan: DensityPlan, t: number): number {
  const squares = taus(plan).map((tau) => {
    const p = upperTail(tau);
    const phi = density(tau);
    // gate = t + (y - tau), y ~ N(0,1), y > tau: second, first and zeroth moment of y - tau.
    return (1 + tau * tau) * p - tau * phi + 2 * t * (phi - tau * p) + t * t * p;
  });
  return mean(squares);
}

/** Share of all activations that the hottest `share` of the neurons make: what placement can use. */
export function activationShare(plan: Pick<DensityPlan, 'mu' | 'skew'>, share: number): number {
  const n = 2000;
  let hot = 0;
  let all = 0;
  for (let k = 0; k < n; k++) {
    const p = upperTail(tauAt(plan, (k + 0.5) / n));
    all += p;
    if (k < share * n) hot += p;
  }
  return hot / all;
}

/** The border between where `below` holds and where it does not. */
function bisect(low: number, high: number, below: (x: number) => boolean): number {
  for (let i = 0; i < 40; i++) {
    const middle = (low + high) / 2;
    if (below(middle)) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

const mean = (values: number[]): number => values.reduce((a, b) => a + b, 0) / values.length;
