/**
 * The package as a stranger gets it: tarballs packed from this build, installed by npm into an empty folder with
 * scripts off, from a registry that has neither onnxruntime-node nor webgpu. Needs no network.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { prebuiltHere } from '../../src/kernels/native/find-addon.js';
import { nativeStatus } from '../../src/kernels/native/loader.js';
import { startRegistry } from './registry.js';

const MINUTES = 60_000;
const native = nativeStatus().available;
const base = mkdtempSync(join(tmpdir(), 'hybrid-infer-install-'));
const project = join(base, 'project');
const modules = join(project, 'node_modules');
/** A node_modules of somebody else above the temporary folder would be found too. */
const onnxAbove = existsAbove(base, 'node_modules/onnxruntime-node');
const withoutOnnx = it.skipIf(onnxAbove);

beforeAll(async () => {
  const packed = join(base, 'packed');
  const pack = (script: string): string =>
    execFileSync(process.execPath, [script, '--out', packed], { encoding: 'utf8' }).trim();
  const tarballs = [pack('tools/pack-main.mjs'), ...(native ? [pack('tools/pack-native.mjs')] : [])];
  const registry = await startRegistry(tarballs, ['onnxruntime-node', 'webgpu']);
  try {
    mkdirSync(project);
    writeFileSync(join(project, 'package.json'), '{"private":true,"type":"module"}');
    await npmInstall(tarballs[0], registry.url);
  } finally {
    registry.close();
  }
}, 5 * MINUTES);
afterAll(() => rmSync(base, { recursive: true, force: true }));

/** Not spawnSync: the registry answers from this process. */
async function npmInstall(tarball: string, registry: string): Promise<void> {
  const { spawn } = await import('node:child_process');
  const cache = join(base, 'npm-cache');
  const flags = ['--ignore-scripts', '--no-audit', '--no-fund', '--registry', registry, '--cache', cache];
  const child = spawn('npm', ['install', tarball, ...flags], {
    cwd: project,
    stdio: ['ignore', 'pipe', 'pipe'],
    shell: process.platform === 'win32',
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => (output += String(text)));
  const code = await new Promise((done) => child.on('close', done));
  if (code !== 0) throw new Error(`npm install ended with ${code}: ${output}`);
}

function existsAbove(folder: string, name: string): boolean {
  if (existsSync(join(folder, name))) return true;
  return dirname(folder) !== folder && existsAbove(dirname(folder), name);
}

function command(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  const main = join(modules, 'hybrid-infer/dist/cli/main.js');
  return node(main, ...args);
}

function node(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  const env: NodeJS.ProcessEnv = { ...process.env, HYBRID_INFER_CACHE: join(base, 'cache'), NO_COLOR: '1' };
  delete env.HYBRID_INFER_NATIVE;
  return spawnSync(process.execPath, args, { cwd: project, encoding: 'utf8', env });
}

describe('the installed package', () => {
  it('has the command, and no onnxruntime-node', () => {
    expect(existsSync(join(modules, '.bin/hybrid-infer'))).toBe(true);
    expect(existsSync(join(modules, 'onnxruntime-node'))).toBe(false);
  });

  withoutOnnx(
    'doctor names the kernels it found, and how to add onnxruntime-node',
    { timeout: MINUTES },
    () => {
      const { status, stdout } = command('doctor', '--json');
      expect(status).toBe(0);
      const report = JSON.parse(stdout) as {
        kernels: { name: string };
        onnxruntime: { version: null; installed: boolean; add: string };
        providers: { ok: boolean; reason: string }[];
      };
      expect(report.kernels.name).toMatch(native ? /^native/ : /^wasm/);
      expect(report.onnxruntime).toMatchObject({ version: null, installed: false });
      for (const { ok, reason } of report.providers) {
        expect(ok).toBe(false);
        expect(reason).toMatch(/npm install (onnxruntime-node|webgpu)@/);
      }
    },
  );

  it('run writes with the prebuilt kernels', { timeout: MINUTES }, () => {
    const { status, stdout, stderr } = command('run', 'Once upon a time', '-n', '12', '--greedy');
    expect(status).toBe(0);
    expect(stdout.trim()).not.toBe('');
    expect(stderr).toContain(native ? 'native (' : 'wasm (');
  });

  it.skipIf(!native)(
    'run without them writes the same, and says once why it is WASM',
    { timeout: MINUTES },
    () => {
      const args = ['run', 'Once upon a time', '-n', '12', '--greedy'];
      const before = command(...args);
      const { name } = prebuiltHere()!;
      renameSync(join(modules, name), join(base, 'hidden'));
      try {
        const { status, stdout, stderr } = command(...args);
        expect(status).toBe(0);
        expect(stdout).toBe(before.stdout);
        expect(stderr.split(`the package ${name} is not installed`)).toHaveLength(2);
        expect(stderr).toContain('npm explore hybrid-infer -- npm run build:native');
      } finally {
        renameSync(join(base, 'hidden'), join(modules, name));
      }
    },
  );

  withoutOnnx.each([
    ['profile', '--quick'],
    ['sparsify', resolve('models/tales-4m-relu'), '--text', 'text.txt', '-o', 'out'],
  ])('%s says before it begins that it needs onnxruntime-node', { timeout: MINUTES }, (...args) => {
    writeFileSync(join(project, 'text.txt'), 'Once upon a time. '.repeat(50));
    const { status, stdout } = command(...args, '--json');
    expect(status).toBe(2);
    expect(JSON.parse(stdout)).toMatchObject({
      error: {
        code: 'ONNX_MISSING',
        hint: expect.stringContaining('npm install onnxruntime-node@') as string,
      },
    });
  });
});

describe('as a library', () => {
  const program = `
    const demo = MODEL;
    const model = await HybridModel.load(demo);
    let text = '';
    for await (const piece of model.generate('Once upon a time', { maxTokens: 4, temperature: 0 })) text += piece;
    await model.close();
    console.log(JSON.stringify(text));`;
  const demo = JSON.stringify(join(modules, 'hybrid-infer/models/tales-4m-relu'));

  it('runs from an ES module', { timeout: MINUTES }, () => {
    const source = `import { HybridModel } from 'hybrid-infer';${program.replace('MODEL', demo)}`;
    writeFileSync(join(project, 'esm.mjs'), source);
    const { stdout, stderr } = node('esm.mjs');
    expect(stderr).toBe('');
    expect(JSON.parse(stdout)).not.toBe('');
  });

  it('runs from CommonJS by import()', { timeout: MINUTES }, () => {
    const body = `const { HybridModel } = await import('hybrid-infer');${program.replace('MODEL', demo)}`;
    writeFileSync(join(project, 'cjs.cjs'), `(async () => {${body}})();`);
    const { stdout, stderr } = node('cjs.cjs');
    expect(stderr).toBe('');
    expect(JSON.parse(stdout)).not.toBe('');
  });

  it.each([
    ['node16', 'node16'],
    ['esnext', 'bundler'],
  ])(
    'its types resolve with module %s, moduleResolution %s',
    { timeout: 2 * MINUTES },
    (module, resolution) => {
      const source = `import { HybridModel, type GenerateOptions } from 'hybrid-infer';
      const options: GenerateOptions = { maxTokens: 3 };
      // @ts-expect-error a count is no text: types were found
      const wrong: GenerateOptions = { maxTokens: 'three' };
      export async function text(): Promise<string[]> {
        const pieces: string[] = [];
        const model = await HybridModel.load('x');
        for await (const piece of model.generate('y', options)) pieces.push(piece);
        return [...pieces, String(wrong)];
      }`;
      writeFileSync(join(project, 'use.ts'), source);
      const types = resolve('node_modules/@types');
      const flags = ['--noEmit', '--strict', '--target', 'es2022', '--types', 'node', '--typeRoots', types];
      const { status, stdout } = node(
        resolve('node_modules/typescript/bin/tsc'),
        ...[...flags, '--module', module, '--moduleResolution', resolution, '--skipLibCheck', 'use.ts'],
      );
      expect(stdout).toBe('');
      expect(status).toBe(0);
    },
  );
});
