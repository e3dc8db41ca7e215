/** A model that lives in memory: the pack's tests need sources without any file format in between. */
import { LLAMA_BLOCK, LLAMA_ENDS } from '../../src/model/block.js';
import { expectedTensors } from '../../src/model/tensor-names.js';
import type { ModelConfig, TensorName, WeightSource } from '../../src/model/types.js';
import { random, tinyTokenizerJson } from '../helpers/tiny-models.js';

export const tinyModelConfig = (over: Partial<ModelConfig> = {}): ModelConfig => ({
  architecture: 'LlamaForCausalLM',
  hiddenSize: 64,
  intermediateSize: 96,
  layers: 2,
  heads: 4,
  kvHeads: 2,
  headDim: 16,
  vocabSize: 40,
  maxContext: 128,
  rmsEpsilon: 1e-5,
  ropeTheta: 10000,
  ropeScaling: null,
  activation: { kind: 'relu', threshold: 0 },
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
  ...over,
});

export interface MemorySource extends WeightSource {
  values: Map<TensorName, Float32Array>;
  /** Called before every readRows: tests slow it down or make it fail. */
  onRead: (name: TensorName) => void | Promise<void>;
}

export function memorySource(config: ModelConfig = tinyModelConfig(), seed = 1): MemorySource {
  const next = random(seed);
  const shapes = new Map(expectedTensors(config));
  const values = new Map<TensorName, Float32Array>();
  for (const [name, shape] of shapes) {
    const data = new Float32Array(shape.reduce((a, b) => a * b, 1));
    for (let i = 0; i < data.length; i++) data[i] = (next() + next() + next() - 1.5) * 0.1;
    values.set(name, data);
  }
  return {
    name: 'tiny',
    path: '(memory)',
    kind: 'safetensors',
    config,
    tokenizer: {
      tokenizerJson: JSON.stringify(tinyTokenizerJson()),
      tokenizerConfigJson: '{}',
      chatTemplate: null,
      generationConfigJson: null,
    },
    tensors: new Map([...shapes].map(([n, shape]) => [n, { dtype: 'F32', shape, bytes: 0 }])),
    warnings: [],
    values,
    onRead: () => {},
    async readRows(name, begin, end, into) {
      await this.onRead(name);
      const shape = shapes.get(name)!;
      const cols = shape[shape.length - 1]; // a vector is one row
      const rows = values.get(name)!.subarray(begin * cols, end * cols);
      if (!into) return rows.slice();
      into.set(rows);
      return into;
    },
    fingerprint: async () => 'ab'.repeat(32),
    close: async () => {},
  };
}
