/** How the learning rate and lambda go over the steps of a training. */
import { UsageError } from '../errors.js';

/** Until step `end` (exclusive; accumulated), towards lambda. */
export interface Stage {
  lambda: number;
  end: number;
}

/**
 * Progressive L1 (ProSparse): the first two stages keep their lambda; in every later one it rises along a sine:
 * l(t) = l[i-1] + (sin(-pi/2 + pi (t - T[i-1]) / (T[i] - T[i-1])) + 1) / 2 * (l[i] - l[i-1]).
 * Without stages: 0. After the last one: its lambda.
 */
export function lambdaAt(stages: readonly Stage[], step: number): number {
  const i = stages.findIndex(({ end }) => step < end);
  if (i < 0) return stages.at(-1)?.lambda ?? 0;
  if (i < FLAT_STAGES) return stages[i].lambda;
  const { lambda: from, end: begin } = stages[i - 1];
  const { lambda: to, end } = stages[i];
  const share = (step - begin) / (end - begin);
  return from + 0.5 * (Math.sin(-Math.PI / 2 + Math.PI * share) + 1) * (to - from);
}

const FLAT_STAGES = 2;

/** Linear warm-up, then half a cosine down to `lowest` of the peak. */
export function learningRateAt(
  { peak, warmup, lowest }: { peak: number; warmup: number; lowest: number },
  step: number,
  steps: number,
): number {
  if (step < warmup) return (peak * (step + 1)) / warmup;
  const share = (step - warmup) / Math.max(1, steps - warmup);
  return peak * (lowest + (1 - lowest) * 0.5 * (1 + Math.cos(Math.PI * share)));
}

/**
 * `0:5000, 5e-3:6000, 5e-2:10000`: lambda, and the accumulated step its stage ends at.
 * @throws UsageError naming the stage
 */
export function parseStages(text: string): Stage[] {
  const stages = text.split(',').map((part, i): Stage => {
    const match = /^\s*(\d+\.?\d*(?:e[+-]?\d{1,2})?|\.\d+(?:e[+-]?\d{1,2})?)\s*:\s*(\d{1,12})\s*$/i.exec(
      part,
    );
    if (!match) {
      throw new UsageError(
        `--stages: stage ${i} is ${JSON.stringify(part.trim())}, expected LAMBDA:END such as 5e-3:6000`,
      );
    }
    return { lambda: Number(match[1]), end: Number(match[2]) };
  });
  stages.forEach(({ end }, i) => {
    const before = i === 0 ? 0 : stages[i - 1].end;
    if (end > before) return;
    throw new UsageError(
      `--stages: stage ${i} ends at step ${end}, expected more than ${before}, where it begins`,
      'Ends are accumulated steps: each must be above the one before.',
    );
  });
  return stages;
}

/**
 * ProSparse's stages over any number of steps. Shares of the steps and lambdas are those that the demo model was
 * trained with; lambda multiplies sum |x1| per token and layer, so it depends on a model's width and scale.
 */
export function stagesFor(steps: number, scale = 1): Stage[] {
  return PROPORTIONS.map(([lambda, share]) => ({ lambda: lambda * scale, end: Math.round(share * steps) }));
}

const PROPORTIONS: readonly (readonly [lambda: number, share: number])[] = [
  [0, 0.2],
  [5e-4, 0.25],
  [4e-3, 0.45],
  [4e-3, 0.55],
  [2e-2, 0.9],
  [2e-2, 1],
];

// ---- lambda that follows a wanted sparsity ---------------------------------------------------------------

/** What the controller remembers between steps; part of the checkpoint. */
export interface LambdaControl {
  lambda: number;
  /** Sparsity of the first step: the way to the target begins there. */
  from: number | null;
}

export const startControl = (): LambdaControl => ({ lambda: 0, from: null });

/** Where lambda begins once it is needed: so small that the first steps notice little. */
const FIRST_LAMBDA = 1e-4;
/** Part of the steps in which the wanted sparsity rises; the rest holds it while the model recovers. */
const RISE = 0.7;
/** One step changes lambda by at most a factor of exp(GAIN * distance). */
const GAIN = 1.5;
const MAX_LAMBDA = 1;

/** The sparsity wanted at a step: half a sine from where the model began to the target. */
export function wantedSparsity(from: number, target: number, step: number, steps: number): number {
  const share = Math.min(1, step / Math.max(1, RISE * steps));
  return from + 0.5 * (Math.sin(-Math.PI / 2 + Math.PI * share) + 1) * (target - from);
}

/** Lambda grows while the batch is less sparse than wanted, and shrinks while it is more. */
export function controlLambda(
  before: LambdaControl,
  sparsity: number,
  target: number,
  step: number,
  steps: number,
): LambdaControl {
  const from = before.from ?? sparsity;
  const missing = wantedSparsity(from, target, step, steps) - sparsity;
  const lambda = Math.max(before.lambda, missing > 0 ? FIRST_LAMBDA : 0) * Math.exp(GAIN * missing);
  return { lambda: Math.min(MAX_LAMBDA, lambda), from };
}
