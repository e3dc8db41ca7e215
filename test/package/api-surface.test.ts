/** The public API changes only together with the file that records it. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';

it('the API is the recorded one (changed on purpose? npm run api:record)', () => {
  const now = execFileSync(process.execPath, ['tools/api-surface.mjs'], { encoding: 'utf8' });
  expect(now).toContain('class HybridModel');
  expect(now).toBe(readFileSync('test/package/api-surface.txt', 'utf8'));
});
