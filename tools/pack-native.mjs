#!/usr/bin/env node
/**
 * The prebuilt kernels of this platform as a package of their own: the addon of the last build, and a manifest that
 * npm installs on such machines only. The version and the kernel table in it are checked at run time.
 *
 *   npm run build && node tools/pack-native.mjs [--out packages]
 */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { declarationsDigest } from '../dist/kernels/native/declarations.js';
import { ADDON_FILE, prebuiltHere } from '../dist/kernels/native/find-addon.js';
import { manifest, outFolder, pack, root } from './pack-folder.mjs';

const built = path.join(root, 'dist/kernels/native');
const here = prebuiltHere();
const info = JSON.parse(readFileSync(path.join(built, 'build-info.json'), 'utf8'));
if (here === undefined) fail(`no prebuilt package for ${process.platform}/${process.arch}`);
else if (!info.available) fail(`nothing to pack, native kernels were not built: ${info.reason}`);
else writePackage(here);

function writePackage({ name, os, cpu, libc }) {
  const out = outFolder();
  const stage = mkdtempSync(path.join(tmpdir(), 'hybrid-infer-pack-'));
  try {
    const { version, license, engines, repository } = manifest;
    const description = `Native kernels of hybrid-infer for ${[os, cpu, libc].filter(Boolean).join(' ')}`;
    const content = {
      ...{ name, version, description, license, engines, repository, main: ADDON_FILE },
      ...{ os: [os], cpu: [cpu], ...(libc && { libc: [libc] }) },
      files: [ADDON_FILE, 'build-info.json'],
      kernelTable: declarationsDigest(),
    };
    writeFileSync(path.join(stage, 'package.json'), `${JSON.stringify(content, null, 2)}\n`);
    const { compiler, flags, units } = info;
    writeFileSync(
      path.join(stage, 'build-info.json'),
      `${JSON.stringify({ compiler, flags, units }, null, 2)}\n`,
    );
    writeFileSync(
      path.join(stage, 'README.md'),
      `# ${name}\n\n${description}, version ${version}: a part of hybrid-infer, which finds it by itself. Without it,\nWebAssembly kernels run.\n`,
    );
    cpSync(path.join(root, 'LICENSE'), path.join(stage, 'LICENSE'));
    cpSync(path.join(built, ADDON_FILE), path.join(stage, ADDON_FILE));
    console.log(pack(stage, out));
  } finally {
    rmSync(stage, { recursive: true, force: true });
  }
}

function fail(reason) {
  console.error(`pack-native: ${reason}`);
  process.exitCode = 1;
}
