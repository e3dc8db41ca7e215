/** The small f32 vectors of one layer (norm weights, biases) in one buffer: kernels know them by their offsets. */
import type { PackLayer, PackSection } from '../../pack/types.js';
import type { ReadAt } from '../weights.js';
import { createFrom } from './buffers.js';
import type { GpuDevice } from './device.js';
import type { NormWeights } from './kernels/norm.js';

/** Offsets in floats; -1: the layer has no such part. */
export interface LayerVectors {
  buffer: GPUBuffer;
  attnNorm: NormWeights;
  qkvBias: number;
  qNorm: number;
  kNorm: number;
  oNorm: number;
  oBias: number;
  ffnNorm: NormWeights;
  gateBias: number;
  upBias: number;
  downBias: number;
}

export async function uploadVectors(
  gpu: GpuDevice,
  read: ReadAt,
  layer: PackLayer,
  name: string,
): Promise<LayerVectors> {
  const vectors = new VectorFile(read);
  const offsets = {
    attnNorm: vectors.norm(layer.attnNorm, layer.attnNormBias),
    qkvBias: vectors.add(layer.qkvBias),
    qNorm: vectors.add(layer.qNorm),
    kNorm: vectors.add(layer.kNorm),
    oNorm: vectors.add(layer.oNorm),
    oBias: vectors.add(layer.oBias),
    ffnNorm: vectors.norm(layer.ffnNorm, layer.ffnNormBias),
    gateBias: vectors.add(layer.gateBias),
    upBias: vectors.add(layer.upBias),
    downBias: vectors.add(layer.downBias),
  };
  return { buffer: await vectors.upload(gpu, name), ...offsets };
}

/** Vectors one after the other. */
export class VectorFile {
  private readonly parts: Float32Array[] = [];
  private floats = 0;

  constructor(private readonly read: ReadAt) {}

  /** @returns its offset; -1 for null */
  add(section: PackSection | null): number {
    if (section === null) return -1;
    const values = new Float32Array(section.cols);
    this.read(new Uint8Array(values.buffer), section.offset);
    const at = this.floats;
    this.parts.push(values);
    this.floats += values.length;
    return at;
  }

  norm(weight: PackSection, bias: PackSection | null): NormWeights {
    return { weight: this.add(weight), bias: this.add(bias) };
  }

  /** One of them in a buffer of its own. */
  only(gpu: GpuDevice, section: PackSection): Promise<GPUBuffer> {
    this.add(section);
    return this.upload(gpu, 'a vector');
  }

  upload(gpu: GpuDevice, name: string): Promise<GPUBuffer> {
    const all = new Float32Array(Math.max(1, this.floats));
    let at = 0;
    for (const part of this.parts) {
      all.set(part, at);
      at += part.length;
    }
    return createFrom(gpu, name, all);
  }
}
