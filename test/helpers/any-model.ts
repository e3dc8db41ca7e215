/** Tiny models of any architecture of the table: a config, and random weights under the names its row gives. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { readConfig } from '../../src/model/config.js';
import { expectedTensors, locate } from '../../src/model/tensor-names.js';
import {
  encodeTensor,
  random,
  safetensorsBytes,
  tempFolder,
  tinyTokenizerJson,
  type TinyTensor,
} from './tiny-models.js';

/** config.json fields that most rows share; sizes that tell rows from columns. */
export const baseConfig = (
  architecture: string,
  more: Record<string, unknown> = {},
): Record<string, unknown> => ({
  architectures: [architecture],
  hidden_act: 'relu',
  vocab_size: 288,
  hidden_size: 32,
  intermediate_size: 48,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  tie_word_embeddings: false,
  bos_token_id: 0,
  eos_token_id: 1,
  ...more,
});

/** Every tensor of the files, by its name there. Norm weights are around one, or zero when stored less one. */
export function randomTensors(config: Record<string, unknown>, seed = 1): Map<string, TinyTensor> {
  const read = readConfig(config, 'config.json');
  const next = random(seed);
  const tensors = new Map<string, TinyTensor>();
  const add = (name: string, shape: number[], centre: number, spread: number) => {
    if (tensors.has(name)) return;
    const data = Float32Array.from(
      { length: shape.reduce((a, b) => a * b, 1) },
      () => centre + (2 * next() - 1) * spread,
    );
    tensors.set(name, { shape, data });
  };
  for (const [name, shape] of expectedTensors(read.config)) {
    const isNorm = /Norm$/.test(name);
    const spread = shape.length === 2 ? Math.sqrt(3 / shape[1]) : 0.2;
    for (const piece of locate(read.config, read.naming, name, shape).pieces) {
      add(piece.file, piece.shape, isNorm && !read.naming.normsLessOne ? 1 : 0, spread);
    }
  }
  for (let l = 0; l < read.config.layers; l++) {
    const norm = read.naming.downNorm?.replace('{l}', String(l));
    if (norm !== undefined) add(norm, [read.config.intermediateSize], 1, 0.2);
  }
  return tensors;
}

/** Write the folder. @returns its path */
export function writeModel(
  config: Record<string, unknown>,
  tensors: ReadonlyMap<string, TinyTensor> = randomTensors(config),
  folder = tempFolder(),
): string {
  mkdirSync(folder, { recursive: true });
  const stored = [...tensors].map(
    ([name, { shape, data }]) => [name, { dtype: 'F32', shape, bytes: encodeTensor(data, 'F32') }] as const,
  );
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config));
  writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(tinyTokenizerJson(288)));
  writeFileSync(join(folder, 'model.safetensors'), safetensorsBytes(stored.map(([n, t]) => [n, t])));
  return folder;
}
