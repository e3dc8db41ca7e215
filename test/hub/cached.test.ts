import { existsSync, rmSync, unlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { listCache, pulledPath, removePulled } from '../../src/hub/cached.js';
import { hubCache } from '../../src/hub/layout.js';
import { formatHubName, parseHubName } from '../../src/hub/repository.js';
import { retryAfter } from '../../src/hub/http.js';
import { startHub, tinyFiles, tree, type Hub } from './fixture.js';
import { REPOSITORY } from './hub-server.js';

let hub: Hub;
const files = tinyFiles();
beforeEach(async () => {
  hub = await startHub(files);
});
afterEach(() => hub.close());

describe('names', () => {
  it.each([
    ['hf:owner/name', { repository: 'owner/name', revision: 'main', file: null }],
    ['owner/name@v1.0', { repository: 'owner/name', revision: 'v1.0', file: null }],
    ['hf:owner/name@refs/pr/1:Q4_K_M', { repository: 'owner/name', revision: 'refs/pr/1', file: 'Q4_K_M' }],
  ])('%s is read', (text, name) => {
    expect(parseHubName(text)).toEqual(name);
    expect(parseHubName(formatHubName(name))).toEqual(name);
  });

  it.each([
    'hf:',
    'name',
    'a/b/c',
    '../x',
    'a/..',
    'a/b@../x',
    'a/b:../x',
    'a/b@',
    'a--b/c',
    '/a/b',
    'a/b:/x',
    'a b/c',
  ])('%j is refused', (text) => expect(() => parseHubName(text)).toThrow(/is no name of a model/));
});

describe('the cache folder', () => {
  it.each([
    [{ HF_HUB_CACHE: '/a' }, '/a'],
    [{ HUGGINGFACE_HUB_CACHE: '/b' }, '/b'],
    [{ HF_HOME: '/c' }, '/c/hub'],
    [{ XDG_CACHE_HOME: '/d' }, '/d/huggingface/hub'],
  ])('of %j is %s', (env, path) => expect(hubCache(env)).toBe(path));
});

describe('list', () => {
  it('names models as other commands take them', async () => {
    const { path, commit, bytes } = await hub.pull();
    expect(listCache(hub.cache)).toMatchObject({
      models: [{ name: `hf:${REPOSITORY}`, commit, refs: ['main'], kind: 'safetensors', path, bytes }],
      partial: [],
    });
  });

  it('leaves out a model whose weights are gone', async () => {
    const { path } = await hub.pull();
    unlinkSync(join(path, 'model.safetensors'));
    expect(listCache(hub.cache).models).toEqual([]);
    expect(() => pulledPath(`hf:${REPOSITORY}`, hub.cache)).toThrow(/not completely/);
  });

  it('of no folder is empty', () => {
    expect(listCache(join(hub.cache, 'nothing')).models).toEqual([]);
  });
});

describe('rm', () => {
  it('removes a repository with all of its revisions', async () => {
    const { bytes } = await hub.pull();
    expect(removePulled(REPOSITORY, hub.cache).freedBytes).toBeGreaterThanOrEqual(bytes);
    expect(tree(hub.cache)).toEqual([]);
  });

  it('removes one revision and the contents that no other needs', async () => {
    const first = await hub.pull();
    hub.server.publish({ ...files, 'generation_config.json': Buffer.from('{}') });
    const second = await hub.pull();
    removePulled(`${REPOSITORY}@${first.commit}`, hub.cache);
    expect(existsSync(first.path)).toBe(false);
    expect(existsSync(join(second.path, 'model.safetensors'))).toBe(true);
    expect(tree(join(hub.cache, 'models--tester--tiny-model/blobs'))).toHaveLength(5);
  });

  it('waits for no pull in progress: it says so', async () => {
    await hub.pull();
    const lock = join(hub.cache, 'models--tester--tiny-model/.hybrid-infer.lock');
    writeFileSync(lock, JSON.stringify({ pid: process.pid, start: '', host: 'elsewhere' }));
    expect(() => removePulled(REPOSITORY, hub.cache)).toThrow(/is held by process/);
    rmSync(lock);
  });

  it('of what was not pulled is an error', () => {
    expect(() => removePulled('nobody/nothing', hub.cache)).toThrow(/was not pulled/);
  });
});

describe('Retry-After', () => {
  it.each([
    ['3', 3000],
    [new Date(5000).toUTCString(), 4000],
    ['soon', null],
    [undefined, null],
  ])('%s is %s ms', (value, ms) => expect(retryAfter(value, 1000)).toBe(ms));
});
