/** The description of a block (model/block.ts) as the forward pass asks for it: numbers and booleans, made once. */
import { attentionScale, rotaryDims } from '../model/block.js';
import type { ModelConfig } from '../model/types.js';

export interface BlockShape {
  /** Norms subtract the mean; else RMS. */
  layerNorm: boolean;
  /** Where norms stand: one of these. See NormDescription. */
  normsInputs: boolean;
  normsOutputs: boolean;
  normsSums: boolean;
  /** Attention and FFN both read the layer's input. */
  parallel: boolean;
  /** RMS norm of every query and key head; of all query heads together, and all key heads. */
  normsHeads: boolean;
  normsAllHeads: boolean;
  attentionScale: number;
  /** Dimensions of a head that rotate, the first ones. */
  rotaryDims: number;
  gated: boolean;
  /** RMS norm of x1, its weight folded into down. */
  normsX1: boolean;
  /** 1: no mixture. */
  experts: number;
  activeExperts: number;
  /** The router reads x before the attention's norm. */
  routesBeforeAttention: boolean;
}

export function blockShape(config: ModelConfig): BlockShape {
  const { norm, parallel, attention, ffn } = config.block;
  const { experts } = ffn;
  return {
    layerNorm: norm.kind === 'layer',
    normsInputs: norm.place === 'before',
    normsOutputs: norm.place === 'output',
    normsSums: norm.place === 'sum',
    parallel,
    normsHeads: attention.headNorm === 'head',
    normsAllHeads: attention.headNorm === 'all',
    attentionScale: attentionScale(config),
    rotaryDims: rotaryDims(config),
    gated: ffn.gated,
    normsX1: ffn.norm,
    experts: experts?.count ?? 1,
    activeExperts: experts?.active ?? 1,
    routesBeforeAttention: experts?.routerInput === 'block',
  };
}
