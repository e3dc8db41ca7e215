/** A pack read as a model: its rows as f32 again, for exports and for packs of another format. */
import { readSync } from 'node:fs';
import { PackError, UsageError } from '../errors.js';
import type { Kernels } from '../kernels/kernels.js';
import { rowBytes } from '../kernels/layout.js';
import { instantiateKernels, selectKernels } from '../kernels/select.js';
import { expectedTensors } from '../model/tensor-names.js';
import type { Role, TensorName, WeightSource } from '../model/types.js';
import { GLOBAL_SECTIONS, LAYER_SECTIONS, type SectionContent } from './layout.js';
import { createSlot, inputStride, SLOT_INPUT } from './quantize.js';
import type { Pack, PackSection } from './types.js';

/** Where a tensor's row 0 lies: the `part`-th vector of row `first` of a section. */
interface Place {
  section: PackSection;
  first: number;
  part: number;
}

/** Rows read from the file at a time. */
const BLOCK_BYTES = 1 << 20;

/**
 * The pack as a WeightSource. Values are what the pack's formats kept of the model's. Closing the
 * source closes the pack.
 */
export function packSource(pack: Pack): WeightSource {
  const { header } = pack;
  const shapes = new Map(expectedTensors(header.config));
  const rows = new SectionRows(pack);
  // The down projection is stored by neuron: one layer of it, turned round, is kept for the next rows.
  let down: { name: TensorName; values: Float32Array } | null = null;

  return {
    name: header.name,
    path: pack.path,
    kind: 'safetensors',
    config: header.config,
    tokenizer: header.tokenizer,
    tensors: new Map(
      [...shapes].map(([name, shape]) => [
        name,
        { dtype: header.quant, shape, bytes: bytesOf(pack, name, shape, shapes) },
      ]),
    ),
    warnings: [],
    async readRows(name, begin, end, into) {
      const shape = shapes.get(name);
      if (!shape) throw new UsageError(`${pack.path}: this model has no tensor ${name}`);
      const cols = shape[shape.length - 1];
      const out = into ?? new Float32Array((end - begin) * cols);
      if (!name.endsWith('.down')) {
        const place = placeOf(pack, name, shapes);
        if (place.section.cols === cols) rows.read(place, begin, end, out);
        else out.set(rows.vector(place, cols)); // one of several biases in one row
      } else {
        if (down?.name !== name) down = { name, values: transpose(rows, placeOf(pack, name, shapes), shape) };
        out.set(down.values.subarray(begin * cols, end * cols));
      }
      return out;
    },
    fingerprint: async () => header.fingerprint,
    close: async () => pack.close(),
  };
}

/** [nFf] stored columns of d values -> [d][nFf]. */
function transpose(rows: SectionRows, place: Place, [d, nFf]: number[]): Float32Array {
  const values = new Float32Array(d * nFf);
  const perBlock = 64;
  const block = new Float32Array(perBlock * d);
  for (let begin = 0; begin < nFf; begin += perBlock) {
    const end = Math.min(nFf, begin + perBlock);
    rows.read(place, begin, end, block);
    for (let r = 0; r < d; r++) {
      for (let i = begin; i < end; i++) values[r * nFf + i] = block[(i - begin) * d + r];
    }
  }
  return values;
}

type Shapes = ReadonlyMap<string, number[]>;

function placeOf(pack: Pack, name: TensorName, shapes: Shapes): Place {
  const { header } = pack;
  const parts = name.split('.');
  const role = parts[parts.length - 1] as Role;
  const prefix = name.slice(0, name.length - role.length);
  const contents: readonly SectionContent<string, Role>[] = prefix === '' ? GLOBAL_SECTIONS : LAYER_SECTIONS;
  const content = contents.find(({ roles }) => roles.includes(role));
  const sections = (prefix === '' ? header : header.layers[Number(parts[1])]) as unknown as
    Record<string, PackSection | null> | undefined;
  const section = content && sections?.[content.section];
  if (!content || !section || !shapes.has(name))
    throw new UsageError(`${pack.path}: this model has no tensor ${name}`);
  const before = content.roles
    .slice(0, content.roles.indexOf(role))
    .filter((other) => shapes.has(prefix + other));
  if (content.kind === 'records') return { section, first: 0, part: before.length };
  return { section, first: before.reduce((sum, other) => sum + shapes.get(prefix + other)![0], 0), part: 0 };
}

function bytesOf(pack: Pack, name: TensorName, shape: number[], shapes: Shapes): number {
  const { format } = placeOf(pack, name, shapes).section;
  if (name.endsWith('.down')) return shape[1] * rowBytes(format, shape[0]);
  return (shape.length === 1 ? 1 : shape[0]) * rowBytes(format, shape[shape.length - 1]);
}

/** Reads stored vectors into a small arena and dequantises them there. */
class SectionRows {
  private arena: { bytes: number; memory: WebAssembly.Memory; kernels: Kernels } | null = null;

  constructor(private readonly pack: Pack) {}

  read({ section, first, part }: Place, begin: number, end: number, out: Float32Array): void {
    const { stride, cols, format, offset } = section;
    const vector = part * rowBytes(format, cols);
    const perBlock = Math.max(1, Math.floor(BLOCK_BYTES / stride));
    const { memory, kernels } = this.arenaFor(perBlock * stride + inputStride(cols));
    const result = SLOT_INPUT + perBlock * stride;
    for (let row = begin; row < end; row += perBlock) {
      const n = Math.min(perBlock, end - row);
      this.fill(new Uint8Array(memory.buffer, SLOT_INPUT, n * stride), offset + (first + row) * stride);
      for (let r = 0; r < n; r++) {
        kernels.dequantizeRow(format, SLOT_INPUT + r * stride + vector, result, cols);
        out.set(new Float32Array(memory.buffer, result, cols), (row - begin + r) * cols);
      }
    }
  }

  /** `length` values from column `first` of a one-row f32 section. */
  vector({ section, first }: Place, length: number): Float32Array {
    const values = new Float32Array(length);
    this.fill(new Uint8Array(values.buffer), section.offset + 4 * first);
    return values;
  }

  private fill(into: Uint8Array, position: number): void {
    for (let done = 0; done < into.length;) {
      const n = readSync(this.pack.fd, into, done, into.length - done, position + done);
      if (n === 0) throw new PackError('PACK_INVALID', `${this.pack.path}: cut off while in use`);
      done += n;
    }
  }

  private arenaFor(bytes: number): { memory: WebAssembly.Memory; kernels: Kernels } {
    if (this.arena === null || this.arena.bytes < bytes) {
      const { memory } = createSlot(0, bytes);
      this.arena = { bytes, memory, kernels: instantiateKernels(selectKernels('auto'), memory) };
    }
    return this.arena;
  }
}
