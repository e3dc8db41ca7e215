/** Connections that break, servers that refuse, disks that fill: nothing half-written looks whole. */
import { readFileSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { HybridError } from '../../src/errors.js';
import { listCache } from '../../src/hub/cached.js';
import {
  isHeaderRequest,
  nothingLooksWhole,
  startHub,
  storageFault,
  tinyFiles,
  tree,
  weightRequests,
  type Hub,
} from './fixture.js';
import { REPOSITORY, sendFile, sha256 } from './hub-server.js';

let hub: Hub;
const files = tinyFiles();
const weights = files['model.safetensors'];

beforeEach(async () => {
  hub = await startHub(files);
});
afterEach(() => hub.close());

describe('faults on the way', () => {
  it('waits as long as Retry-After says', async () => {
    const waits: number[] = [];
    let refusals = 2;
    hub.server.fault = storageFault((_, response) =>
      refusals-- > 0 ? Boolean(response.writeHead(429, { 'retry-after': '7' }).end()) : false,
    );
    await hub.pull({ wait: async (ms) => void waits.push(ms) });
    expect(waits).toEqual([7000, 7000]);
  });

  it('gives up with one error when the server keeps refusing, or asks for hours', async () => {
    hub.server.fault = storageFault((_, response) => Boolean(response.writeHead(503).end()));
    await expect(hub.pull()).rejects.toMatchObject({
      code: 'DOWNLOAD_FAILED',
      message: expect.stringContaining('503'),
    });
    hub.server.fault = storageFault((_, response) =>
      Boolean(response.writeHead(429, { 'retry-after': '9999' }).end()),
    );
    await expect(hub.pull()).rejects.toMatchObject({
      message: expect.stringContaining('asks to wait 9999 s'),
    });
    nothingLooksWhole(hub);
  });

  it('goes on by range where the connection was cut, again and again', async () => {
    const piece = Math.ceil(weights.length / 4);
    hub.server.fault = storageFault((seen, response, content) => {
      const begin = Number(/\d+/.exec(seen.range ?? '')?.[0] ?? 0);
      response.writeHead(begin ? 206 : 200, {
        'content-length': content!.length - begin,
        ...(begin ? { 'content-range': `bytes ${begin}-${content!.length - 1}/${content!.length}` } : {}),
      });
      response.write(content!.subarray(begin, begin + piece), () => setTimeout(() => response.destroy(), 20));
      return true;
    });
    const { path } = await hub.pull();
    expect(weightRequests(hub).length).toBeGreaterThanOrEqual(4);
    expect(readFileSync(join(path, 'model.safetensors')).equals(weights)).toBe(true);
  });

  it('begins again when the server has no ranges', async () => {
    let cut = true;
    hub.server.fault = storageFault((_, response, content) => {
      if (!cut) return (sendFile(response, content!, undefined), true);
      cut = false;
      response.writeHead(200, { 'content-length': content!.length });
      response.write(content!.subarray(0, 1000), () => setTimeout(() => response.destroy(), 20));
      return true;
    });
    const { path } = await hub.pull();
    expect(readFileSync(join(path, 'model.safetensors')).equals(weights)).toBe(true);
  });

  it('refuses content with another hash and keeps nothing of it', async () => {
    const wrong = Buffer.from(weights);
    wrong[wrong.length - 1] ^= 1;
    hub.server.fault = storageFault((seen, response) => (sendFile(response, wrong, seen.range), true));
    await expect(hub.pull()).rejects.toMatchObject({
      code: 'FILE_INVALID',
      message: expect.stringContaining(sha256(weights)),
    });
    expect(tree(hub.cache).filter((path) => path.includes(sha256(weights)))).toEqual([]);
    nothingLooksWhole(hub);
  });

  it('refuses more bytes than were listed', async () => {
    hub.server.fault = storageFault(
      (_, response, content) => (sendFile(response, Buffer.concat([content!, content!]), undefined), true),
    );
    await expect(hub.pull()).rejects.toMatchObject({
      code: 'FILE_INVALID',
      message: expect.stringContaining('sends more'),
    });
    nothingLooksWhole(hub);
  });

  it('does not join old bytes with new ones when the file changes on the server', async () => {
    hub.server.fault = (seen, response) =>
      seen.host === 'hub' && seen.path.endsWith('model.safetensors') && !isHeaderRequest(seen.range)
        ? Boolean(
            response
              .writeHead(302, {
                location: hub.server.storageOrigin + seen.path,
                'x-linked-etag': `"${'0'.repeat(64)}"`,
              })
              .end(),
          )
        : false;
    await expect(hub.pull()).rejects.toMatchObject({
      code: 'DOWNLOAD_FAILED',
      message: expect.stringContaining('was changed on the server'),
    });
    nothingLooksWhole(hub);
  });

  it('begins again when what an earlier try left is damaged', async () => {
    await expect(hub.pull({ write: fullAfter(weights.length / 2) })).rejects.toMatchObject({
      code: 'IO_FAILED',
    });
    const part = join(hub.cache, 'models--tester--tiny-model/blobs', `${sha256(weights)}.part`);
    const bytes = readFileSync(part);
    bytes[0] ^= 255;
    writeFileSync(part, bytes);
    const { path } = await hub.pull();
    expect(readFileSync(join(path, 'model.safetensors')).equals(weights)).toBe(true);
  });

  it('resumes after a full disk, and the file is the same byte for byte', async () => {
    const failing = hub.pull({ write: fullAfter(30_000) });
    await expect(failing).rejects.toMatchObject({
      code: 'IO_FAILED',
      hint: expect.stringContaining('space'),
    });
    nothingLooksWhole(hub);
    expect(listCache(hub.cache).partial).toMatchObject([{ repository: REPOSITORY }]);
    const { path } = await hub.pull();
    expect(weightRequests(hub).at(-1)?.range).toMatch(/^bytes=\d+-$/);
    expect(readFileSync(join(path, 'model.safetensors')).equals(weights)).toBe(true);
  });

  it('takes the new files, and nothing of the old ones, when the branch moved on in between', async () => {
    await expect(hub.pull({ write: fullAfter(30_000) })).rejects.toMatchObject({ code: 'IO_FAILED' });
    const moved = Buffer.from(weights);
    moved[moved.length - 1] ^= 1;
    const commit = hub.server.publish({ ...files, 'model.safetensors': moved });
    const pulled = await hub.pull();
    expect(pulled.commit).toBe(commit);
    expect(readFileSync(join(pulled.path, 'model.safetensors')).equals(moved)).toBe(true);
    expect(weightRequests(hub).at(-1)?.range).toBeUndefined();
  });

  it('takes a part of any length, also a longer one than the file', async () => {
    const part = join(hub.cache, 'models--tester--tiny-model/blobs', `${sha256(weights)}.part`);
    for (const length of [0, 1, weights.length - 1, weights.length, weights.length + 1]) {
      await hub.close();
      hub = await startHub(files);
      const path = part.replace(/^.*models--/, `${hub.cache}/models--`);
      await expect(hub.pull({ write: fullAfter(20_000) })).rejects.toThrow();
      writeFileSync(path, weights);
      truncateSync(path, length);
      const pulled = await hub.pull();
      const content = readFileSync(join(pulled.path, 'model.safetensors'));
      // From the second byte on the part is right; a longer one is thrown away.
      expect(sha256(content)).toBe(sha256(weights));
    }
  });

  it('ends at once when aborted, and leaves nothing that looks whole', async () => {
    const stop = new AbortController();
    hub.server.fault = storageFault((_, response, content) => {
      response.writeHead(200, { 'content-length': content!.length });
      response.write(content!.subarray(0, 1000), () => stop.abort());
      return true;
    });
    await expect(hub.pull({ signal: stop.signal })).rejects.toMatchObject({ code: 'ABORTED' });
    nothingLooksWhole(hub);
  });

  it('two pulls at once download every file once', async () => {
    const [a, b] = await Promise.all([hub.pull(), hub.pull()]);
    expect(a.path).toBe(b.path);
    expect(weightRequests(hub)).toHaveLength(1);
    expect(Math.min(a.downloadedBytes, b.downloadedBytes)).toBe(0);
  });
});

/** A disk with room for so many bytes of the weights. */
function fullAfter(room: number): NonNullable<Parameters<Hub['pull']>[0]>['write'] {
  let left = room;
  return (fd, bytes, position, path) => {
    if (!path.includes(sha256(weights))) return void writeSync(fd, bytes, 0, bytes.length, position);
    if (bytes.byteLength > left) {
      writeSync(fd, bytes, 0, left, position);
      throw new HybridError('IO_FAILED', `writing ${path} failed: no space left`, {
        hint: 'Free some space.',
      });
    }
    left -= bytes.byteLength;
    writeSync(fd, bytes, 0, bytes.length, position);
  };
}
