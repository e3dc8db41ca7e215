/** Which addon is taken: an own build, a prebuilt package that fits, or none with the reason. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { declarationsDigest } from '../../src/kernels/native/declarations.js';
import { findAddon, PREBUILT, prebuiltHere, type Search } from '../../src/kernels/native/find-addon.js';

let root: string;
let search: Search;
const name = '@hybrid-infer/native-linux-x64-glibc';

const write = (file: string, content: object | string): void =>
  writeFileSync(join(root, file), typeof content === 'string' ? content : JSON.stringify(content));

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'find-addon-'));
  for (const folder of ['built', 'prebuilt']) mkdirSync(join(root, folder));
  search = { built: join(root, 'built'), root, prebuilt: { name, folder: join(root, 'prebuilt') } };
  write('package.json', { version: '1.2.3' });
  write('prebuilt/package.json', { version: '1.2.3', kernelTable: declarationsDigest() });
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

describe('findAddon', () => {
  it('prefers an own build', () => {
    write('built/hybrid-infer.node', '');
    expect(findAddon(search)).toEqual({ path: join(root, 'built', 'hybrid-infer.node') });
  });

  it('takes the prebuilt package of this version and kernel table', () => {
    expect(findAddon(search)).toEqual({ path: join(root, 'prebuilt', 'hybrid-infer.node') });
  });

  it('refuses a package of another version, and names both', () => {
    write('prebuilt/package.json', { version: '1.2.2', kernelTable: declarationsDigest() });
    expect(findAddon(search)).toMatchObject({
      reason: `${name} is of version 1.2.2, hybrid-infer of 1.2.3`,
      hint: expect.stringContaining(`${name}@1.2.3`) as string,
    });
  });

  it('refuses a package built from another kernel table', () => {
    write('prebuilt/package.json', { version: '1.2.3', kernelTable: 'other' });
    expect(findAddon(search)).toMatchObject({
      reason: expect.stringContaining('another kernel table') as string,
    });
  });

  it('without either says what the build said', () => {
    write('built/build-info.json', { available: false, reason: 'no C++ compiler found' });
    search.prebuilt!.folder = null;
    expect(findAddon(search)).toMatchObject({ reason: 'no C++ compiler found' });
  });

  it('without a package for the platform says so', () => {
    search.prebuilt = null;
    expect(findAddon(search)).toMatchObject({
      reason: expect.stringContaining('no prebuilt package') as string,
    });
  });
});

describe('prebuiltHere', () => {
  it('is one of the published ones for this platform', () => {
    const here = prebuiltHere();
    if (here !== undefined) expect(PREBUILT).toContain(here);
    if (process.platform === 'linux' && process.arch === 'x64') expect(here?.libc).toMatch(/glibc|musl/);
  });
});
