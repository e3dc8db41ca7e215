/** Rotary position embeddings: the angle of every pair of dimensions, with the scaling that a model asks for. */
import { rotaryDims } from './block.js';
import type { ModelConfig, RopeScaling } from './types.js';

export interface RopeTable {
  /** [rotaryDims / 2] radians a position. */
  frequencies: Float64Array;
  /** Factor of cos and sin (YaRN's attention factor; 1 elsewhere). */
  magnitude: number;
}

/**
 * @param contextLength positions that the cache holds: `dynamic` scaling depends on it
 *
 * linear: Chen et al. 2023, position interpolation. llama3: Llama 3.1's published scheme. yarn: Peng et al. 2023,
 * dimensions that turn often within the original context keep their speed, slow ones are interpolated, the logits
 * are sharpened by the attention factor. dynamic: the base grows with the context (NTK-aware, as in transformers,
 * where it grows with the text): within the original context it is no scaling at all. longrope: Ding et al. 2024, a
 * divisor a pair, one set for the original context and one for longer ones (transformers changes with the text).
 */
export function ropeTable(config: ModelConfig, contextLength = config.maxContext): RopeTable {
  const dims = rotaryDims(config);
  const scaling = config.ropeScaling;
  const theta = scaling?.type === 'dynamic' ? dynamicTheta(config, scaling, contextLength) : config.ropeTheta;
  const frequencies = Float64Array.from({ length: dims / 2 }, (_, i) => theta ** ((-2 * i) / dims));
  if (scaling?.type === 'linear')
    return { frequencies: frequencies.map((f) => f / scaling.factor), magnitude: 1 };
  if (scaling?.type === 'llama3')
    return { frequencies: frequencies.map((f) => llama3(f, scaling)), magnitude: 1 };
  if (scaling?.type === 'yarn') {
    const keep = yarnRamp(config.ropeTheta, dims, scaling);
    return {
      frequencies: frequencies.map((f, i) => (f / scaling.factor) * (1 - keep(i)) + f * keep(i)),
      magnitude: scaling.attentionFactor,
    };
  }
  if (scaling?.type === 'longrope') {
    const long = contextLength > scaling.originalMaxPosition;
    const divisors = long ? scaling.longFactors : scaling.shortFactors;
    return { frequencies: frequencies.map((f, i) => f / divisors[i]), magnitude: scaling.attentionFactor };
  }
  return { frequencies, magnitude: 1 };
}

type Scaling<Type extends string> = Extract<RopeScaling, { type: Type }>;

function dynamicTheta(config: ModelConfig, s: Scaling<'dynamic'>, contextLength: number): number {
  const dims = rotaryDims(config);
  const length = Math.max(contextLength, s.originalMaxPosition);
  const growth = (s.factor * length) / s.originalMaxPosition - (s.factor - 1);
  return config.ropeTheta * growth ** (dims / (dims - 2));
}

function llama3(f: number, s: Scaling<'llama3'>): number {
  const turns = (s.originalMaxPosition * f) / (2 * Math.PI);
  if (turns < s.lowFreqFactor) return f / s.factor;
  if (turns >= s.highFreqFactor) return f;
  const blend = (turns - s.lowFreqFactor) / (s.highFreqFactor - s.lowFreqFactor);
  return (1 - blend) * (f / s.factor) + blend * f;
}

/** Share of a pair's own speed that stays: 1 below the pair that turns betaFast times, 0 above betaSlow's. */
function yarnRamp(theta: number, dims: number, s: Scaling<'yarn'>): (pair: number) => number {
  const pairOf = (turns: number) =>
    (dims * Math.log(s.originalMaxPosition / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  const whole = (round: (x: number) => number, x: number) => (s.truncate ? round(x) : x);
  const low = Math.max(0, whole(Math.floor, pairOf(s.betaFast)));
  const high = Math.min(dims - 1, whole(Math.ceil, pairOf(s.betaSlow)));
  // Equal ends would divide by zero.
  const width = low === high ? 0.001 : high - low;
  return (pair) => 1 - Math.min(1, Math.max(0, (pair - low) / width));
}

/** longrope's factor when a config names none, by how far the context was stretched. */
export const longropeMagnitude = (stretch: number, originalMaxPosition: number): number =>
  stretch <= 1 ? 1 : Math.sqrt(1 + Math.log(stretch) / Math.log(originalMaxPosition));

/** YaRN's factor when a config names none: 0.1 ln(factor) + 1. */
export const yarnMagnitude = (factor: number, scale = 1): number =>
  factor <= 1 ? 1 : 0.1 * scale * Math.log(factor) + 1;
