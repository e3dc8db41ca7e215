/**
 * The engine against logits of transformers itself, in every folder of the references. They are large for a
 * repository; without them this is skipped, and architectures.test.ts still compares the engine with the plain
 * forward pass on tiny models of every architecture.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { openEngine, removePacks, SHARED } from './open.js';

const REFERENCE = join(SHARED, 'reference/architectures');
const folders = existsSync(REFERENCE)
  ? readdirSync(REFERENCE).filter((name) => existsSync(join(REFERENCE, name, 'expected.json')))
  : [];
/** Of the largest logit. */
const TOLERANCE = { f32: 1e-3, q8: 0.02 };

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
    it.each(['f32', 'q8'] as const)('from its %s pack', async (quant) => {
      const folder = join(REFERENCE, name);
      const { tokens, values } = expectedLogits(folder);
      const largest = values.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
      const modes = name.includes('silu') ? (['dense'] as const) : (['dense', 'exact'] as const);
      for (const ffn of modes) {
        const engine = await openEngine(folder, quant, { ffn, batchTokens: 16 });
        const { logits } = await engine.logits({ tokens });
        const worst = values.reduce((m, v, i) => Math.max(m, Math.abs(v - logits[i])), 0);
        await engine.close();
        console.log(name, quant, ffn, (worst / largest).toExponential(2));
        expect(worst / largest, `${ffn}: of the largest logit`).toBeLessThan(TOLERANCE[quant]);
      }
    });
  });
});
