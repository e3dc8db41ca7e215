/** What tools of others say of the tarball that would be published. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { publint } from 'publint';
import { formatMessage } from 'publint/utils';
import { afterAll, beforeAll, expect, it } from 'vitest';

const folder = mkdtempSync(join(tmpdir(), 'hybrid-infer-publish-'));
let tarball: string;

beforeAll(() => {
  const args = ['tools/pack-main.mjs', '--out', folder];
  tarball = execFileSync(process.execPath, args, { encoding: 'utf8' }).trim();
}, 300_000);
afterAll(() => rmSync(folder, { recursive: true, force: true }));

it('publint finds nothing to suggest', async () => {
  const bytes = Uint8Array.from(readFileSync(tarball)).buffer;
  const { messages, pkg } = await publint({ pack: { tarball: bytes }, strict: true });
  const said = messages.map((message) => formatMessage(message, pkg, { color: false }));
  expect(said).toEqual([]);
});

it(
  "arethetypeswrong finds types for every way to import an ES module's package",
  { timeout: 120_000 },
  () => {
    const args = ['node_modules/@arethetypeswrong/cli/dist/index.js', tarball];
    const output = execFileSync(process.execPath, [...args, '--profile', 'esm-only', '--format', 'json'], {
      encoding: 'utf8',
      maxBuffer: 2 ** 28,
    });
    const { analysis, problems } = JSON.parse(output) as {
      analysis: { types: { kind: string } };
      problems: Record<string, { kind: string; resolutionKind?: string }[]>;
    };
    expect(analysis.types.kind).toBe('included');
    // CommonJS reaches an ES module by import(), which install.test.ts does.
    expect(Object.keys(problems ?? {}).filter((kind) => kind !== 'CJSResolvesToESM')).toEqual([]);
  },
);
