/** What both packers share: the folder of this project, where tarballs go, and `npm pack` of a folder. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

export const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
export const manifest = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'));

/** The folder for tarballs, made: `--out FOLDER`. Default: packages/ */
export function outFolder() {
  const { values } = parseArgs({ options: { out: { type: 'string', default: 'packages' } } });
  const folder = path.resolve(values.out);
  mkdirSync(folder, { recursive: true });
  return folder;
}

/** npm with these arguments; what it prints. */
export const npm = (args, cwd) =>
  execFileSync('npm', args, { cwd, encoding: 'utf8', shell: process.platform === 'win32' });

/** The tarball of `folder`, written to `out`; its path. */
export function pack(folder, out) {
  const [{ filename }] = JSON.parse(
    npm(['pack', '--json', '--ignore-scripts', '--pack-destination', out], folder),
  );
  return path.join(out, filename);
}
