/** Opening a GGUF file as a model. */
import { bindTensors, type BoundTensor } from './bind.js';
import { readGgufConfig } from './gguf-config.js';
import { GgufMetadata } from './gguf-metadata.js';
import { openGgufFiles } from './gguf-split.js';
import { rebuildTokenizer } from './gguf-tokenizer.js';
import { describeExtra, OpenModel } from './source.js';
import type { StoredTensor } from './safetensors.js';
import { expectedTensors } from './tensor-names.js';
import type { WeightSource } from './types.js';
import { RowReader } from './weights.js';
import { STORED_TYPES } from './decode.js';

/** Divisors of rotary frequencies: Llama 3's, and longrope's two sets. */
const ROPE_FACTORS = ['rope_freqs.weight', 'rope_factors_short.weight', 'rope_factors_long.weight'];

/** @throws HybridError (FILE_NOT_FOUND, FILE_INVALID, MODEL_INVALID, MODEL_UNSUPPORTED, TOKENIZER_INVALID) */
export async function openGguf(path: string): Promise<WeightSource> {
  const { name, files, metadata, tensors: stored } = openGgufFiles(path);
  try {
    const meta = new GgufMetadata(metadata, path);
    const tensors = new Map(stored.map((t) => [t.name, t]));
    const ropeFactors = new Map<string, Float32Array>();
    for (const name of ROPE_FACTORS) {
      const tensor = tensors.get(name);
      if (tensor) ropeFactors.set(name, await readRopeFactors(tensor, meta));
    }
    const { config, naming, warnings } = readGgufConfig(meta, {
      hasTensor: (name) => tensors.has(name),
      ropeFactors,
    });
    const expected = expectedTensors(config);
    const bound = bindTensors(config, expected, naming, (wanted) => tensors.get(wanted), path);
    const tokenizer = rebuildTokenizer(meta);
    warnings.push(
      ...describeExtra(
        [...tensors.keys()].filter((name) => !ROPE_FACTORS.includes(name)),
        bound,
      ),
    );
    return new OpenModel({
      name,
      path,
      kind: 'gguf',
      config,
      tokenizer,
      bound,
      shapes: new Map(expected),
      files,
      warnings,
      claimedFingerprint: claimed(meta),
    });
  } catch (error) {
    for (const file of files) file.close();
    throw error;
  }
}

/** Half a head of divisors: some kilobytes at most. */
async function readRopeFactors(tensor: StoredTensor, meta: GgufMetadata): Promise<Float32Array> {
  const [length] = tensor.shape;
  if (tensor.shape.length !== 1 || tensor.dtype !== 'F32' || length > 1 << 14 || length === 0) {
    throw meta.invalid(
      `tensor ${tensor.name}: expected F32 [head size / 2], found ${tensor.dtype} [${tensor.shape.join(', ')}]`,
    );
  }
  const whole = { firstRow: 0, rows: 1, firstCol: 0, cols: length, storedCols: length, packed: false };
  const bound: BoundTensor = {
    name: tensor.name,
    rows: 1,
    cols: length,
    along: 'rows',
    pieces: [{ stored: tensor, type: STORED_TYPES['F32'], ...whole }],
    interleavedHead: 0,
    plusOne: false,
    scale: null,
    columnScale: null,
  };
  return new RowReader().readRows(bound, 0, 1);
}

function claimed(meta: GgufMetadata): string | null {
  const text = meta.text('hybrid_infer.fingerprint');
  return text !== undefined && /^[0-9a-f]{64}$/.test(text) ? text : null;
}
