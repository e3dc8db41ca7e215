/**
 * An npm registry on this machine: the packages of this project's own node_modules, and tarballs just packed. Real
 * `npm install` runs against it, without any network.
 */
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join, sep } from 'node:path';

interface Manifest {
  name: string;
  version: string;
}
interface Entry {
  manifest: Manifest;
  /** Its tarball; made from the installed folder when first asked for. */
  tarball: () => Buffer;
}

export interface Registry {
  url: string;
  close(): void;
}

/**
 * @param tarballs files of `npm pack`
 * @param without packages that nobody publishes here
 */
export async function startRegistry(
  tarballs: readonly string[],
  without: readonly string[],
): Promise<Registry> {
  const entries = [...installedPackages(), ...tarballs.map(packed)].filter(
    ({ manifest }) => !without.includes(manifest.name),
  );
  let url = '';
  const server = createServer((request, response) => {
    const [, name, version] = /^\/((?:@[^/]+\/)?[^/]+)(?:\/-\/(.+)\.tgz)?$/.exec(
      decodeURIComponent(request.url ?? ''),
    ) ?? [null, '', ''];
    const found = entries.filter((entry) => entry.manifest.name === name);
    const asked = found.find((entry) => entry.manifest.version === version);
    if (version !== undefined && asked) response.end(asked.tarball());
    else if (version === undefined && found.length > 0) response.end(JSON.stringify(document(found, url)));
    else response.writeHead(404).end('{"error":"not found"}');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    url,
    close: () => {
      server.close();
      server.closeAllConnections();
    },
  };
}

/** What a registry says of a package. */
function document(found: readonly Entry[], url: string): object {
  const versions = found.map(({ manifest }) => {
    const dist = { tarball: `${url}/${manifest.name}/-/${manifest.version}.tgz` };
    return [manifest.version, { ...manifest, dist }];
  });
  const [{ manifest }] = found;
  return {
    name: manifest.name,
    'dist-tags': { latest: found.at(-1)!.manifest.version },
    versions: Object.fromEntries(versions) as object,
  };
}

/** Everything installed here that a user gets too, by the lock file. */
function installedPackages(): Entry[] {
  const { packages } = JSON.parse(readFileSync('package-lock.json', 'utf8')) as {
    packages: Record<string, { dev?: boolean }>;
  };
  const seen = new Set<string>();
  return Object.entries(packages)
    .filter(([folder, { dev }]) => folder !== '' && !dev && existsSync(folder))
    .map(([folder]) => ({ folder, manifest: manifestOf(folder) }))
    .filter(({ manifest }) => {
      const id = `${manifest.name}@${manifest.version}`;
      return !seen.has(id) && seen.add(id);
    })
    .map(({ folder, manifest }) => ({ manifest, tarball: once(() => packInstalled(folder)) }));
}

const manifestOf = (folder: string): Manifest =>
  JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as Manifest;

function packInstalled(folder: string): Buffer {
  const scratch = mkdtempSync(join(tmpdir(), 'registry-'));
  try {
    const filter = (path: string): boolean => !path.slice(folder.length).includes(`${sep}node_modules`);
    cpSync(folder, join(scratch, 'package'), { recursive: true, filter });
    return tar(['-cf', '-', '-C', scratch, 'package']);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

function packed(file: string): Entry {
  const bytes = readFileSync(file);
  const text = tar(['-xzOf', file, 'package/package.json']).toString();
  return { manifest: JSON.parse(text) as Manifest, tarball: () => bytes };
}

const tar = (args: string[]): Buffer => execFileSync('tar', args, { maxBuffer: 2 ** 30 });

function once<T>(make: () => T): () => T {
  let made: { value: T } | undefined;
  return () => (made ??= { value: make() }).value;
}
