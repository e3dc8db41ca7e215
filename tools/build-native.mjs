#!/usr/bin/env node
/**
 * Builds the native kernels (src/kernels/native) with the system's C++ compiler, directly: no node-gyp, nothing
 * downloaded. One object per instruction set, compiled side by side, linked into
 * dist/kernels/native/hybrid-infer.node; build-info.json beside it says what was built, or why not.
 *
 * Never fails an install: without a compiler it prints one line and exits 0, and WebAssembly is used.
 *
 *   CXX=clang++ node tools/build-native.mjs     another compiler
 *   HYBRID_INFER_NATIVE=off                     do not build
 */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import path from 'node:path';
import { clearTimeout, setTimeout } from 'node:timers';
import { fileURLToPath } from 'node:url';

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const sourceDir = path.join(root, 'src/kernels/native');
const outDir = path.join(root, 'dist/kernels/native');
const addonPath = path.join(outDir, 'hybrid-infer.node');
const infoPath = path.join(outDir, 'build-info.json');

/** No contraction: a * b + c must round twice where the reference kernels do, or codes would differ. */
const COMMON_FLAGS = [
  '-std=c++17',
  '-O3',
  ...(process.platform === 'win32' ? [] : ['-fPIC']),
  '-ffp-contract=off',
  '-fno-exceptions',
  '-fno-rtti',
  '-fvisibility=hidden',
];

const AVX512 = ['-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mavx2', '-mfma'];
/** Objects per CPU architecture; an optional one is left out when the compiler does not know its flags. */
const UNITS = {
  x64: [
    { source: 'isa_avx512_vnni.cc', flags: [...AVX512, '-mavx512vnni'], define: 'HAVE_AVX512_VNNI' },
    { source: 'isa_avx512.cc', flags: AVX512, define: 'HAVE_AVX512' },
    { source: 'isa_avx2_vnni.cc', flags: ['-mavx2', '-mfma', '-mavxvnni'], define: 'HAVE_AVX2_VNNI' },
    { source: 'isa_avx2.cc', flags: ['-mavx2', '-mfma'], define: 'HAVE_AVX2' },
  ],
  arm64: [
    { source: 'isa_neon_dot.cc', flags: ['-march=armv8.2-a+dotprod'], define: 'HAVE_NEON_DOT' },
    { source: 'isa_neon.cc', flags: [], define: 'HAVE_NEON' },
  ],
};
/** A compiler that hangs must not hang the build for ever. An object takes half a minute, on a busy machine twenty times that. */
const COMPILE_TIMEOUT_MS = 1_800_000;

async function main() {
  await mkdir(outDir, { recursive: true });
  if (['off', '0', 'false'].includes(process.env.HYBRID_INFER_NATIVE ?? '')) {
    return giveUp('switched off by HYBRID_INFER_NATIVE');
  }
  const compiler = await findCompiler();
  if (compiler === undefined) {
    return giveUp(
      `no C++ compiler found (tried ${compilerCandidates()
        .map((c) => c[0])
        .join(', ')})`,
    );
  }
  const headers = await findHeaders();
  const inputs = await hashInputs(compiler);
  if (await upToDate(inputs)) return;
  await build(compiler, headers, inputs);
}

// ---- what there is ---------------------------------------------------------------------------------------

/** $CXX may carry arguments, such as `ccache g++`. */
function compilerCandidates() {
  const chosen = process.env.CXX?.trim();
  if (chosen) return [chosen.split(/\s+/)];
  // MSVC's cl has no vector extensions; clang links against its runtime.
  return process.platform === 'win32' ? [['clang++']] : [['c++'], ['g++'], ['clang++']];
}

async function findCompiler() {
  for (const command of compilerCandidates()) {
    const { code, output } = await run([...command, '--version']);
    if (code === 0) return { command, version: output.split('\n')[0].trim() };
  }
  return undefined;
}

async function findHeaders() {
  try {
    const { include_dir: include, def_paths: definitions } = (await import('node-api-headers')).default;
    return { include, definitions: Object.values(definitions) };
  } catch {
    throw new Error('the package node-api-headers is not installed');
  }
}

/** Changes with anything the result depends on. */
async function hashInputs(compiler) {
  const hash = createHash('sha256');
  hash.update(
    JSON.stringify([
      compiler,
      COMMON_FLAGS,
      UNITS,
      process.platform,
      process.arch,
      process.env.CXXFLAGS ?? '',
    ]),
  );
  for (const name of (await readdir(sourceDir)).sort()) {
    if (/\.(cc|h)$/.test(name)) hash.update(name).update(await readFile(path.join(sourceDir, name)));
  }
  hash.update(await readFile(fileURLToPath(import.meta.url)));
  return hash.digest('hex');
}

async function upToDate(inputs) {
  try {
    const info = JSON.parse(await readFile(infoPath, 'utf8'));
    await readFile(addonPath);
    return info.available === true && info.inputs === inputs;
  } catch {
    return false;
  }
}

// ---- building --------------------------------------------------------------------------------------------

async function build(compiler, headers, inputs) {
  const started = Date.now();
  // Several builds may run at once: each in its own folder, and the last rename wins with a whole file.
  const scratch = path.join(outDir, `build-${process.pid}`);
  await mkdir(scratch, { recursive: true });
  try {
    const extra = (process.env.CXXFLAGS ?? '').split(/\s+/).filter(Boolean);
    const compile = async (source, flags) => {
      const object = path.join(scratch, source.replace(/\.cc$/, '.o'));
      const { code, output } = await run([
        ...compiler.command,
        ...COMMON_FLAGS,
        ...extra,
        ...flags,
        `-I${headers.include}`,
        '-c',
        path.join(sourceDir, source),
        '-o',
        object,
      ]);
      return { source, object, ok: code === 0, output };
    };

    const units = UNITS[process.arch] ?? [];
    const jobs = [
      ...units.map((unit) => ({ ...unit, optional: true })),
      { source: 'isa_scalar.cc', flags: [] },
      { source: 'addon.cc', flags: [] },
    ];
    const results = await inParallel(jobs, async (job) => ({
      ...job,
      ...(await compile(job.source, job.flags)),
    }));
    for (const result of results) {
      if (!result.ok && !result.optional)
        throw new Error(`${result.source} did not compile: ${firstError(result.output)}`);
    }
    const built = results.filter((result) => result.ok);
    const defines = built.flatMap((result) => (result.define ? [`-D${result.define}`] : []));
    const cpu = await compile('cpu.cc', defines);
    if (!cpu.ok) throw new Error(`cpu.cc did not compile: ${firstError(cpu.output)}`);

    const shared = await sharedFlags(headers.definitions, scratch);
    const linked = path.join(scratch, 'hybrid-infer.node');
    const link = await run([
      ...compiler.command,
      ...shared,
      ...[...built, cpu].map((r) => r.object),
      '-o',
      linked,
    ]);
    if (link.code !== 0 || !existsSync(linked)) throw new Error(`linking failed: ${firstError(link.output)}`);
    await rename(linked, addonPath);

    const seconds = (Date.now() - started) / 1000;
    await writeInfo({
      available: true,
      inputs,
      compiler: compiler.version,
      command: compiler.command.join(' '),
      flags: [...COMMON_FLAGS, ...extra].join(' '),
      units: built.map((result) => result.source),
      skipped: results
        .filter((result) => !result.ok)
        .map((result) => `${result.source}: ${firstError(result.output)}`),
      seconds,
    });
    for (const { source, ok, output } of results) {
      if (!ok) console.log(`native kernels: without ${source}: ${firstError(output)}`);
    }
    console.log(`native kernels: built with ${compiler.version} in ${seconds.toFixed(1)} s`);
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

/**
 * How a library is linked whose Node-API symbols are in the node binary: Linux leaves them open, macOS when told to,
 * Windows wants an import library, made from the definitions that node-api-headers has.
 */
async function sharedFlags(definitions, scratch) {
  if (process.platform === 'darwin') return ['-bundle', '-undefined', 'dynamic_lookup'];
  if (process.platform !== 'win32') return ['-shared'];
  const machine = process.arch === 'arm64' ? 'arm64' : 'i386:x86-64';
  const libraries = [];
  for (const definition of definitions) {
    const library = path.join(scratch, `${path.basename(definition, '.def')}.lib`);
    const made = await run([
      'llvm-dlltool',
      '-m',
      machine,
      '-D',
      'node.exe',
      '-d',
      definition,
      '-l',
      library,
    ]);
    if (made.code !== 0) throw new Error(`llvm-dlltool failed: ${firstError(made.output)}`);
    libraries.push(library);
  }
  return ['-shared', ...libraries];
}

/** Runs `work` over `items`, as many at a time as there are cores; results in the order of the items. */
async function inParallel(items, work) {
  const results = new Array(items.length);
  let next = 0;
  const worker = async () => {
    while (next < items.length) {
      const i = next++;
      results[i] = await work(items[i]);
    }
  };
  await Promise.all(Array.from({ length: Math.min(items.length, availableParallelism()) }, worker));
  return results;
}

/** Exit code and all output of a command; one that cannot be started has code -1. */
function run([command, ...args]) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    // Not spawn's own option: its timer would hold the process for the full time when the command does not exist.
    const timer = setTimeout(() => child.kill('SIGKILL'), COMPILE_TIMEOUT_MS);
    let output = '';
    const end = (code) => {
      clearTimeout(timer);
      resolve({ code, output });
    };
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += chunk));
    child.on('error', (error) => {
      output += error.message;
      end(-1);
    });
    child.on('close', (code) => end(code ?? -1));
  });
}

const firstError = (output) =>
  (output.split('\n').find((line) => /error/i.test(line)) ?? output.split('\n')[0] ?? '')
    .trim()
    .slice(0, 300);

// ---- saying what happened ----------------------------------------------------------------------------------

const writeInfo = (info) =>
  writeFile(
    infoPath,
    `${JSON.stringify({ ...info, platform: process.platform, arch: process.arch }, null, 2)}\n`,
  );

/** Not an error: the same program runs on WebAssembly. An addon of earlier sources must not be loaded, though. */
async function giveUp(reason) {
  await rm(addonPath, { force: true });
  await writeInfo({ available: false, reason });
  console.error(`native kernels: ${reason}; WebAssembly kernels will be used`);
}

await main().catch(async (error) => {
  await giveUp(error instanceof Error ? error.message : String(error));
});
