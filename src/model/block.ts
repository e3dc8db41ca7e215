/**
 * What a layer computes, as data: the parts that differ between architectures. Everything else is the same for
 * all of them:
 *
 *     q, k, v  = W_q n, W_k n, W_v n (+ biases)       n = norm(x)
 *     a        = attention(position(headNorm(q)), position(headNorm(k)), v)
 *     h        = x + W_o outputNorm(a) (+ bias)
 *     x1       = act(W_gate n' + b) * (W_up n' + b)   gated;  act(W_gate n' + b)  plain     n' = norm(h)
 *     y        = h + W_down norm(x1) (+ bias)
 *
 * Norms stand before the sublayer (as above), on its output (h = x + norm(f(x))), or on the sum (h = norm(x + f(x))).
 * A parallel block computes y = x + attention + ffn, both from x.
 */
import type { ModelConfig } from './types.js';

export interface NormDescription {
  /** `layer` subtracts the mean. Both have a weight; epsilon is the config's. */
  kind: 'rms' | 'layer';
  bias: boolean;
  /** before: x + f(norm(x)); output: x + norm(f(x)); sum: norm(x + f(x)). */
  place: 'before' | 'output' | 'sum';
}

export interface AttentionDescription {
  /** RMS norm of q and k before positions: of each head with one weight [headDim], or of all heads together. */
  headNorm: 'none' | 'head' | 'all';
  /** RMS norm of the heads' values before the output projection (BitNet). */
  outputNorm: boolean;
  /** Factor of the scores; null: 1 / sqrt(headDim). */
  scale: number | null;
  /** Dimensions of a head that rotate, the first ones; null: all; 0: none. */
  rotaryDims: number | null;
}

/** A router chooses some of the experts for each token; expert e owns neurons [e * n / count, (e + 1) * n / count). */
export interface ExpertsDescription {
  count: number;
  /** Chosen for one token: those with the largest router logits. */
  active: number;
  /** Weight of a chosen expert: its softmax over all experts, or the sigmoid of its logit. */
  scoring: 'softmax' | 'sigmoid';
  /** The weights of the chosen are divided by their sum. */
  normalized: boolean;
  /** What the router reads: the FFN's (normed) input, or x before the attention's norm. */
  routerInput: 'ffn' | 'block';
}

export interface FfnDescription {
  gated: boolean;
  /** On gate, up (when gated) and down. */
  bias: boolean;
  /** RMS norm of x1; its weight is part of the down projection (BitNet). */
  norm: boolean;
  experts: ExpertsDescription | null;
}

export interface LayerType {
  /** False: attention without positions. */
  rotates: boolean;
  /** Positions that attention sees, its own included; null: all. */
  window: number | null;
}

export interface Block {
  norm: NormDescription;
  parallel: boolean;
  attention: AttentionDescription;
  ffn: FfnDescription;
  /** By layer; null: all rotate and see all positions. */
  layers: LayerType[] | null;
}

/** What stands before the first layer and behind the last. */
export interface Ends {
  /** Columns of the embedding, which project_in and project_out map to and from d; null: d, and no projection. */
  embeddingSize: number | null;
  /** A table of positions, added to the embedding: row p + offset for position p. */
  learnedPositions: { rows: number; offset: number } | null;
  finalNorm: boolean;
}

export const LLAMA_BLOCK: Block = {
  norm: { kind: 'rms', bias: false, place: 'before' },
  parallel: false,
  attention: { headNorm: 'none', outputNorm: false, scale: null, rotaryDims: null },
  ffn: { gated: true, bias: false, norm: false, experts: null },
  layers: null,
};
export const LLAMA_ENDS: Ends = { embeddingSize: null, learnedPositions: null, finalNorm: true };

/** A block that differs from Llama's in these parts. */
export interface BlockDifference {
  norm?: Partial<NormDescription>;
  parallel?: boolean;
  attention?: Partial<AttentionDescription>;
  ffn?: Partial<FfnDescription>;
  layers?: LayerType[] | null;
}

export const blockLike = (base: Block, other: BlockDifference): Block => ({
  norm: { ...base.norm, ...other.norm },
  parallel: other.parallel ?? base.parallel,
  attention: { ...base.attention, ...other.attention },
  ffn: { ...base.ffn, ...other.ffn },
  layers: other.layers === undefined ? base.layers : other.layers,
});

/** Equal descriptions have equal texts: their keys are always written in the order above. */
export const isLlamaBlock = ({ block, ends }: ModelConfig): boolean =>
  JSON.stringify([block, ends]) === JSON.stringify([LLAMA_BLOCK, LLAMA_ENDS]);

// ---- what follows from it --------------------------------------------------------------------------------

const EVERY_LAYER: LayerType = { rotates: true, window: null };

export const layerType = ({ block }: ModelConfig, layer: number): LayerType =>
  block.layers?.[layer] ?? EVERY_LAYER;

/** Dimensions of a head that rotate. */
export const rotaryDims = ({ block, headDim }: ModelConfig): number => block.attention.rotaryDims ?? headDim;

export const attentionScale = ({ block, headDim }: ModelConfig): number =>
  block.attention.scale ?? 1 / Math.sqrt(headDim);

export const embeddingSize = ({ ends, hiddenSize }: ModelConfig): number => ends.embeddingSize ?? hiddenSize;

/** How a token meets a layer's neurons. A layer without a router is one expert that every token meets. */
export interface ExpertShape {
  count: number;
  /** Chosen for one token. */
  active: number;
  /** Neurons of one expert; neuron i belongs to expert floor(i / size). */
  size: number;
}

export function expertShape({ block, intermediateSize }: ModelConfig): ExpertShape {
  const { count, active } = block.ffn.experts ?? { count: 1, active: 1 };
  return { count, active, size: intermediateSize / count };
}

/** Neurons of the FFN that one token meets. */
export function activeNeurons(config: ModelConfig): number {
  const { active, size } = expertShape(config);
  return active * size;
}

/** For people: what differs from a Llama layer, one phrase each. */
export function describeBlock(config: ModelConfig): string[] {
  const { norm, parallel, attention, ffn, layers } = config.block;
  const { embeddingSize: embedding, learnedPositions, finalNorm } = config.ends;
  const rope = rotaryDims(config);
  const bare = layers?.filter(({ rotates }) => !rotates).length ?? 0;
  const windowed = layers?.filter(({ window }) => window !== null) ?? [];
  const e = ffn.experts;
  const phrases: (string | false)[] = [
    norm.kind === 'layer' && `LayerNorm${norm.bias ? ' with bias' : ''}`,
    norm.place === 'output' && 'norms on what attention and FFN add',
    norm.place === 'sum' && 'norms behind the residual sum',
    parallel && 'attention and FFN in parallel',
    config.qkvBias && 'biases on q, k and v',
    config.outputBias && 'bias on o',
    attention.headNorm !== 'none' &&
      `RMS norm of ${attention.headNorm === 'head' ? 'every query and key head' : 'queries and keys'}`,
    attention.outputNorm && 'RMS norm before o',
    attention.scale !== null && `attention scores times ${attention.scale}`,
    learnedPositions !== null && 'learned positions',
    rope !== config.headDim && rope > 0 && `${rope} of ${config.headDim} head dimensions rotate`,
    bare > 0 && `no positions in ${bare} of ${config.layers} layers`,
    windowed.length > 0 &&
      `a window of ${windowed[0].window} positions in ${windowed.length} of ${config.layers} layers`,
    !ffn.gated && 'FFN without a gate: down(act(fc1 x))',
    ffn.bias && 'biases in the FFN',
    ffn.norm && 'RMS norm before down',
    e !== null &&
      `${e.active} of ${e.count} experts of ${expertShape(config).size} neurons, by ${e.scoring}` +
        (e.routerInput === 'block' ? ', chosen before attention' : ''),
    embedding !== null && `embedding of ${embedding} columns, projected`,
    !finalNorm && 'no norm before the output head',
  ];
  return phrases.filter((phrase) => phrase !== false);
}
