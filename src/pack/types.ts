/**
 * The model pack: one file that holds a quantised model in the order the engine reads it.
 *
 *     offset 0   magic "HYBPACK\0" (8 bytes)
 *            8   version u32, header bytes u32
 *           16   SHA-256 of the header (32 bytes)
 *           48   header, JSON (UTF-8)
 *         ...    padding to 4096; then the sections, each at a multiple of 64
 *
 * FFN weights are neuron-major: a neuron's gate row in `gate`, and in `ffn` one record per neuron: its up
 * row, then its down column (stored as a row), rowBytes(format, d) each, so what a neuron needs after
 * the gate passed is one contiguous read.
 */
import type { WeightFormat } from '../kernels/layout.js';
import type { Converted } from './formats.js';
import type { ModelConfig, TokenizerFiles } from '../model/types.js';

export interface PackSection {
  /** From the start of the file; a multiple of 64. */
  offset: number;
  /** rows * stride */
  bytes: number;
  format: WeightFormat;
  rows: number;
  /** Logical columns; stored rows are padded as layout.ts says. */
  cols: number;
  /** Bytes from one row (or record) to the next. */
  stride: number;
}

/** null: the model has no such part. Vectors are f32 [1][n]. */
export interface PackLayer {
  attnNorm: PackSection; // f32 [1][d]
  attnNormBias: PackSection | null;
  /** q rows, then k, then v: [(heads + 2 kvHeads) * headDim][d] */
  qkv: PackSection;
  qkvBias: PackSection | null; // f32 [1][(heads + 2 kvHeads) * headDim]
  qNorm: PackSection | null; // f32 [1][headDim], or of all heads
  kNorm: PackSection | null;
  oNorm: PackSection | null; // f32 [1][heads * headDim]
  o: PackSection; // [d][heads * headDim]
  oBias: PackSection | null; // f32 [1][d]
  ffnNorm: PackSection; // f32 [1][d]
  ffnNormBias: PackSection | null;
  router: PackSection | null; // f32 [experts][d]
  /** Without a gate: fc1. With experts: theirs, one after the other. */
  gate: PackSection; // [nFf][d]
  gateBias: PackSection | null; // f32 [1][nFf]
  /** records: up row at 0, down column at rowBytes(format, d); without a gate the down column only */
  ffn: PackSection; // [nFf][up d | down d]
  upBias: PackSection | null; // f32 [1][nFf]
  downBias: PackSection | null; // f32 [1][d]
}

export interface PackHeader {
  toolVersion: string;
  name: string;
  config: ModelConfig;
  /** The format of most FFN weights; every section names its own. */
  quant: WeightFormat;
  /** What the model's types became, by role. */
  converted: Converted[];
  /** Fingerprint of the source model (WeightSource.fingerprint): same for every quantisation of it. */
  fingerprint: string;
  tokenizer: TokenizerFiles;
  embed: PackSection; // [vocab][embeddingSize]
  positions: PackSection | null; // [rows][d]
  projectIn: PackSection | null; // [d][embeddingSize]
  outNorm: PackSection; // f32 [1][d]; no rows when the model has no norm there
  outNormBias: PackSection | null;
  projectOut: PackSection | null; // [embeddingSize][d]
  /** null: tied, the embedding is used */
  lmHead: PackSection | null;
  layers: PackLayer[];
  fileBytes: number;
}

/** An opened, validated pack. One descriptor, kept until close; lanes read through the same descriptor. */
export interface Pack {
  readonly path: string;
  readonly header: PackHeader;
  /** Descriptor for fs.readSync with explicit positions, from any thread of this process. */
  readonly fd: number;
  close(): void;
}
