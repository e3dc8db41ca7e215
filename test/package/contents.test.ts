/** What goes into the published tarball: all that is needed, nothing that is not. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';

interface Packed {
  files: { path: string; size: number }[];
  size: number;
  unpackedSize: number;
}

const [packed] = JSON.parse(
  execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], {
    encoding: 'utf8',
    shell: process.platform === 'win32',
  }),
) as Packed[];
const files = packed.files.map(({ path }) => path);
const manifest = JSON.parse(readFileSync('package.json', 'utf8')) as {
  scripts: Record<string, string>;
  dependencies: Record<string, string>;
};

describe('the tarball', () => {
  it('has the library, its types, the command, kernels to run and to build, and the demo model', () => {
    expect(files).toEqual(
      expect.arrayContaining([
        'LICENSE',
        'README.md',
        'CHANGELOG.md',
        'dist/index.js',
        'dist/index.d.ts',
        'dist/cli/main.js',
        'dist/kernels/wasm/kernels.simd.wasm',
        'src/kernels/native/addon.cc',
        'tools/build-native.mjs',
        'models/tales-4m-relu/config.json',
      ]),
    );
  });

  it('has no tests, sources, maps or addon of the machine that packed it', () => {
    const folder = /(^|\/)(test|shared|node_modules|packages|\.[^/]+)\//;
    const kind = /\.(map|node|tgz|tsbuildinfo)$|(?<!\.d)\.ts$/;
    expect(files.filter((file) => folder.test(file) || kind.test(file))).toEqual([]);
  });

  it('is below 10 MiB, 16 MiB unpacked', () => {
    expect(packed.size).toBeLessThan(10 * 2 ** 20);
    expect(packed.unpackedSize).toBeLessThan(16 * 2 ** 20);
  });
});

describe('package.json', () => {
  it('runs nothing when it is installed', () => {
    const installs = ['preinstall', 'install', 'postinstall'];
    expect(Object.keys(manifest.scripts).filter((name) => installs.includes(name))).toEqual([]);
  });

  it('pins every dependency', () => {
    for (const version of Object.values(manifest.dependencies)) expect(version).toMatch(/^\d+\.\d+\.\d+$/);
  });
});

describe('the lock file', () => {
  it('keeps no addresses', () => {
    // A folder of this repository stands there too.
    expect(readFileSync('package-lock.json', 'utf8')).not.toMatch(/"resolved": "(?!tools\/)/);
  });
});
