/** The products of fitting, on the CPU and on every GPU provider that is here. */
import { describe, expect, it } from 'vitest';
import { createMatrices } from '../../src/predictor/matrix.js';
import { testProviders } from '../gpu/adapter.js';
import { random } from '../helpers/tiny-models.js';

const [N, K, M] = [70, 45, 33];
const next = random(8);
const table = (length: number): Float32Array => Float32Array.from({ length }, () => next() - 0.5);
const a = table(N * K);
const b = table(K * M);
const transposed = (m: Float32Array, rows: number, cols: number): Float32Array =>
  Float32Array.from({ length: m.length }, (_, i) => m[(i % rows) * cols + Math.floor(i / rows)]);
const expected = Float64Array.from({ length: N * M }, (_, at) => {
  let sum = 0;
  for (let k = 0; k < K; k++) sum += a[Math.floor(at / M) * K + k] * b[k * M + (at % M)];
  return sum;
});

for (const { provider, reason } of await testProviders()) {
  describe.skipIf(reason !== null)(`products by ${provider}${reason ? ` (${reason})` : ''}`, () => {
    it('are what sums give, however the factors lie', async () => {
      const matrices = await createMatrices({ provider });
      try {
        for (const product of [
          await matrices.times(a, b, K),
          await matrices.timesTransposed(a, transposed(b, K, M), K),
          await matrices.transposedTimes(transposed(a, N, K), b, K),
        ]) {
          let most = 0;
          expected.forEach((value, i) => (most = Math.max(most, Math.abs(value - product[i]))));
          expect(most).toBeLessThan(1e-4);
        }
      } finally {
        await matrices.release();
      }
    });
  });
}
