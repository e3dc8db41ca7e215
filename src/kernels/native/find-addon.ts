/**
 * Which addon file belongs to this program: the one built here (dist/kernels/native), else the prebuilt package of
 * this platform, `@hybrid-infer/native-<os>-<cpu>[-<libc>]`, when it is of this version and kernel table.
 */
import { createRequire } from 'node:module';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { declarationsDigest } from './declarations.js';

/** A prebuilt package, in the words of package.json. */
export interface Prebuilt {
  name: string;
  os: NodeJS.Platform;
  cpu: NodeJS.Architecture;
  /** Linux only: an addon of one C library does not load beside the other. */
  libc?: 'glibc' | 'musl';
}

/** What package.json of a prebuilt package says beyond npm's fields. */
export interface PrebuiltManifest {
  version: string;
  /** `declarationsDigest()` of the sources it was built from. */
  kernelTable: string;
}

const prebuilt = (os: Prebuilt['os'], cpu: Prebuilt['cpu'], libc?: Prebuilt['libc']): Prebuilt => ({
  name: `@hybrid-infer/native-${[os, cpu, ...(libc ? [libc] : [])].join('-')}`,
  ...{ os, cpu, ...(libc && { libc }) },
});

/** All that are published. */
export const PREBUILT: readonly Prebuilt[] = [
  prebuilt('linux', 'x64', 'glibc'),
  prebuilt('linux', 'x64', 'musl'),
  prebuilt('linux', 'arm64', 'glibc'),
  prebuilt('linux', 'arm64', 'musl'),
  prebuilt('darwin', 'x64'),
  prebuilt('darwin', 'arm64'),
  prebuilt('win32', 'x64'),
  prebuilt('win32', 'arm64'),
];

/** The one for this machine; undefined where there is none. */
export function prebuiltHere(): Prebuilt | undefined {
  const here = PREBUILT.filter(({ os, cpu }) => os === process.platform && cpu === process.arch);
  return here.length < 2 ? here[0] : here.find(({ libc }) => libc === libcHere());
}

/** Node's own report names the C library that it runs on, when that is glibc. */
function libcHere(): 'glibc' | 'musl' {
  const report = process.report as typeof process.report & { excludeNetwork?: boolean };
  const before = report.excludeNetwork;
  report.excludeNetwork = true; // it would look up the names of all open connections
  const { header } = report.getReport() as unknown as { header: { glibcVersionRuntime?: string } };
  report.excludeNetwork = before;
  return header.glibcVersionRuntime ? 'glibc' : 'musl';
}

// ---- finding ---------------------------------------------------------------------------------------------

export type FoundAddon = { path: string } | { reason: string; hint: string };

/** Compiled code has the addon beside it; under test this file is in src/ and the addon in dist/. */
const FOLDER = import.meta.url.endsWith('.ts') ? '../../../dist/kernels/native/' : './';
const BUILT = fileURLToPath(new URL(FOLDER, import.meta.url));
const PACKAGE = fileURLToPath(new URL('../../../', import.meta.url));

export const ADDON_FILE = 'hybrid-infer.node';

export interface Search {
  /** Folder of an own build. */
  built: string;
  /** Folder of this package. */
  root: string;
  /** The package for this machine, and its folder when it is installed. */
  prebuilt: { name: string; folder: string | null } | null;
}

export function findAddon(search: Search = searchHere()): FoundAddon {
  const own = join(search.built, ADDON_FILE);
  if (existsSync(own)) return { path: own };
  const { version } = readJson(join(search.root, 'package.json')) as { version: string };
  const { prebuilt: found } = search;
  const add = found ? `add the package ${found.name}@${version}, or ` : '';
  // Inside node_modules there is no project to run scripts of.
  const installed = dirname(search.root.replace(/[\\/]$/, '')).endsWith('node_modules');
  const build = installed ? 'npm explore hybrid-infer -- npm run build:native' : 'npm run build:native';
  const hint = `To have them, ${add}install a C++ compiler and run \`${build}\`.`;
  if (found === null || found.folder === null) return { reason: whyNotBuilt(search, found?.name), hint };

  const manifest = readJson(join(found.folder, 'package.json')) as PrebuiltManifest;
  if (manifest.version !== version) {
    return { reason: `${found.name} is of version ${manifest.version}, hybrid-infer of ${version}`, hint };
  }
  if (manifest.kernelTable !== declarationsDigest()) {
    return { reason: `${found.name} was built from another kernel table than this program's`, hint };
  }
  return { path: join(found.folder, ADDON_FILE) };
}

function searchHere(): Search {
  const here = prebuiltHere();
  return {
    built: BUILT,
    root: PACKAGE,
    prebuilt: here ? { name: here.name, folder: folderOf(here.name) } : null,
  };
}

function folderOf(name: string): string | null {
  try {
    return dirname(createRequire(import.meta.url).resolve(`${name}/package.json`));
  } catch {
    return null;
  }
}

/** What tools/build-native.mjs wrote down, when a build was tried. */
function whyNotBuilt({ built }: Search, name: string | undefined): string {
  const info = join(built, 'build-info.json');
  if (existsSync(info)) {
    const { reason } = readJson(info) as { reason?: unknown };
    if (typeof reason === 'string') return reason;
  }
  return name === undefined
    ? `no prebuilt package for ${process.platform}/${process.arch}, and not built here`
    : `the package ${name} is not installed, and not built here`;
}

const readJson = (file: string): unknown => JSON.parse(readFileSync(file, 'utf8'));
