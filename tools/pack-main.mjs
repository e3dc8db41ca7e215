#!/usr/bin/env node
/**
 * The tarball that is published: what `files` of package.json names, with a manifest that has no scripts to install
 * and names the prebuilt kernels of all platforms as optional packages. They cannot be in the repository's own
 * package.json, because its lock file could not hold packages that are only published together with it.
 *
 *   npm run build && node tools/pack-main.mjs [--out packages]
 */
import { cpSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { PREBUILT } from '../dist/kernels/native/find-addon.js';
import { manifest, npm, outFolder, pack, root } from './pack-folder.mjs';

const out = outFolder();
const stage = mkdtempSync(path.join(tmpdir(), 'hybrid-infer-pack-'));
try {
  const [{ files }] = JSON.parse(npm(['pack', '--dry-run', '--json', '--ignore-scripts'], root));
  for (const file of files) cpSync(path.join(root, file.path), path.join(stage, file.path));
  writeFileSync(path.join(stage, 'package.json'), `${JSON.stringify(published(manifest), null, 2)}\n`);
  console.log(pack(stage, out));
} finally {
  rmSync(stage, { recursive: true, force: true });
}

/** @returns package.json for users: nothing that only makes sense in a clone */
function published({ scripts, optionalDependencies, ...rest }) {
  for (const field of ['devDependencies', 'overrides', 'allowScripts']) delete rest[field];
  const prebuilt = Object.fromEntries(PREBUILT.map(({ name }) => [name, manifest.version]));
  return {
    ...rest,
    scripts: { 'build:native': scripts['build:native'] },
    optionalDependencies: { ...prebuilt, ...optionalDependencies },
  };
}
