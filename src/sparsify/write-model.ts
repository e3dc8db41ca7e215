/**
 * A trained model as a Hugging Face folder. What its code must be able to read decides how the activation is said:
 *
 *     relu      hidden_act relu: transformers' own classes
 *     fatrelu   SparseLlamaForCausalLM, model_type sparsellama, hidden_act_param: ProSparse's code
 *     shifted   max(g - b, 0) is a ReLU after a gate with bias -b: hidden_act relu, mlp_bias, biases in the file
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { HybridError, UsageError } from '../errors.js';
import { createAtomic, writeFileAtomic } from '../io/atomic-write.js';
import { HUGGING_FACE } from '../model/tensor-names.js';
import type { Role, TensorName, WeightSource } from '../model/types.js';
import { encodeValues, type FileType } from './final-weights.js';
import type { Activation } from './model-graph.js';
import type { Parameter } from './parameters.js';

/** Files that belong to a model whatever its weights are. */
const KEPT =
  /^(tokenizer.*|special_tokens_map|added_tokens|vocab|merges|generation_config|chat_template)\.(json|txt|model|jinja)$/;
/** Tensors begin at multiples of this, as mapping readers like them. */
const ALIGNMENT = 8;

/** `layers.3.gate` -> `model.layers.3.mlp.gate_proj.weight` */
export function fileName(name: string): string {
  const parts = name.split('.');
  const place = HUGGING_FACE.places[parts[parts.length - 1] as Role];
  if (typeof place !== 'string') throw new UsageError(`no file name for tensor ${name}`);
  return place.replace('{l}', parts[1]);
}

export const MARK = 'sparsify.json';

/**
 * What would end a training of hours is found out before it.
 * @throws UsageError when the folder holds something else: it would be mixed up with the result;
 * HybridError IO_FAILED when it cannot be made
 */
export function requireFree(folder: string): void {
  if (!existsSync(folder)) {
    for (const made of makeFolder(folder).reverse()) rmdirSync(made);
    return;
  }
  if (!statSync(folder).isDirectory()) {
    throw new UsageError(`-o ${folder}: expected a folder, found a file`, 'Give a new folder with -o.');
  }
  // What a killed run left of the mark itself is no file of anybody else.
  const names = readdirSync(folder).filter(
    (name) => !(name.startsWith(`.${MARK}.`) && name.endsWith('.tmp')),
  );
  if (names.length === 0 || names.includes(MARK)) return;
  throw new UsageError(`${folder} is there and is not empty`, 'Give a new folder with -o.');
}

/** One level after the other: Node's own recursion does not end under /proc. @returns the folders it made */
function makeFolder(folder: string): string[] {
  if (existsSync(folder)) return [];
  const above = makeFolder(dirname(resolve(folder)));
  try {
    mkdirSync(folder);
  } catch (cause) {
    throw new HybridError('IO_FAILED', `cannot create ${folder}: ${(cause as Error).message}`, {
      hint: 'Give a folder with -o that you may write to.',
      cause,
    });
  }
  return [...above, folder];
}

/** The type every tensor is written in: the source's, where it is a plain one. */
export const fileTypes =
  (source: WeightSource, forced: FileType | null) =>
  (name: string): FileType => {
    const stored = source.tensors.get(name as TensorName)?.dtype;
    return forced ?? (stored === 'F16' || stored === 'BF16' ? stored : 'F32');
  };

/**
 * The mark comes first: a run that is killed in between finds its own folder again.
 * @param weights rounded to `typeOf` already, adapters merged
 */
export async function writeModel(
  folder: string,
  source: WeightSource,
  parameters: readonly Parameter[],
  weights: Float32Array,
  activation: Activation,
  typeOf: (name: string) => FileType,
): Promise<void> {
  makeFolder(folder);
  await writeFileAtomic(join(folder, MARK), '{}');
  const tensors = parameters
    .filter(({ name }) => !name.includes(':'))
    .map(({ name, shape, begin, size }) => ({
      name: fileName(name),
      shape,
      type: typeOf(name),
      values: () => weights.subarray(begin, begin + size),
    }));
  if (activation.kind === 'shifted') tensors.push(...biases(source, -activation.by, typeOf('layers.0.gate')));
  await writeSafetensors(join(folder, 'model.safetensors'), tensors);
  for (const name of readdirSync(source.path).filter((file) => KEPT.test(file))) {
    // Not a copy of the file: its permissions may be read-only.
    await writeFileAtomic(join(folder, name), readFileSync(join(source.path, name)));
  }
  const config = JSON.parse(readFileSync(join(source.path, 'config.json'), 'utf8')) as Record<
    string,
    unknown
  >;
  const types = { F32: 'float32', F16: 'float16', BF16: 'bfloat16' };
  const written = { ...configFor(config, activation), torch_dtype: types[typeOf('layers.0.gate')] };
  await writeFileAtomic(join(folder, 'config.json'), `${JSON.stringify(written, null, 2)}\n`);
}

/** config.json with the activation the model has now. */
export function configFor(config: Record<string, unknown>, activation: Activation): Record<string, unknown> {
  const { hidden_act_param: _, ...rest } = config;
  switch (activation.kind) {
    case 'silu':
      return config;
    case 'fatrelu': {
      const [architecture] = config.architectures as string[];
      // The name under which ProSparse's code knows FATReLU; other families have none for it.
      const sparse = architecture === 'LlamaForCausalLM' || architecture === 'SparseLlamaForCausalLM';
      return {
        ...rest,
        ...(sparse && { architectures: ['SparseLlamaForCausalLM'], model_type: 'sparsellama' }),
        hidden_act: 'fatrelu',
        hidden_act_param: activation.threshold,
      };
    }
    case 'shifted':
      return { ...rest, hidden_act: 'relu', mlp_bias: true };
    default:
      return { ...rest, hidden_act: activation.kind };
  }
}

interface FileTensor {
  name: string;
  shape: readonly number[];
  type: FileType;
  values: () => Float32Array;
}

/** Llama's mlp_bias means three biases; two of them are zero here. */
function biases({ config }: WeightSource, gate: number, type: FileType): FileTensor[] {
  const { layers, intermediateSize: nFf, hiddenSize: d } = config;
  const one = (l: number, matrix: string, size: number, value: number): FileTensor => ({
    name: `model.layers.${l}.mlp.${matrix}_proj.bias`,
    shape: [size],
    type,
    values: () => new Float32Array(size).fill(value),
  });
  return Array.from({ length: layers }, (_, l) => [
    one(l, 'gate', nFf, gate),
    one(l, 'up', nFf, 0),
    one(l, 'down', d, 0),
  ]).flat();
}

const BYTES: Readonly<Record<FileType, number>> = { F32: 4, F16: 2, BF16: 2 };

async function writeSafetensors(path: string, tensors: readonly FileTensor[]): Promise<void> {
  let offset = 0;
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
  for (const { name, shape, type } of tensors) {
    const bytes = shape.reduce((product, n) => product * n, 1) * BYTES[type];
    header[name] = { dtype: type, shape, data_offsets: [offset, offset + bytes] };
    offset += bytes;
  }
  const text = JSON.stringify(header);
  const padded = Buffer.from(text.padEnd(Math.ceil(text.length / ALIGNMENT) * ALIGNMENT));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));
  const file = createAtomic(path);
  try {
    file.write(length, 0);
    file.write(padded, length.length);
    let at = length.length + padded.length;
    for (const { type, values } of tensors) {
      const bytes = encodeValues(values(), type);
      file.write(bytes, at);
      at += bytes.byteLength;
    }
    await file.commit();
  } finally {
    file.discard();
  }
}
