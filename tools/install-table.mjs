#!/usr/bin/env node
/**
 * Installs this machine's two tarballs as strangers would, and prints what came of it as a table: Node versions, with a
 * compiler or the prebuilt kernels, scripts on and off, with and without onnxruntime-node. Each install goes into an
 * empty folder, which is removed; packages come from the npm registry, Node from its packages `node-<os>-<cpu>`, and
 * npm too: which scripts run is npm's decision, so each Node comes with the npm that is named beside it.
 *
 *   npm run build && npm run pack
 *   node tools/install-table.mjs [--nodes 20.20.2+10.8.2,24.21.0+12.2.0] [--kernels prebuilt,compiler,none]
 *     [--scripts off,on] [--onnx without,with] [--json]
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { performance } from 'node:perf_hooks';
import { parseArgs } from 'node:util';
import { manifest, npm, root } from './pack-folder.mjs';

const { values } = parseArgs({
  options: {
    nodes: { type: 'string', default: `${process.versions.node}+11.19.1` },
    kernels: { type: 'string', default: 'prebuilt,compiler,none' },
    scripts: { type: 'string', default: 'off,on' },
    onnx: { type: 'string', default: 'without,with' },
    json: { type: 'boolean', default: false },
  },
});
const list = (name) => values[name].split(',');
const base = mkdtempSync(path.join(tmpdir(), 'install-table-'));
const packages = path.join(root, 'packages');
const tarball = (pattern) =>
  path.join(
    packages,
    readdirSync(packages).find((name) => pattern.test(name)),
  );
const main = tarball(new RegExp(`^hybrid-infer-${manifest.version}\\.tgz$`));
const native = tarball(/^hybrid-infer-native-/);

const rows = [];
try {
  for (const pair of list('nodes')) {
    const [version, npmVersion] = pair.split('+');
    const tools = { node: installNode(version), npmCli: installNpm(npmVersion) };
    for (const kernels of list('kernels')) {
      for (const scripts of list('scripts')) {
        for (const onnx of list('onnx')) {
          console.error(`node ${pair}, kernels ${kernels}, scripts ${scripts}, onnxruntime ${onnx}`);
          const choice = { kernels, scripts, onnxruntime: onnx };
          show({ node: version, npm: npmVersion, ...choice, ...tryOne(tools, choice) });
        }
      }
    }
  }
} finally {
  rmSync(base, { recursive: true, force: true });
}
if (values.json) console.log(JSON.stringify(rows, null, 2));

/** The binary of that version: this one, or one from the registry. */
function installNode(version) {
  if (version === process.versions.node) return process.execPath;
  const name = `node-${process.platform === 'win32' ? 'win' : process.platform}-${process.arch}`;
  return path.join(fetched(name, version), 'bin', process.platform === 'win32' ? 'node.exe' : 'node');
}

function installNpm(version) {
  return path.join(fetched('npm', version), 'bin/npm-cli.js');
}

/** The folder of a package from the registry. */
function fetched(name, version) {
  const folder = path.join(base, `${name}-${version}`);
  mkdirSync(folder, { recursive: true });
  npm(['install', '--prefix', folder, '--no-audit', '--no-fund', `${name}@${version}`], folder);
  return path.join(folder, 'node_modules', name);
}

/** Installs, looks, runs; the rest of a row. Seconds are of `npm install` alone. */
function tryOne({ node, npmCli }, { kernels, scripts, onnxruntime }) {
  const project = mkdtempSync(path.join(base, 'project-'));
  writeFileSync(path.join(project, 'package.json'), '{"private":true}');
  const env = {
    ...process.env,
    PATH: `${path.dirname(node)}${path.delimiter}${process.env.PATH}`,
    HYBRID_INFER_CACHE: path.join(project, 'cache'),
    ...(kernels !== 'compiler' && { CXX: path.join(base, 'no-compiler') }),
  };
  const run = (args, cwd = project) => spawnSync(node, args, { cwd, env, encoding: 'utf8' });
  const command = (...args) =>
    run([path.join(project, 'node_modules/hybrid-infer/dist/cli/main.js'), ...args]);
  try {
    const began = performance.now();
    const installed = run([
      ...[npmCli, 'install', main, ...(kernels === 'prebuilt' ? [native] : []), '--no-audit', '--no-fund'],
      ...(scripts === 'off' ? ['--ignore-scripts'] : []),
      ...(onnxruntime === 'without' ? ['--omit=optional'] : []),
    ]);
    const seconds = (performance.now() - began) / 1000;
    const megabytes = folderBytes(path.join(project, 'node_modules')) / 1e6;
    if (kernels === 'compiler')
      run([npmCli, 'run', 'build:native'], path.join(project, 'node_modules/hybrid-infer'));
    const doctor = command('doctor', '--json');
    const report = doctor.status === 0 ? JSON.parse(doctor.stdout) : null;
    return {
      install: installed.status === 0 ? 'ok' : `exit ${installed.status}`,
      seconds: seconds.toFixed(1),
      MB: megabytes.toFixed(0),
      'came with it': existsSync(path.join(project, 'node_modules/onnxruntime-node')) ? 'yes' : 'no',
      doctor: report === null ? outcome(doctor) : report.kernels.name,
      run: outcome(command('run', 'Once upon a time', '-n', '20', '--quiet', '--json')),
      profile: outcome(command('profile', '--quick', '--tokens', '1024', '--samples', '512', '--json')),
    };
  } finally {
    rmSync(project, { recursive: true, force: true });
  }
}

/** What came of a command asked for JSON: an error has its code there. */
function outcome({ status, stdout }) {
  if (status === 0) return 'ran';
  try {
    return `${JSON.parse(stdout).error.code}, exit ${status}`;
  } catch {
    return `exit ${status}`;
  }
}

function folderBytes(folder) {
  return readdirSync(folder, { withFileTypes: true }).reduce((sum, entry) => {
    const file = path.join(folder, entry.name);
    return sum + (entry.isDirectory() ? folderBytes(file) : entry.isFile() ? statSync(file).size : 0);
  }, 0);
}

/** Each row as it comes: the next one takes a while. */
function show(row) {
  rows.push(row);
  if (values.json) return;
  const line = (cells) => console.log(`| ${cells.join(' | ')} |`);
  if (rows.length === 1) {
    line(Object.keys(row));
    line(Object.keys(row).map(() => '---'));
  }
  line(Object.values(row));
}
