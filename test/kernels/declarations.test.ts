/** The C++ header that is written from the kernel table. */
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { declarationsDigest, declarationsHeader } from '../../src/kernels/native/declarations.js';
import { nativeStatus } from '../../src/kernels/native/loader.js';

const header = fileURLToPath(new URL('../../src/kernels/native/declarations.h', import.meta.url));
const { path, variants = [] } = nativeStatus();

test('declarations.h in the repository is what the table says; `npm run build` writes it', () => {
  expect(readFileSync(header, 'utf8')).toBe(declarationsHeader());
});

test.skipIf(!path || !existsSync(path) || variants.length === 0)(
  'an addon refuses to bind for another table',
  () => {
    const { bind } = createRequire(import.meta.url)(path!) as {
      bind: (arena: Uint8Array, parameters: Float64Array, variant: string, digest: string) => object;
    };
    const bound = (digest: string): object =>
      bind(new Uint8Array(65_536), new Float64Array(16), variants[0], digest);
    expect(bound(declarationsDigest())).toHaveProperty('dot');
    for (const other of ['', 'f'.repeat(64), `${declarationsDigest()}0`, declarationsDigest().slice(1)])
      expect(() => bound(other)).toThrow(/another kernel table: run `npm run build`/);
  },
);
