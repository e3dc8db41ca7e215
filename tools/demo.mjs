#!/usr/bin/env node
/**
 * `npm run demo`: what the program does, in four steps with the command line a user has: profile the demo model, write
 * with the plan that came out, compare the FFN modes, and say what to type next.
 */
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { mkdirSync } from 'node:fs';
import path from 'node:path';
import { performance } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const folder = path.join(root, '.demo');
const began = performance.now();

/** Enough to see what profiling does in seconds; the artifacts that come with the model saw eight times as much. */
const PROFILE = ['profile', '--quick', '--tokens', '6144', '--samples', '4096', '--out', '.'];
const RUN = ['run', 'Once upon a time', '-n', '80', '--seed', '3', '--measure-recall'];
const BENCH = ['bench', '--ffn', 'dense,exact,predicted', '-r', '3', '-n', '64'];

mkdirSync(folder, { recursive: true });
if (hasOnnxRuntime())
  step('The demo model writes text; which neurons fire is recorded, predictors are fitted', PROFILE);
else console.log('onnxruntime-node is not installed: the predictors that come with the model are used.\n');
step('With that plan, only neurons that are predicted to fire are computed', RUN);
step('All neurons (dense), the active ones (exact), the predicted ones (predicted)', BENCH);
console.log(`
${((performance.now() - began) / 1000).toFixed(0)} s. Next:
  node dist/cli/main.js chat                                  let the demo model go on with what you type
  node dist/cli/main.js serve                                 OpenAI's HTTP API, and a page to chat in
  node dist/cli/main.js profile MODEL --text FILE             the same for a model of yours
  node dist/cli/main.js --help                                everything else`);

function step(what, args) {
  const shown = args.map((arg) => (arg.includes(' ') ? `"${arg}"` : arg)).join(' ');
  console.log(`\n== ${what}\n$ hybrid-infer ${shown}\n`);
  const main = path.join(root, 'dist/cli/main.js');
  const { status } = spawnSync(process.execPath, [main, ...args], { cwd: folder, stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
}

function hasOnnxRuntime() {
  try {
    createRequire(import.meta.url).resolve('onnxruntime-node');
    return true;
  } catch {
    return false;
  }
}
