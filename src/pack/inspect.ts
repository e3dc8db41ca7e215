/** What a model or pack is made of, as data: shapes, formats, bytes per part, and what sparsity can do. */
import { isSmooth } from '../kernels/kernels.js';
import type { WeightFormat } from '../kernels/layout.js';
import { describeBlock } from '../model/block.js';
import type { GlobalTensor, ModelConfig, TensorName, WeightSource } from '../model/types.js';
import { chooseFormats, describeConversion, type Converted } from './formats.js';
import { LAYER_SECTIONS } from './layout.js';
import type { Pack, PackSection } from './types.js';

export type PartName = 'embedding' | 'attention' | 'router' | 'gate' | 'upDown' | 'norms' | 'lmHead';

export interface Part {
  part: PartName;
  /** Stored types in use, such as `q4` or `F16`. */
  formats: string[];
  parameters: number;
  bytes: number;
  bitsPerWeight: number;
}

export interface SparsityFacts {
  activation: ModelConfig['activation'];
  /** The activation has true zeros: `exact` and `predicted` can skip work. */
  sparse: boolean;
  ffnModes: ('dense' | 'exact' | 'predicted')[];
  /** Why sparse modes are impossible; null when they are possible. */
  reason: string | null;
  /** Bytes of one neuron's gate row / up row and down column, one layer. */
  gateRowBytes: number;
  recordBytes: number;
}

export interface Description {
  kind: 'pack' | 'safetensors' | 'gguf';
  name: string;
  path: string;
  config: ModelConfig;
  /** null: a model that is no pack */
  quant: WeightFormat | null;
  /** What the model's types became in this pack; of a model, what they become unless `--quant` says otherwise. */
  converted: Converted[];
  /** null where it was not computed: a source's costs one pass over its bytes */
  fingerprint: string | null;
  parameters: number;
  bytes: number;
  bitsPerWeight: number;
  parts: Part[];
  /** What differs from a Llama layer, one phrase each. */
  block: string[];
  /** Weight bytes one decoded token reads in FFN mode `dense` (one embedding row, the chosen experts, all else). */
  bytesPerTokenDense: number;
  /** Of those, the share that depends on the FFN's sparsity in `exact` (up and down) and `predicted` (all three). */
  sparsity: SparsityFacts;
  warnings: string[];
}

export function describePack(pack: Pack): Description {
  const { header } = pack;
  const tally = new Tally();
  const add = (part: PartName, s: PackSection | null, vectors = 1) => {
    if (s) tally.add(part, s.format, s.rows * s.cols * vectors, s.bytes);
  };
  add('embedding', header.embed);
  add('lmHead', header.lmHead);
  add('norms', header.outNorm);
  for (const s of [header.positions, header.projectIn, header.projectOut]) add('embedding', s);
  add('norms', header.outNormBias);
  for (const layer of header.layers) {
    for (const { section, kind, roles } of LAYER_SECTIONS) {
      const gated = header.config.block.ffn.gated;
      add(partOf(`layers.0.${roles[0]}`), layer[section], kind === 'records' && gated ? 2 : 1);
    }
  }
  const first = header.layers[0];
  return describe(tally, {
    kind: 'pack',
    name: header.name,
    path: pack.path,
    config: header.config,
    quant: header.quant,
    converted: header.converted,
    fingerprint: header.fingerprint,
    bytes: header.fileBytes,
    embeddingRowBytes: header.embed.stride,
    gateRowBytes: first.gate.stride,
    recordBytes: first.ffn.stride,
    warnings: [],
  });
}

export function describeSource(source: WeightSource): Description {
  const tally = new Tally();
  const bytesOf = new Map<TensorName, number>();
  for (const [name, { dtype, shape, bytes }] of source.tensors) {
    tally.add(
      partOf(name),
      dtype,
      shape.reduce((a, b) => a * b, 1),
      bytes,
    );
    bytesOf.set(name, bytes);
  }
  const { config } = source;
  const perRow = (name: TensorName, rows: number) => (bytesOf.get(name) ?? 0) / rows;
  const nFf = config.intermediateSize;
  return describe(tally, {
    kind: source.kind,
    name: source.name,
    path: source.path,
    config,
    quant: null,
    converted: describeConversion(source, chooseFormats(source, null, 'q8').formats),
    fingerprint: null,
    bytes: tally.bytes(),
    embeddingRowBytes: perRow('embed', config.vocabSize),
    gateRowBytes: perRow('layers.0.gate', nFf),
    recordBytes: perRow('layers.0.up', nFf) + perRow('layers.0.down', nFf),
    warnings: [...source.warnings],
  });
}

const GLOBAL_PARTS: Readonly<Record<GlobalTensor, PartName>> = {
  embed: 'embedding',
  positions: 'embedding',
  projectIn: 'embedding',
  outNorm: 'norms',
  outNormBias: 'norms',
  projectOut: 'embedding',
  lmHead: 'lmHead',
};

function partOf(name: TensorName): PartName {
  if (!name.startsWith('layers.')) return GLOBAL_PARTS[name as GlobalTensor];
  const role = name.slice(name.lastIndexOf('.') + 1);
  if (role.includes('Norm')) return 'norms';
  if (role === 'router') return 'router';
  if (role.startsWith('gate')) return 'gate';
  return role.startsWith('up') || role.startsWith('down') ? 'upDown' : 'attention';
}

type Facts = Omit<
  Description,
  'parameters' | 'bitsPerWeight' | 'parts' | 'block' | 'bytesPerTokenDense' | 'sparsity'
> & {
  embeddingRowBytes: number;
  gateRowBytes: number;
  recordBytes: number;
};

function describe(tally: Tally, facts: Facts): Description {
  const { embeddingRowBytes, gateRowBytes, recordBytes, ...rest } = facts;
  const parts = tally.parts();
  const { config } = facts;
  // Tied: the embedding is the head and is read whole. Else one row of it is read.
  const embedding = tally.bytes('embedding');
  const experts = config.block.ffn.experts;
  const idle = experts ? 1 - experts.active / experts.count : 0;
  const read =
    tally.bytes() -
    embedding +
    (config.tiedEmbeddings ? embedding : 0) +
    embeddingRowBytes -
    idle * (tally.bytes('gate') + tally.bytes('upDown'));
  const sparse = !isSmooth(config.activation.kind);
  const parameters = parts.reduce((sum, p) => sum + p.parameters, 0);
  return {
    ...rest,
    parameters,
    bitsPerWeight: (8 * tally.bytes()) / parameters,
    parts,
    block: describeBlock(config),
    bytesPerTokenDense: Math.round(read),
    sparsity: {
      activation: config.activation,
      sparse,
      ffnModes: sparse ? ['dense', 'exact', 'predicted'] : ['dense'],
      reason: sparse
        ? null
        : `${config.activation.kind} is never exactly zero: nothing is skipped until profile --sparsify has found cuts`,
      gateRowBytes: Math.round(gateRowBytes),
      recordBytes: Math.round(recordBytes),
    },
  };
}

const PART_ORDER: PartName[] = ['embedding', 'attention', 'router', 'gate', 'upDown', 'norms', 'lmHead'];

/** Sums parameters and bytes by part. */
class Tally {
  private readonly sums = new Map<PartName, { formats: Set<string>; parameters: number; bytes: number }>();

  add(part: PartName, format: string, parameters: number, bytes: number): void {
    const sum = this.sums.get(part) ?? { formats: new Set<string>(), parameters: 0, bytes: 0 };
    sum.formats.add(format);
    sum.parameters += parameters;
    sum.bytes += bytes;
    this.sums.set(part, sum);
  }

  /** Bytes of one part, or of all. */
  bytes(part?: PartName): number {
    if (part) return this.sums.get(part)?.bytes ?? 0;
    return [...this.sums.values()].reduce((sum, s) => sum + s.bytes, 0);
  }

  parts(): Part[] {
    return PART_ORDER.flatMap((part) => {
      const sum = this.sums.get(part);
      if (!sum) return [];
      const { parameters, bytes } = sum;
      return [
        { part, formats: [...sum.formats], parameters, bytes, bitsPerWeight: (8 * bytes) / parameters },
      ];
    });
  }
}
