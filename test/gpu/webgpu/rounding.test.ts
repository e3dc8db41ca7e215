/**
 * Why logits of q8 and q4 packs differ between CPU and GPU: each is compared with a float64 pass over the values that
 * the pack's rows stand for, once as it is and once with activations rounded to 8 bits as the CPU rounds them.
 */
import { afterAll, describe, expect, it } from 'vitest';
import { GROUP } from '../../../src/kernels/layout.js';
import { packSource } from '../../../src/pack/pack-source.js';
import { openPack } from '../../../src/pack/reader.js';
import { writeTinyFolder } from '../../helpers/tiny-models.js';
import { openEngine, packOf, removePacks } from '../../engine/open.js';
import { plainForward } from '../../engine/plain-forward.js';
import { reason } from './adapter.js';
import { distance, openOnGpu, TINY } from './open.js';

afterAll(removePacks);

const TOKENS = Array.from({ length: 12 }, (_, i) => (i * 53 + 7) % 288);

/** Codes of 8 bits by group, against its largest magnitude. */
function rounded(x: Float64Array): Float64Array {
  const out = new Float64Array(x.length);
  for (let begin = 0; begin < x.length; begin += GROUP) {
    const group = x.subarray(begin, begin + GROUP);
    const scale = group.reduce((most, v) => Math.max(most, Math.abs(v)), 0) / 127;
    group.forEach((v, i) => (out[begin + i] = scale === 0 ? 0 : Math.round(v / scale) * scale));
  }
  return out;
}

describe.skipIf(reason !== null)(`rounding of activations${reason ? ` (skipped: ${reason})` : ''}`, () => {
  const folder = writeTinyFolder();
  // The cache rounds nothing here, and the reference kernels nothing but activations.
  const options = { ...TINY, kvCache: 'f32' as const, ffn: 'exact' as const };

  it.each(['q8', 'q4'] as const)(
    'is all that the CPU has of its own with %s packs; the GPU gives the logits of the pack',
    async (quant) => {
      const source = packSource(openPack(await packOf(folder, quant)));
      const logitsOf = async (round?: typeof rounded) => {
        const { logits } = await plainForward(source, TOKENS, { roundActivations: round });
        return Float32Array.from(logits.flatMap((row) => [...row]));
      };
      const [plain, withRounding] = [await logitsOf(), await logitsOf(rounded)];
      await source.close();
      const cpu = await openEngine(folder, quant, { ...options, kernels: 'reference' });
      const onCpu = (await cpu.logits({ tokens: TOKENS })).logits;
      await cpu.close();
      const { engine, close } = await openOnGpu(folder, quant, 'whole', options);
      const onGpu = (await engine.logits({ tokens: TOKENS })).logits;
      await close();
      expect(distance(onGpu, plain)).toBeLessThan(1e-5);
      expect(distance(onCpu, withRounding)).toBeLessThan(1e-5);
      // What is between them: 1.4e-2 in q8 here.
      expect(distance(withRounding, plain)).toBeGreaterThan(2e-3);
      expect(distance(withRounding, plain)).toBeLessThan(4e-2);
    },
    120_000,
  );
});
