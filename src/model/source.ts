/** An opened model, whichever kind of file it came from. */
import { firstFew, ModelError } from '../errors.js';
import type { RegularFile } from '../io/regular-file.js';
import { storedTensorsOf, summarize, type BoundTensor } from './bind.js';
import { fingerprint } from './fingerprint.js';
import type { ModelConfig, TensorName, TokenizerFiles, WeightSource } from './types.js';
import { RowReader } from './weights.js';

/** Tables that older checkpoints keep and every program computes: rotations, GPT-NeoX's causal masks. */
const BUFFERS = /\.(rotary_emb\.inv_freq|attention\.bias|attention\.masked_bias)$/;

/** Tensors the model does not use: worth a remark, because they may mean a wrong config. */
export function describeExtra(
  names: readonly string[],
  bound: ReadonlyMap<TensorName, BoundTensor>,
): string[] {
  const used = new Set([...bound.values()].flatMap((t) => [...storedTensorsOf(t)].map(({ name }) => name)));
  const extra = names.filter((name) => !used.has(name) && !BUFFERS.test(name));
  if (extra.length === 0) return [];
  return [`${extra.length} tensors are not used: ${firstFew(extra, 5)}`];
}

export interface OpenModelParts {
  name: string;
  path: string;
  kind: 'safetensors' | 'gguf';
  config: ModelConfig;
  tokenizer: TokenizerFiles;
  bound: Map<TensorName, BoundTensor>;
  /** As the config demands them. */
  shapes: ReadonlyMap<TensorName, readonly number[]>;
  files: RegularFile[];
  warnings: string[];
  claimedFingerprint: string | null;
}

/** The WeightSource of both file kinds. */
export class OpenModel implements WeightSource {
  readonly name: string;
  readonly path: string;
  readonly kind: 'safetensors' | 'gguf';
  readonly config: ModelConfig;
  readonly tokenizer: TokenizerFiles;
  readonly tensors: ReadonlyMap<TensorName, { dtype: string; shape: readonly number[]; bytes: number }>;
  readonly warnings: readonly string[];
  readonly claimedFingerprint: string | null;
  private readonly bound: Map<TensorName, BoundTensor>;
  private readonly files: RegularFile[];
  private readonly rows = new RowReader();
  private closed = false;

  constructor(parts: OpenModelParts) {
    this.name = parts.name;
    this.path = parts.path;
    this.kind = parts.kind;
    this.config = parts.config;
    this.tokenizer = parts.tokenizer;
    this.warnings = parts.warnings;
    this.claimedFingerprint = parts.claimedFingerprint;
    this.bound = parts.bound;
    this.files = parts.files;
    this.tensors = new Map(
      [...parts.bound].map(([name, tensor]) => [
        name,
        { ...summarize(tensor), shape: parts.shapes.get(name)! },
      ]),
    );
  }

  async readRows(name: TensorName, begin: number, end: number, into?: Float32Array): Promise<Float32Array> {
    this.requireOpen();
    const tensor = this.bound.get(name);
    if (tensor === undefined) throw new ModelError('USAGE', `${this.path}: this model has no tensor ${name}`);
    return this.rows.readRows(tensor, begin, end, into);
  }

  async fingerprint(onBytes?: (done: number, total: number) => void): Promise<string> {
    this.requireOpen();
    return fingerprint(
      { config: this.config, tokenizer: this.tokenizer, files: this.files, tensors: this.bound },
      onBytes,
    );
  }

  async close(): Promise<void> {
    this.closed = true;
    for (const file of this.files) file.close();
  }

  private requireOpen(): void {
    if (this.closed) throw new ModelError('CLOSED', `${this.path}: the model was closed`);
  }
}
