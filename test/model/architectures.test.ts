/**
 * Every architecture of the table against logits of transformers itself: config, tensor mapping, pack and the
 * plain forward pass in one. The folders are large for a repository; without them this is skipped, and
 * test/model/rows.test.ts still checks every row on tiny random models.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openModel } from '../../src/model/index.js';
import type { WeightSource } from '../../src/model/types.js';
import { convert } from '../../src/pack/convert.js';
import { packSource } from '../../src/pack/pack-source.js';
import { openPack } from '../../src/pack/reader.js';
import { bf16ToNumber } from '../../src/kernels/layout.js';
import { halfToNumber } from '../../src/model/half.js';
import { toBf16Bits, toHalfBits } from '../helpers/float-bits.js';
import { plainForward } from '../engine/plain-forward.js';
import { tempFolder } from '../helpers/tiny-models.js';

const REFERENCE = new URL('../../../shared/reference/architectures/', import.meta.url).pathname;
/**
 * Folder and the type that the reference rounded rotary frequencies to. The folders in 16 bits were made by
 * `model.to(dtype)`, which rounds that buffer with the weights; models loaded by `from_pretrained` keep it in
 * float32, as this program does. Without the rounding the largest difference is 4.1e-3 (llama-silu-yarn).
 */
const FOLDERS: [string, 'f16' | 'bf16' | null][] = [
  ['arcee-relu2', 'bf16'],
  ['bitnet-packed', null],
  ['bitnet-relu2', null],
  ['falcon-relu', 'f16'],
  ['llama-relu', null],
  ['llama-relu-mlpbias', 'f16'],
  ['llama-silu-yarn', 'bf16'],
  ['mixtral-relu', 'bf16'],
  ['nemotron-relu2', 'f16'],
  ['opt-relu', null],
  ['opt-relu-postnorm', null],
  ['qwen2-relu', null],
  ['qwen3-silu', 'f16'],
  ['smallthinker-moe', null],
];
const ROUND = {
  f16: (f: number) => halfToNumber(toHalfBits(f)),
  bf16: (f: number) => bf16ToNumber(toBf16Bits(f)),
};
/** Of the largest logit. transformers computed in float32. */
const TOLERANCE = 1e-5;

async function difference(
  source: WeightSource,
  folder: string,
  rounded: keyof typeof ROUND | null,
): Promise<number> {
  const { tokens, shape } = JSON.parse(readFileSync(join(folder, 'expected.json'), 'utf8')) as {
    tokens: number[];
    shape: [number, number];
  };
  const bytes = readFileSync(join(folder, 'expected.f32'));
  const expected = new Float32Array(bytes.buffer, bytes.byteOffset, shape[0] * shape[1]);
  const { logits } = await plainForward(source, tokens, {
    roundFrequency: rounded ? ROUND[rounded] : undefined,
  });
  const largest = expected.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
  let worst = 0;
  logits.forEach((row, t) =>
    row.forEach((v, i) => (worst = Math.max(worst, Math.abs(v - expected[t * shape[1] + i])))),
  );
  return worst / largest;
}

describe.skipIf(!existsSync(REFERENCE))('logits of transformers', () => {
  it.each(FOLDERS)(
    '%s, from its f32 pack',
    async (name, rounded) => {
      const folder = join(REFERENCE, name);
      const path = join(tempFolder(), 'f32.pack');
      const source = await openModel(folder);
      expect(source.warnings).toEqual([]);
      await convert(source, path, { quant: 'f32' });
      await source.close();
      const pack = packSource(openPack(path));
      const worst = await difference(pack, folder, rounded);
      await pack.close();
      expect(worst, 'of the largest logit').toBeLessThan(TOLERANCE);
    },
    60_000,
  );
});
