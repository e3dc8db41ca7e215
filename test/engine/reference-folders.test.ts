/**
 * The engine against logits of transformers itself, in every folder of the references. They are large for a
 * repository; without them this is skipped, and architectures.test.ts still compares the engine with the plain
 * forward pass on tiny models of every architecture.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { packSource } from '../../src/pack/pack-source.js';
import { openPack } from '../../src/pack/reader.js';
import { openEngine, packOf, removePacks, SHARED } from './open.js';
import { plainForward } from './plain-forward.js';

const REFERENCE = join(SHARED, 'reference/architectures');
const folders = existsSync(REFERENCE)
  ? readdirSync(REFERENCE).filter((name) => existsSync(join(REFERENCE, name, 'expected.json')))
  : [];
/**
 * Of the largest logit. Folders in 16 bits were made by `model.to(dtype)`, which rounds the rotary frequencies with
 * the weights; models loaded by `from_pretrained` keep them in float32, as this program does (see
 * test/model/architectures.test.ts, where the plain forward pass rounds them too and agrees to 1e-5).
 */
const TOLERANCE = 1e-3;
const ROUNDED_FREQUENCIES = 5e-3;
const ROUNDED = ['arcee-relu2', 'llama-relu-mlpbias', 'llama-silu-yarn', 'mixtral-relu', 'nemotron-relu2'];
/** The engine against the plain forward pass over the same pack: sums in f32. */
const ENGINE_TOLERANCE = 1e-5;

afterAll(removePacks);

function expectedLogits(folder: string): { tokens: number[]; values: Float32Array } {
  const { tokens, shape } = JSON.parse(readFileSync(join(folder, 'expected.json'), 'utf8')) as {
    tokens: number[];
    shape: [number, number];
  };
  const bytes = readFileSync(join(folder, 'expected.f32'));
  return { tokens, values: new Float32Array(bytes.buffer, bytes.byteOffset, shape[0] * shape[1]) };
}

describe.skipIf(folders.length === 0)('logits of transformers', () => {
  describe.each(folders)('%s', (name) => {
    it('from its f32 pack', async () => {
      const folder = join(REFERENCE, name);
      const { tokens, values } = expectedLogits(folder);
      const pack = packSource(openPack(await packOf(folder, 'f32')));
      const plain = (await plainForward(pack, tokens)).logits.flatMap((row) => [...row]);
      await pack.close();
      const largest = values.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
      const modes = name.includes('silu') ? (['dense'] as const) : (['dense', 'exact'] as const);
      for (const ffn of modes) {
        const engine = await openEngine(folder, 'f32', { ffn, batchTokens: 16 });
        const { logits } = await engine.logits({ tokens });
        await engine.close();
        const worst = (of: ArrayLike<number>): number =>
          logits.reduce((m, v, i) => Math.max(m, Math.abs(v - of[i])), 0) / largest;
        const tolerance = ROUNDED.includes(name) ? ROUNDED_FREQUENCIES : TOLERANCE;
        expect(worst(values), `${ffn}, from transformers`).toBeLessThan(tolerance);
        expect(worst(plain), `${ffn}, from the plain forward pass`).toBeLessThan(ENGINE_TOLERANCE);
      }
    });
  });
});
