/** Published sparse models whose shapes synthetic models can have, with the densities published for them. */
import { LLAMA_BLOCK, LLAMA_ENDS } from '../model/block.js';
import type { ModelConfig } from '../model/types.js';

export interface Shape {
  config: ModelConfig;
  /** True sparsity of x1 as published. */
  sparsity: number;
  /** Activation recall and predicted sparsity of published predictors (or a plausible pair near them). */
  recall: number;
  predictedSparsity: number;
  rank: number;
}

const base: ModelConfig = {
  architecture: 'SparseLlamaForCausalLM',
  hiddenSize: 4096,
  intermediateSize: 11008,
  layers: 32,
  heads: 32,
  kvHeads: 32,
  headDim: 128,
  vocabSize: 32000,
  maxContext: 4096,
  rmsEpsilon: 1e-5,
  ropeTheta: 10000,
  ropeScaling: null,
  activation: { kind: 'fatrelu', threshold: 0.01 },
  qkvBias: false,
  outputBias: false,
  tiedEmbeddings: false,
  embeddingScale: 1,
  residualScale: 1,
  logitScale: 1,
  block: LLAMA_BLOCK,
  ends: LLAMA_ENDS,
  bosId: 0,
  eosIds: [1],
};

const mistral: ModelConfig = {
  ...base,
  architecture: 'BambooForCausalLM',
  intermediateSize: 14336,
  kvHeads: 8,
  activation: { kind: 'drelu', threshold: 0 },
};

export const SHAPES: Readonly<Record<string, Shape>> = {
  'prosparse-7b': { config: base, sparsity: 0.8932, recall: 0.9234, predictedSparsity: 0.7875, rank: 512 },
  'prosparse-13b': {
    config: { ...base, hiddenSize: 5120, intermediateSize: 13824, layers: 40, heads: 40, kvHeads: 40 },
    sparsity: 0.888,
    recall: 0.911,
    predictedSparsity: 0.7787,
    rank: 512,
  },
  'minicpm-s-1b': {
    config: {
      ...base,
      architecture: 'MiniCPMForCausalLM',
      hiddenSize: 1536,
      intermediateSize: 3840,
      layers: 52,
      heads: 24,
      kvHeads: 8,
      headDim: 64,
      vocabSize: 73440,
      tiedEmbeddings: true,
      embeddingScale: 12,
      residualScale: 1.4 / Math.sqrt(52),
      logitScale: 256 / 1536,
    },
    sparsity: 0.8789,
    recall: 0.92,
    predictedSparsity: 0.77,
    rank: 256,
  },
  'bamboo-7b': { config: mistral, sparsity: 0.85, recall: 0.92, predictedSparsity: 0.72, rank: 512 },
  'turbosparse-mistral': { config: mistral, sparsity: 0.9, recall: 0.92, predictedSparsity: 0.78, rank: 512 },
  // No published model: small enough for tests, large enough that the densities come out as asked.
  'tiny-test': {
    config: {
      ...base,
      hiddenSize: 512,
      intermediateSize: 2048,
      layers: 3,
      heads: 8,
      kvHeads: 2,
      headDim: 64,
      vocabSize: 512,
      maxContext: 512,
    },
    sparsity: 0.89,
    recall: 0.92,
    predictedSparsity: 0.78,
    rank: 128,
  },
  // For what only has to run, and on a software GPU: too small for its densities to mean anything.
  'least-test': {
    config: {
      ...base,
      hiddenSize: 64,
      intermediateSize: 256,
      layers: 2,
      heads: 2,
      kvHeads: 1,
      headDim: 32,
      vocabSize: 288,
    },
    sparsity: 0.89,
    recall: 0.92,
    predictedSparsity: 0.78,
    rank: 32,
  },
};
