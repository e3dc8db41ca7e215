/** A one-layer model in memory, in the pack's byte layout, with its weights also as plain floats. */
import { LLAMA_BLOCK, LLAMA_ENDS } from '../../src/model/block.js';
import { rowBytes, type WeightFormat } from '../../src/kernels/layout.js';
import { createReferenceKernels } from '../../src/kernels/reference.js';
import type { ActivationKind } from '../../src/kernels/kernels.js';
import type { PackHeader, PackSection } from '../../src/pack/types.js';
import type { ReadAt } from '../../src/gpu/weights.js';

/** What a Llama layer has not. */
const NO_SECTIONS = {
  attnNormBias: null,
  qNorm: null,
  kNorm: null,
  oNorm: null,
  ffnNormBias: null,
  router: null,
  gateBias: null,
  upBias: null,
  downBias: null,
};

export interface MemoryPack {
  header: PackHeader;
  /** The sections as one file. */
  bytes: Uint8Array;
  read: ReadAt;
  /** Dequantised, [rows][cols]; `down` is [nFf][d] as stored. */
  floats: Record<'qkv' | 'o' | 'gate' | 'up' | 'down' | 'lmHead', Float32Array>;
  qkvBias: Float32Array;
}

/** Deterministic, roughly normal. */
export function randomFloats(n: number, seed: number): Float32Array {
  let state = seed >>> 0 || 1;
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32 - 0.5;
  };
  return Float32Array.from({ length: n }, () => (next() + next() + next()) * 2);
}

export function memoryPack(
  quant: WeightFormat,
  activation: { kind: ActivationKind; threshold: number },
  { d = 128, nFf = 192, vocab = 83, seed = 7 } = {},
): MemoryPack {
  const memory = new WebAssembly.Memory({ initial: 64, maximum: 64, shared: true });
  const kernels = createReferenceKernels(memory);
  const file: Uint8Array[] = [];
  let offset = 0;
  const append = (bytes: Uint8Array): number => {
    const at = offset;
    const padded = new Uint8Array(Math.ceil(bytes.byteLength / 64) * 64);
    padded.set(bytes);
    file.push(padded);
    offset += padded.byteLength;
    return at;
  };
  /** Quantise rows, return the stored bytes and what they stand for. */
  const store = (values: Float32Array, rows: number, cols: number) => {
    const size = rowBytes(quant, cols);
    const [x, w, out] = [64, 1 << 20, 2 << 20];
    new Float32Array(memory.buffer, x, rows * cols).set(values);
    kernels.quantizeRows(quant, x, cols * 4, rows, w, size, cols);
    const floats = new Float32Array(rows * cols);
    for (let r = 0; r < rows; r++) {
      kernels.dequantizeRow(quant, w + r * size, out, cols);
      floats.set(new Float32Array(memory.buffer, out, cols), r * cols);
    }
    return { bytes: new Uint8Array(memory.buffer, w, rows * size).slice(), floats, size };
  };
  const section = (rows: number, cols: number, bytes: Uint8Array, stride: number, format = quant) =>
    ({ offset: append(bytes), bytes: rows * stride, format, rows, cols, stride }) satisfies PackSection;
  const vector = (values: Float32Array) =>
    section(
      1,
      values.length,
      new Uint8Array(values.buffer.slice(0)),
      Math.ceil((values.length * 4) / 16) * 16,
      'f32',
    );
  const matrix = (rows: number, cols: number, salt: number) => {
    const stored = store(randomFloats(rows * cols, seed + salt), rows, cols);
    return { floats: stored.floats, section: section(rows, cols, stored.bytes, stored.size) };
  };

  const qkv = matrix(3 * d, d, 1);
  const o = matrix(d, d, 2);
  const gate = matrix(nFf, d, 3);
  const lmHead = matrix(vocab, d, 4);
  const up = store(randomFloats(nFf * d, seed + 5), nFf, d);
  const down = store(randomFloats(nFf * d, seed + 6), nFf, d);
  const records = new Uint8Array(2 * nFf * up.size);
  for (let n = 0; n < nFf; n++) {
    records.set(up.bytes.subarray(n * up.size, (n + 1) * up.size), 2 * n * up.size);
    records.set(down.bytes.subarray(n * up.size, (n + 1) * up.size), (2 * n + 1) * up.size);
  }
  const qkvBias = randomFloats(3 * d, seed + 8);
  const ones = new Float32Array(d).fill(1);
  const layer = {
    attnNorm: vector(ones),
    qkv: qkv.section,
    qkvBias: vector(qkvBias),
    o: o.section,
    oBias: null,
    ffnNorm: vector(ones),
    gate: gate.section,
    ffn: section(nFf, d, records, 2 * up.size),
  };
  const header: PackHeader = {
    toolVersion: 'test',
    name: 'memory',
    config: {
      architecture: 'LlamaForCausalLM',
      hiddenSize: d,
      intermediateSize: nFf,
      layers: 1,
      heads: 4,
      kvHeads: 4,
      headDim: d / 4,
      vocabSize: vocab,
      maxContext: 64,
      rmsEpsilon: 1e-5,
      ropeTheta: 10000,
      ropeScaling: null,
      activation,
      qkvBias: true,
      outputBias: false,
      tiedEmbeddings: false,
      embeddingScale: 1,
      residualScale: 1,
      logitScale: 1,
      block: LLAMA_BLOCK,
      ends: LLAMA_ENDS,
      bosId: null,
      eosIds: [],
    },
    quant,
    converted: [],
    fingerprint: 'memory',
    tokenizer: {
      tokenizerJson: '{}',
      tokenizerConfigJson: '{}',
      chatTemplate: null,
      generationConfigJson: null,
    },
    embed: lmHead.section,
    outNorm: vector(ones),
    positions: null,
    projectIn: null,
    outNormBias: null,
    projectOut: null,
    lmHead: lmHead.section,
    layers: [{ ...NO_SECTIONS, ...layer }],
    fileBytes: 0,
  };
  header.fileBytes = offset;
  const all = Buffer.concat(file);
  return {
    header,
    bytes: all,
    read: (into, position) => void into.set(all.subarray(position, position + into.byteLength)),
    floats: {
      qkv: qkv.floats,
      o: o.floats,
      gate: gate.floats,
      up: up.floats,
      down: down.floats,
      lmHead: lmHead.floats,
    },
    qkvBias,
  };
}
