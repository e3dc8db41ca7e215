/** Opening engines in tests: a tiny model's folder, converted into a temporary pack. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Engine, type EngineOptions } from '../../src/engine/engine.js';
import type { WeightFormat } from '../../src/kernels/layout.js';
import { openModel } from '../../src/model/open-model.js';
import { convert } from '../../src/pack/convert.js';
import { openPack } from '../../src/pack/reader.js';

export const DEMO = new URL('../../models/tales-4m-relu', import.meta.url).pathname;
export const SHARED = new URL('../../../shared/', import.meta.url).pathname;

const packs = new Map<string, string>();
let folder: string | null = null;

/** Convert once per test file and quantisation; removed by `removePacks`. */
export async function packOf(model: string, quant: WeightFormat): Promise<string> {
  const key = `${model}:${quant}`;
  const known = packs.get(key);
  if (known) return known;
  folder ??= mkdtempSync(join(tmpdir(), 'hybrid-infer-engine-'));
  const file = join(folder, `${packs.size}.hpack`);
  const source = await openModel(model);
  try {
    await convert(source, file, { quant, threads: 1 });
  } finally {
    await source.close();
  }
  packs.set(key, file);
  return file;
}

export async function openEngine(
  model: string,
  quant: WeightFormat,
  options: EngineOptions = {},
): Promise<Engine> {
  return Engine.open(openPack(await packOf(model, quant)), { threads: 2, ...options });
}

export function removePacks(): void {
  if (folder) rmSync(folder, { recursive: true, force: true });
  folder = null;
  packs.clear();
}

export { GREEDY } from '../../src/engine/sampler.js';
