/** What a pack header may say: types and ranges, checked before anything is computed from it. */
import { z } from 'zod';
import { ACTIVATION_KINDS } from '../kernels/kernels.js';
import { WEIGHT_FORMATS } from '../kernels/layout.js';
import * as limits from '../model/limits.js';

const count = (max: number) => z.number().int().min(1).max(max);
const positive = z.number().positive().max(1e30);
const offset = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
const tokenId = z.number().int().min(0).max(limits.MAX_VOCAB);

const ropeScaling = z.union([
  z.null(),
  z.strictObject({ type: z.literal('linear'), factor: positive }),
  z.strictObject({
    type: z.literal('llama3'),
    factor: positive,
    lowFreqFactor: positive,
    highFreqFactor: positive,
    originalMaxPosition: positive,
  }),
  z.strictObject({
    type: z.literal('yarn'),
    factor: positive,
    originalMaxPosition: positive,
    betaFast: positive,
    betaSlow: positive,
    attentionFactor: positive,
    truncate: z.boolean(),
  }),
  z.strictObject({ type: z.literal('dynamic'), factor: positive, originalMaxPosition: positive }),
  z.strictObject({
    type: z.literal('longrope'),
    shortFactors: z.array(positive).max(limits.MAX_HEAD_DIM),
    longFactors: z.array(positive).max(limits.MAX_HEAD_DIM),
    originalMaxPosition: positive,
    attentionFactor: positive,
  }),
]);

const experts = z
  .strictObject({
    count: count(limits.MAX_EXPERTS),
    active: count(limits.MAX_EXPERTS),
    scoring: z.enum(['softmax', 'sigmoid']),
    normalized: z.boolean(),
    routerInput: z.enum(['ffn', 'block']),
  })
  .refine((e) => e.active <= e.count, { error: 'more active experts than there are', path: ['active'] });

/** Keys in the order of model/block.ts: equal blocks have equal texts. */
const block = z.strictObject({
  norm: z.strictObject({
    kind: z.enum(['rms', 'layer']),
    bias: z.boolean(),
    place: z.enum(['before', 'output', 'sum']),
  }),
  parallel: z.boolean(),
  attention: z.strictObject({
    headNorm: z.enum(['none', 'head', 'all']),
    outputNorm: z.boolean(),
    scale: positive.nullable(),
    rotaryDims: z.number().int().min(0).max(limits.MAX_HEAD_DIM).multipleOf(2).nullable(),
  }),
  ffn: z.strictObject({
    gated: z.boolean(),
    bias: z.boolean(),
    norm: z.boolean(),
    experts: experts.nullable(),
  }),
  layers: z
    .array(z.strictObject({ rotates: z.boolean(), window: count(limits.MAX_CONTEXT).nullable() }))
    .max(limits.MAX_LAYERS)
    .nullable(),
});

const ends = z.strictObject({
  embeddingSize: count(limits.MAX_HIDDEN).nullable(),
  learnedPositions: z
    .strictObject({ rows: count(limits.MAX_CONTEXT), offset: z.number().int().min(0).max(1000) })
    .nullable(),
  finalNorm: z.boolean(),
});

export const configSchema = z
  .strictObject({
    architecture: z.string().max(200),
    hiddenSize: count(limits.MAX_HIDDEN),
    intermediateSize: count(limits.MAX_INTERMEDIATE),
    layers: count(limits.MAX_LAYERS),
    heads: count(limits.MAX_HEADS),
    kvHeads: count(limits.MAX_HEADS),
    headDim: count(limits.MAX_HEAD_DIM).multipleOf(2),
    vocabSize: count(limits.MAX_VOCAB),
    maxContext: count(limits.MAX_CONTEXT),
    rmsEpsilon: z.number().min(0).max(1),
    ropeTheta: positive,
    ropeScaling,
    activation: z.strictObject({ kind: z.enum(ACTIVATION_KINDS), threshold: z.number().min(0).max(1e30) }),
    qkvBias: z.boolean(),
    outputBias: z.boolean(),
    tiedEmbeddings: z.boolean(),
    embeddingScale: positive,
    residualScale: positive,
    logitScale: positive,
    block,
    ends,
    bosId: tokenId.nullable(),
    eosIds: z.array(tokenId).max(1000),
  })
  .refine((c) => c.heads % c.kvHeads === 0, { error: 'kvHeads must divide heads', path: ['kvHeads'] })
  .refine((c) => (c.heads + 2 * c.kvHeads) * c.headDim <= limits.MAX_INTERMEDIATE, {
    error: 'attention is wider than supported',
    path: ['heads'],
  })
  .refine((c) => (c.block.attention.rotaryDims ?? 0) <= c.headDim, {
    error: 'more dimensions rotate than a head has',
    path: ['block', 'attention', 'rotaryDims'],
  })
  .refine((c) => !c.block.parallel || c.block.norm.place === 'before', {
    error: 'norms of parallel branches stand before them',
    path: ['block', 'norm', 'place'],
  })
  .refine(({ ends: { learnedPositions: p }, maxContext }) => !p || p.rows - p.offset >= maxContext, {
    error: 'fewer learned positions than the context has',
    path: ['ends', 'learnedPositions'],
  })
  .refine((c) => c.block.layers === null || c.block.layers.length === c.layers, {
    error: 'one entry for each layer',
    path: ['block', 'layers'],
  })
  .refine((c) => c.intermediateSize % (c.block.ffn.experts?.count ?? 1) === 0, {
    error: 'experts must divide the neurons',
    path: ['intermediateSize'],
  });

const section = z.strictObject({
  offset,
  bytes: offset,
  format: z.enum(WEIGHT_FORMATS),
  rows: offset,
  cols: offset,
  stride: offset,
});

const layer = z.strictObject({
  attnNorm: section,
  attnNormBias: section.nullable(),
  qkv: section,
  qkvBias: section.nullable(),
  qNorm: section.nullable(),
  kNorm: section.nullable(),
  oNorm: section.nullable(),
  o: section,
  oBias: section.nullable(),
  ffnNorm: section,
  ffnNormBias: section.nullable(),
  router: section.nullable(),
  gate: section,
  gateBias: section.nullable(),
  ffn: section,
  upBias: section.nullable(),
  downBias: section.nullable(),
});

const converted = z.strictObject({
  role: z.string().max(100),
  from: z.string().max(100),
  to: z.enum(WEIGHT_FORMATS),
  tensors: count(limits.MAX_TENSORS),
});

export const headerSchema = z.strictObject({
  toolVersion: z.string().max(100),
  name: z.string().min(1).max(1000),
  config: configSchema,
  quant: z.enum(WEIGHT_FORMATS),
  converted: z.array(converted).max(1000),
  fingerprint: z.string().regex(/^[0-9a-f]{64}$/, { error: 'expected 64 hexadecimal digits' }),
  tokenizer: z.strictObject({
    tokenizerJson: z.string(),
    tokenizerConfigJson: z.string(),
    chatTemplate: z.string().nullable(),
    generationConfigJson: z.string().nullable(),
  }),
  embed: section,
  positions: section.nullable(),
  projectIn: section.nullable(),
  outNorm: section,
  outNormBias: section.nullable(),
  projectOut: section.nullable(),
  lmHead: section.nullable(),
  layers: z.array(layer).max(limits.MAX_LAYERS),
  fileBytes: offset,
});
