#!/usr/bin/env node
/**
 * Makes this tree release VERSION: checks it, then writes the version into package.json and the lock file and dates
 * the head of CHANGELOG.md. Commits nothing and publishes nothing; it prints what comes next.
 *
 *   node tools/release.mjs 0.2.0 [--root FOLDER] [--date 2026-01-31]
 */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const UNRELEASED = '## Unreleased';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    root: { type: 'string', default: path.dirname(path.dirname(fileURLToPath(import.meta.url))) },
    date: { type: 'string', default: new Date().toISOString().slice(0, 10) },
  },
});
const file = (name) => path.join(values.root, name);
const read = (name) => readFileSync(file(name), 'utf8');

const version = positionals[0] ?? '';
const manifest = JSON.parse(read('package.json'));
const lock = JSON.parse(read('package-lock.json'));
const changelog = read('CHANGELOG.md');

const problem = findProblem();
if (problem === null) release();
else {
  console.error(`release: ${problem}`);
  process.exitCode = 2;
}

/** Why this tree cannot become that release, or null. */
function findProblem() {
  if (!/^\d+\.\d+\.\d+$/.test(version)) return `expected a version such as 0.2.0, found "${version}"`;
  if (!isLater(version, manifest.version)) return `${version} is not later than ${manifest.version}`;
  if (lock.version !== manifest.version)
    return `the lock file is of version ${lock.version}: run npm install`;
  if (notesOf(changelog).trim() === '') return `CHANGELOG.md has nothing under "${UNRELEASED}"`;
  if (existsSync(file('.git')) && git('status', '--porcelain') !== '') return 'there are uncommitted changes';
  return null;
}

function isLater(a, b) {
  const [x, y] = [a, b].map((text) => text.split('.').map(Number));
  const at = x.findIndex((part, i) => part !== y[i]);
  return at >= 0 && x[at] > y[at];
}

/** What stands between the head "Unreleased" and the next one. */
function notesOf(text) {
  const begin = text.indexOf(UNRELEASED);
  return begin < 0 ? '' : text.slice(begin + UNRELEASED.length).split('\n## ')[0];
}

function release() {
  const write = (name, text) => writeFileSync(file(name), text);
  write(
    'package.json',
    read('package.json').replace(`"version": "${manifest.version}"`, `"version": "${version}"`),
  );
  lock.version = version;
  lock.packages[''].version = version;
  write('package-lock.json', `${JSON.stringify(lock, null, 2)}\n`);
  write('CHANGELOG.md', changelog.replace(UNRELEASED, `${UNRELEASED}\n\n## ${version} (${values.date})`));
  console.log(`Version ${version}. Next:
  npm run lint && npm run typecheck && npm test
  git commit -am "Release ${version}" && git tag v${version} && git push --follow-tags
The workflow release.yml builds the native packages of all platforms and publishes them before hybrid-infer.`);
}

function git(...args) {
  return execFileSync('git', args, { cwd: values.root, encoding: 'utf8' }).trim();
}
