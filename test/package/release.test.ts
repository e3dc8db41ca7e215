/** tools/release.mjs changes three files, and only a tree that can be released. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';

let root: string;
const at = (name: string): string => readFileSync(join(root, name), 'utf8');
const put = (name: string, text: string): void => writeFileSync(join(root, name), text);

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'release-'));
  put('package.json', '{\n  "name": "x",\n  "version": "0.9.1"\n}\n');
  put('package-lock.json', JSON.stringify({ version: '0.9.1', packages: { '': { version: '0.9.1' } } }));
  put('CHANGELOG.md', '# Changelog\n\n## Unreleased\n\n- a change\n\n## 0.9.1\n\n- old\n');
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

function release(version: string): { status: number | null; stderr: string } {
  const args = ['tools/release.mjs', version, '--root', root, '--date', '2026-01-31'];
  return spawnSync(process.execPath, args, { encoding: 'utf8' });
}

it('writes the version everywhere and dates the changes', () => {
  expect(release('0.10.0').status).toBe(0);
  expect(at('package.json')).toContain('"version": "0.10.0"');
  expect(JSON.parse(at('package-lock.json'))).toEqual({
    version: '0.10.0',
    packages: { '': { version: '0.10.0' } },
  });
  expect(at('CHANGELOG.md')).toContain('## Unreleased\n\n## 0.10.0 (2026-01-31)\n\n- a change');
});

it.each([
  ['0.9.1', 'not later'],
  ['0.8.7', 'not later'],
  ['next', 'expected a version'],
])('refuses version %s and changes nothing', (version, reason) => {
  const before = at('package.json');
  const { status, stderr } = release(version);
  expect(status).toBe(2);
  expect(stderr).toContain(reason);
  expect(at('package.json')).toBe(before);
});

it('refuses a release without a word about it', () => {
  put('CHANGELOG.md', '# Changelog\n\n## Unreleased\n\n## 0.9.1\n\n- old\n');
  expect(release('1.0.0')).toMatchObject({
    status: 2,
    stderr: expect.stringContaining('nothing under') as string,
  });
});
