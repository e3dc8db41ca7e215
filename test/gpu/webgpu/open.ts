/** Engines on a WebGPU device in tests: whole models and hot neurons, without a proof run or a measurement. */
import { Engine, type EngineOptions } from '../../../src/engine/engine.js';
import { resolveOptions } from '../../../src/engine/options.js';
import { GpuHost, type GpuHostOptions } from '../../../src/gpu/gpu-host.js';
import type { WeightFormat } from '../../../src/kernels/layout.js';
import { openPack } from '../../../src/pack/reader.js';
import { packOf } from '../../engine/open.js';

export const TINY: EngineOptions = { threads: 1, batchTokens: 16, contextLength: 64, slots: 4 };

export interface GpuTestOptions extends EngineOptions {
  failAfterRuns?: number;
  onFailure?: 'error' | 'cpu';
}

export async function openOnGpu(
  model: string,
  quant: WeightFormat,
  where: 'whole' | GpuHostOptions['placement'],
  options: GpuTestOptions = {},
): Promise<{ engine: Engine; host: GpuHost; close: () => Promise<void> }> {
  const { failAfterRuns, onFailure = 'error', ...rest } = options;
  const engineOptions = { ...TINY, ...rest };
  const pack = openPack(await packOf(model, quant));
  const { batchTokens, contextLength, slots, kvPages, kvFormat } = resolveOptions(pack.header, engineOptions);
  const whole = { contextLength, slots, kvPages, kvFormat };
  const host = await GpuHost.start({
    pack,
    provider: 'webgpu',
    placement: where === 'whole' ? { whole } : where,
    plan: rest.plan,
    maxTokens: batchTokens,
    lanes: 1,
    failAfterRuns,
  });
  const gpu = { units: host.engine, provider: 'webgpu', device: host.device!, bytes: host.bytes, onFailure };
  const engine = await Engine.open(pack, { ...engineOptions, gpu });
  const close = async () => {
    await engine.close();
    await host.close();
  };
  return { engine, host, close };
}

/** |a - b| / |b| */
export function distance(a: Float32Array, b: Float32Array): number {
  let [difference, norm] = [0, 0];
  b.forEach((value, i) => {
    difference += (a[i] - value) ** 2;
    norm += value ** 2;
  });
  return Math.sqrt(difference / norm);
}
