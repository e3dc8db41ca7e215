/**
 * Units of a model that the lanes ask for one by one, as `GpuUnits` numbers them: q, k, v; the output projection;
 * the head; a layer's hot neurons. Hot is not dense: their gates first, then up and down of those that passed.
 */
import { cutIn } from '../../engine/ffn-plan.js';
import { HybridError } from '../../errors.js';
import type { PackHeader, PackSection } from '../../pack/types.js';
import type { GpuUnit } from '../hot-ffn.js';
import { packReader, type ReadAt } from '../weights.js';
import { createFrom, createStorage, createUniform, Readback } from './buffers.js';
import type { GpuDevice } from './device.js';
import {
  createFfnScratch,
  layerFfn,
  predictorNeeds,
  uploadFfn,
  type FfnScratch,
  type FfnSource,
} from './ffn.js';
import { encodePass } from './kernel.js';
import { rowDot } from './kernels/row-dot.js';
import type { Operation } from './operation.js';
import { uploadSection, vectorStride } from './rows.js';
import { tuningFor, type Tuning } from './tuning.js';

export interface HybridUnitsOptions {
  header: PackHeader;
  fd: number;
  packPath: string;
  units: readonly GpuUnit[];
  maxTokens: number;
  /** After every unit that was uploaded. @returns false: nobody wants the rest */
  onUnit?: (bytes: number, ms: number) => boolean;
}

/** What all units share. T: most tokens of a run. */
interface Shared {
  x: GPUBuffer; // [T][widest input, padded]
  y: GPUBuffer; // [T][widest output]
  step: GPUBuffer; // uniform: rows of the run
  ffn: FfnScratch;
}

interface Unit {
  inputs: number;
  outputs: number;
  operations: Operation[];
}

export class HybridUnits {
  private readonly units: Unit[] = [];

  private constructor(
    private readonly gpu: GpuDevice,
    private readonly shared: Shared,
    private readonly back: Readback,
  ) {}

  /** @throws HybridError OUT_OF_MEMORY, GPU_FAILED */
  static async load(gpu: GpuDevice, options: HybridUnitsOptions): Promise<HybridUnits> {
    const { header, units, maxTokens: T } = options;
    const widest = (width: (unit: GpuUnit) => number): number => Math.max(1, ...units.map(width));
    const outputs = widest((unit) => unit.outputs);
    const neurons = widest((unit) => (unit.kind === 'ffn' ? unit.hotNeurons.length : 1));
    const shared: Shared = {
      x: await createStorage(gpu, 'x', T * vectorStride(widest((unit) => unit.inputs)) * 4),
      y: await createStorage(gpu, 'y', T * outputs * 4),
      step: await createUniform(gpu, 'rows', [0]),
      ffn: await createFfnScratch(gpu, header.config.hiddenSize, neurons, predictorNeeds(null), T),
    };
    const back = await Readback.create(gpu, 'y', T * outputs * 4);
    const made = new HybridUnits(gpu, shared, back);
    const tuning = tuningFor(gpu.facts);
    const source = { fd: options.fd, read: packReader(options.fd, options.packPath), header };
    for (const unit of units) {
      const [before, began] = [gpu.allocatedBytes, performance.now()];
      const operations =
        unit.kind === 'ffn'
          ? await hotNeurons(gpu, tuning, source, unit, shared)
          : [await linear(gpu, tuning, source, unit, shared)];
      made.units.push({ inputs: unit.inputs, outputs: unit.outputs, operations });
      // The first run compiles what the driver has left: now, not in the first token.
      await made.run(made.units.length - 1, 1, new Float32Array(unit.inputs), new Float32Array(unit.outputs));
      const go = options.onUnit?.(gpu.allocatedBytes - before, performance.now() - began) ?? true;
      if (!go) throw new HybridError('ABORTED', 'loading weights onto the GPU was aborted');
    }
    return made;
  }

  /** @param x rows of the unit's inputs, packed. @param y likewise its outputs */
  async run(number: number, rows: number, x: Float32Array, y: Float32Array): Promise<void> {
    const { gpu, shared, back } = this;
    const { inputs, outputs, operations } = this.units[number];
    const stride = vectorStride(inputs);
    const padded = new Float32Array(rows * stride);
    for (let t = 0; t < rows; t++) padded.set(x.subarray(t * inputs, (t + 1) * inputs), t * stride);
    gpu.raw.queue.writeBuffer(shared.x, 0, padded);
    gpu.raw.queue.writeBuffer(shared.step, 0, Uint32Array.of(rows));
    const bytes = rows * outputs * 4;
    gpu.submit((encoder) => {
      encodePass(
        encoder,
        operations.flatMap((operation) => operation.dispatches(rows)),
      );
      back.copy(encoder, shared.y, 0, bytes);
    });
    y.set(new Float32Array((await back.read(bytes)).buffer));
  }
}

async function linear(
  gpu: GpuDevice,
  tuning: Tuning,
  { fd, read, header }: FfnSource,
  unit: Exclude<GpuUnit, { kind: 'ffn' }>,
  { x, y, step }: Shared,
): Promise<Operation> {
  const [section, bias] = sectionsOf(header, unit);
  const rows = await uploadSection(gpu, unit.kind, fd, section);
  const buffers = { x, step, out: y, ...(bias ? { bias: await vector(gpu, read, bias) } : {}) };
  return rowDot(gpu, tuning, rows, { outStride: unit.outputs }, buffers);
}

function sectionsOf(
  { layers, lmHead, embed }: PackHeader,
  unit: Exclude<GpuUnit, { kind: 'ffn' }>,
): [PackSection, PackSection | null] {
  if (unit.kind === 'lmHead') return [lmHead ?? embed, null];
  const { qkv, qkvBias, o, oBias } = layers[unit.layer];
  return unit.kind === 'qkv' ? [qkv, qkvBias] : [o, oBias];
}

/** The bias of down is the CPU's: it is added once. */
async function hotNeurons(
  gpu: GpuDevice,
  tuning: Tuning,
  source: FfnSource,
  unit: Extract<GpuUnit, { kind: 'ffn' }>,
  { x, y, step, ffn }: Shared,
): Promise<Operation[]> {
  const { activation } = source.header.config;
  const parts = await uploadFfn(
    gpu,
    source,
    unit.layer,
    unit.hotNeurons,
    `hot neurons of layer ${unit.layer}`,
  );
  const cut = cutIn('dense', activation, null);
  const buffers = { x, step, out: y, outStride: unit.outputs, counts: null };
  const all = { ...parts, norms: null, predictor: null };
  const { operations, setCut } = await layerFfn(gpu, tuning, all, activation.kind, 'exact', ffn, buffers);
  setCut(cut);
  return operations;
}

function vector(gpu: GpuDevice, read: ReadAt, section: PackSection): Promise<GPUBuffer> {
  const all = new Float32Array(section.cols);
  read(new Uint8Array(all.buffer), section.offset);
  return createFrom(gpu, 'a vector', all);
}
