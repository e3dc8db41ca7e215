/** What a model is, after its own config dialect was read: the one description the rest of the code uses. */
import type { ActivationKind } from '../kernels/kernels.js';
import type { Block, Ends } from './block.js';

export type RopeScaling =
  | null
  | { type: 'linear'; factor: number }
  | {
      type: 'llama3';
      factor: number;
      lowFreqFactor: number;
      highFreqFactor: number;
      originalMaxPosition: number;
    }
  | {
      type: 'yarn';
      factor: number;
      originalMaxPosition: number;
      betaFast: number;
      betaSlow: number;
      /** Factor of cos and sin. */
      attentionFactor: number;
      /** The ends of the ramp are whole pairs. */
      truncate: boolean;
    }
  | { type: 'dynamic'; factor: number; originalMaxPosition: number }
  | {
      type: 'longrope';
      /** Divisors of each pair's speed, in contexts up to the original one and in longer ones. */
      shortFactors: number[];
      longFactors: number[];
      originalMaxPosition: number;
      /** Factor of cos and sin. */
      attentionFactor: number;
    };

export interface ModelConfig {
  /** As the model names itself, such as `SparseLlamaForCausalLM` (GGUF: `llama`). */
  architecture: string;
  hiddenSize: number; // d
  intermediateSize: number; // nFf of a layer: of all its experts together
  layers: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  vocabSize: number;
  /** max_position_embeddings */
  maxContext: number;
  /** Epsilon of all norms. */
  rmsEpsilon: number;
  ropeTheta: number;
  ropeScaling: RopeScaling;
  activation: { kind: ActivationKind; /** 0 unless fatrelu */ threshold: number };
  /** Biases present on q, k, v / on o. */
  qkvBias: boolean;
  outputBias: boolean;
  tiedEmbeddings: boolean;
  /** MiniCPM: x = embed * embeddingScale; x += residualScale * block(x); logits *= logitScale. 1 elsewhere. */
  embeddingScale: number;
  residualScale: number;
  logitScale: number;
  block: Block;
  ends: Ends;
  bosId: number | null;
  eosIds: number[];
}

/** One layer's tensors by role; shapes are [rows, cols] as in the model file (row-major, rows = outputs). */
export type LayerTensor =
  | 'attnNorm' // [d]
  | 'attnNormBias'
  | 'q' // [heads * headDim, d]
  | 'k' // [kvHeads * headDim, d]
  | 'v' // [kvHeads * headDim, d]
  | 'o' // [d, heads * headDim]
  | 'qBias'
  | 'kBias'
  | 'vBias'
  | 'oBias'
  | 'qNorm' // [headDim], or [heads * headDim]
  | 'kNorm' // [headDim], or [kvHeads * headDim]
  | 'oNorm' // [heads * headDim], before o
  | 'ffnNorm' // [d]
  | 'ffnNormBias'
  | 'router' // [experts, d]
  | 'gate' // [nFf, d]; the only matrix before the activation in an FFN without a gate
  | 'gateBias'
  | 'up' // [nFf, d]
  | 'upBias'
  | 'down' // [d, nFf]; times the weight of the norm before it, column by column
  | 'downBias';
export type GlobalTensor =
  | 'embed' // [vocab, embeddingSize]
  | 'positions' // [rows, d]
  | 'projectIn' // [d, embeddingSize]
  | 'outNorm' // [d]
  | 'outNormBias'
  | 'projectOut' // [embeddingSize, d]
  | 'lmHead'; // [vocab, embeddingSize]
export type Role = GlobalTensor | LayerTensor;
export type TensorName = GlobalTensor | `layers.${number}.${LayerTensor}`;

/** Tokenizer and template files as texts, exactly as a Hugging Face folder has them. */
export interface TokenizerFiles {
  /** tokenizer.json (for GGUF: rebuilt from its metadata) */
  tokenizerJson: string;
  /** tokenizer_config.json, `{}` when absent */
  tokenizerConfigJson: string;
  /** Jinja chat template, null when the model has none */
  chatTemplate: string | null;
  /** generation_config.json, null when absent */
  generationConfigJson: string | null;
}

/** An opened model (folder or GGUF): validated, nothing but headers read yet. */
export interface WeightSource {
  /** Short name for reports and artifact files, such as `tales-4m-relu`. */
  readonly name: string;
  readonly path: string;
  readonly kind: 'safetensors' | 'gguf';
  readonly config: ModelConfig;
  readonly tokenizer: TokenizerFiles;
  /** Shape and stored type of every tensor this runtime uses. */
  readonly tensors: ReadonlyMap<TensorName, { dtype: string; shape: readonly number[]; bytes: number }>;
  /** Things worth telling the user once: extra tensors, a config that contradicts its model type, ... */
  readonly warnings: readonly string[];
  /**
   * GGUF files that this program exported name the model they were made from (its `fingerprint()`), so that
   * its profile can be used with them. A claim of the file, not a check of its content: never a cache key.
   */
  readonly claimedFingerprint?: string | null;
  /**
   * Rows [begin, end) of a tensor as f32, read by range (one range at a time, never the whole file).
   * GGUF's permuted q and k come back in Hugging Face's rotate-half order.
   * @returns `into`, or a new array, of (end - begin) * cols values
   * @throws ModelError when the file is short or a value is NaN or infinite (tensor and row named)
   */
  readRows(name: TensorName, begin: number, end: number, into?: Float32Array): Promise<Float32Array>;
  /**
   * SHA-256 over what the model computes with: config, tokenizer, tensor bytes. Names the model in caches
   * and artifacts. Reads every byte once; `onBytes` reports progress.
   */
  fingerprint(onBytes?: (done: number, total: number) => void): Promise<string>;
  close(): Promise<void>;
}
