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
]);

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
    bosId: tokenId.nullable(),
    eosIds: z.array(tokenId).max(1000),
  })
  .refine((c) => c.heads % c.kvHeads === 0, { error: 'kvHeads must divide heads', path: ['kvHeads'] })
  .refine((c) => (c.heads + 2 * c.kvHeads) * c.headDim <= limits.MAX_INTERMEDIATE, {
    error: 'attention is wider than supported',
    path: ['heads'],
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
  qkv: section,
  qkvBias: section.nullable(),
  o: section,
  oBias: section.nullable(),
  ffnNorm: section,
  gate: section,
  ffn: section,
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
  outNorm: section,
  lmHead: section.nullable(),
  layers: z.array(layer).max(limits.MAX_LAYERS),
  fileBytes: offset,
});
