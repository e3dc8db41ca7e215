/** BAD-INPUTS D1: what a server may say, and what happens then. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { nothingLooksWhole, startHub, tinyFiles, type Hub } from './fixture.js';

let hub: Hub;
const files = { ...tinyFiles(), 'README.md': Buffer.from('# Tiny') };

beforeEach(async () => {
  hub = await startHub(files);
});
afterEach(() => hub.close());

describe('a server that is not to be trusted', () => {
  it.each(['../escape', '/etc/passwd', 'a/../../b', 'C:\\x', 'nul', 'a//b', 'a\0b', 'a/./b', ''])(
    'cannot name a file %j',
    async (path) => {
      hub.server.change = (entries) => [...entries, { type: 'file', path, size: 1, oid: '0'.repeat(40) }];
      await expect(hub.pull()).rejects.toMatchObject({ code: 'FILE_INVALID' });
      nothingLooksWhole(hub);
    },
  );

  it.each([
    [{ size: -1 }, 'size'],
    [{ size: 2 ** 60 }, 'size'],
    [{ oid: '../../x' }, 'hash'],
    [{ oid: undefined }, 'hash'],
  ])('cannot list %j', async (lie, named) => {
    hub.server.change = (entries) =>
      entries.map((entry) => (entry.path === 'README.md' ? { ...entry, ...lie } : entry));
    await expect(hub.pull()).rejects.toMatchObject({ message: expect.stringContaining(named) });
  });

  it('cannot list files without end', async () => {
    const entry = { type: 'file', path: 'x', size: 1, oid: '0'.repeat(40) };
    hub.server.change = (entries) => [...entries, ...Array.from({ length: 10_001 }, () => entry)];
    await expect(hub.pull()).rejects.toMatchObject({
      code: 'FILE_INVALID',
      message: expect.stringContaining('10000 files'),
    });
    hub.server.change = () => 'x'.repeat(9 << 20);
    await expect(hub.pull()).rejects.toMatchObject({
      code: 'DOWNLOAD_FAILED',
      message: expect.stringContaining('longer than'),
    });
  });

  it('cannot name a shard outside the listing', async () => {
    await hub.close();
    const sharded = tinyFiles({ shards: 2 });
    const index = JSON.parse(sharded['model.safetensors.index.json'].toString()) as {
      weight_map: Record<string, string>;
    };
    index.weight_map['model.norm.weight'] = '../../../outside.safetensors';
    hub = await startHub({ ...sharded, 'model.safetensors.index.json': Buffer.from(JSON.stringify(index)) });
    await expect(hub.pull()).rejects.toMatchObject({
      code: 'FILE_INVALID',
      message: expect.stringContaining('outside.safetensors'),
    });
  });

  it('cannot redirect in a circle or to a file address', async () => {
    hub.server.fault = (seen, response) => Boolean(response.writeHead(302, { location: seen.path }).end());
    await expect(hub.pull()).rejects.toMatchObject({ message: expect.stringContaining('redirects') });
    hub.server.fault = (_, response) =>
      Boolean(response.writeHead(302, { location: 'file:///etc/passwd' }).end());
    await expect(hub.pull()).rejects.toMatchObject({ code: 'DOWNLOAD_FAILED' });
  });
});
