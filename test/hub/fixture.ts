/** A tiny model as a repository, a server that holds it, and a cache that is removed afterwards. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pull, type PullOptions, type Pulled } from '../../src/hub/pull.js';
import { parseHubName } from '../../src/hub/repository.js';
import { writeTinyFolder, type TinyOptions } from '../helpers/tiny-models.js';
import { listCache } from '../../src/hub/cached.js';
import { HubServer, REPOSITORY, type Fault } from './hub-server.js';
import { expect } from 'vitest';

export function tinyFiles(options: TinyOptions = {}): Record<string, Buffer> {
  const folder = writeTinyFolder(options);
  const files = Object.fromEntries(
    readdirSync(folder).map((name) => [name, readFileSync(join(folder, name))]),
  );
  rmSync(folder, { recursive: true });
  return files;
}

export interface Hub {
  server: HubServer;
  cache: string;
  /** Pull the tiny repository without waiting between tries. */
  pull(options?: PullOptions & { name?: string }): Promise<Pulled>;
  close(): Promise<void>;
}

export async function startHub(files = tinyFiles()): Promise<Hub> {
  const server = await HubServer.start(files);
  const cache = mkdtempSync(join(tmpdir(), 'hybrid-infer-hub-'));
  return {
    server,
    cache,
    pull: ({ name = REPOSITORY, ...options } = {}) =>
      pull(parseHubName(name), { endpoint: server.endpoint, cache, wait: async () => {}, ...options }),
    async close() {
      await server.close();
      rmSync(cache, { recursive: true, force: true });
    },
  };
}

/** Everything under a folder, without looking through links. */
export function tree(folder: string): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => !entry.isDirectory())
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1))
    .sort();
}

/** The look at the headers asks for ranges with an end. */
export const isHeaderRequest = (range: string | undefined): boolean => /-\d+$/.test(range ?? '');

/** A fault of the weights' transfer alone. */
export const storageFault =
  (fault: Fault): Fault =>
  (seen, response, content) =>
    seen.host === 'storage' &&
    content !== null &&
    !isHeaderRequest(seen.range) &&
    fault(seen, response, content);

export const weightRequests = (hub: Hub) =>
  hub.server.seen.filter((s) => s.host === 'storage' && !isHeaderRequest(s.range));

export function nothingLooksWhole(hub: Hub): void {
  expect(tree(hub.cache).filter((path) => /snapshots|refs/.test(path))).toEqual([]);
  expect(listCache(hub.cache).models).toEqual([]);
}
