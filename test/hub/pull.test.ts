import { lstatSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { pulledPath } from '../../src/hub/cached.js';
import { openModel } from '../../src/model/open-model.js';
import { tinyGgufBytes } from '../helpers/tiny-gguf.js';
import { nothingLooksWhole, startHub, tinyFiles, weightRequests, type Hub } from './fixture.js';
import { REPOSITORY, sha256 } from './hub-server.js';

let hub: Hub;
const files = tinyFiles();
const weights = files['model.safetensors'];

beforeEach(async () => {
  hub = await startHub({
    ...files,
    'README.md': Buffer.from('# Tiny'),
    'pytorch_model.bin': Buffer.alloc(5000),
  });
});
afterEach(() => hub.close());

describe('pull', () => {
  it('brings a model that loads, in the layout of the Hugging Face cache', async () => {
    const result = await hub.pull();
    expect(result).toMatchObject({ repository: REPOSITORY, license: 'mit', complete: true });
    expect(lstatSync(join(result.path, 'config.json')).isSymbolicLink()).toBe(true);
    const folder = join(hub.cache, 'models--tester--tiny-model');
    expect(readFileSync(join(folder, 'refs/main'), 'utf8')).toBe(result.commit);
    expect(readFileSync(join(folder, 'blobs', sha256(weights))).equals(weights)).toBe(true);
    const model = await openModel(pulledPath(`hf:${REPOSITORY}`, hub.cache));
    expect(model.name).toBe('tiny-model');
    await model.close();
  });

  it('takes only the files a model needs', async () => {
    const { files: taken } = await hub.pull();
    expect(taken.map((file) => file.path).sort()).toEqual([
      'config.json',
      'generation_config.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
    ]);
  });

  it('takes an older tokenizer where there is no tokenizer.json, and refuses a model without any', async () => {
    const { 'tokenizer.json': _, ...rest } = files;
    hub.server.publish({ ...rest, 'tokenizer.model': Buffer.from([0x0a]) });
    expect((await hub.pull({ force: true })).files.map((file) => file.path)).toContain('tokenizer.model');
    hub.server.publish(rest);
    await expect(hub.pull()).rejects.toMatchObject({
      code: 'MODEL_UNSUPPORTED',
      message: expect.stringContaining('tokenizer'),
    });
  });

  it('takes every shard that the index names and no other', async () => {
    await hub.close();
    hub = await startHub({ ...tinyFiles({ shards: 3 }), 'extra.safetensors': Buffer.alloc(100) });
    const { path, files: taken } = await hub.pull();
    expect(taken.filter((file) => file.path.startsWith('model-'))).toHaveLength(3);
    expect(taken.map((file) => file.path)).not.toContain('extra.safetensors');
    await (await openModel(path)).close();
  });

  it('downloads nothing a second time', async () => {
    await hub.pull();
    const again = await hub.pull();
    expect(again.downloadedBytes).toBe(0);
    expect(weightRequests(hub)).toHaveLength(1);
  });

  it('shows a model from its headers before its weights come, and leaves them when told to', async () => {
    let seen = '';
    const result = await hub.pull({
      onModel: async (model) => {
        seen = model.config.activation.kind;
        return false;
      },
    });
    expect(seen).toBe('relu');
    expect(result.complete).toBe(false);
    expect(weightRequests(hub)).toEqual([]);
    nothingLooksWhole(hub);
  });

  it('refuses a model it cannot load before downloading its weights, unless forced', async () => {
    const config = JSON.parse(files['config.json'].toString()) as object;
    hub.server.publish({
      ...files,
      'config.json': Buffer.from(JSON.stringify({ ...config, architectures: ['Strange'] })),
    });
    await expect(hub.pull()).rejects.toMatchObject({
      code: 'MODEL_UNSUPPORTED',
      message: expect.stringContaining('Strange'),
    });
    expect(weightRequests(hub)).toEqual([]);
    nothingLooksWhole(hub);
    expect((await hub.pull({ force: true })).complete).toBe(true);
  });

  it('follows a branch to its new commit and keeps the old one', async () => {
    const first = await hub.pull();
    hub.server.publish({ ...files, 'generation_config.json': Buffer.from('{}') });
    const second = await hub.pull();
    expect(second.commit).not.toBe(first.commit);
    expect(weightRequests(hub)).toHaveLength(1); // the weights are the same blob
    expect(pulledPath(`hf:${REPOSITORY}`, hub.cache)).toBe(second.path);
    expect(pulledPath(`hf:${REPOSITORY}@${first.commit}`, hub.cache)).toBe(first.path);
  });
});

describe('GGUF files', () => {
  const q4 = tinyGgufBytes();
  beforeEach(() => {
    hub.server.publish({ 'm.Q4_K_M.gguf': q4, 'm.IQ4_K_M.gguf': Buffer.alloc(10), 'sub/m.Q8_0.gguf': q4 });
  });

  it('are chosen by part of the name', async () => {
    const { path } = await hub.pull({ name: `${REPOSITORY}:q4_k_m` });
    expect(path).toMatch(/snapshots\/[0-9a-f]{40}\/m\.Q4_K_M\.gguf$/);
    expect(pulledPath(`hf:${REPOSITORY}`, hub.cache)).toBe(path);
    await (await openModel(path)).close();
  });

  it('are listed when the choice is open', async () => {
    await expect(hub.pull()).rejects.toMatchObject({
      code: 'USAGE',
      hint: expect.stringContaining('sub/m.Q8_0.gguf'),
    });
    await expect(hub.pull({ name: `${REPOSITORY}:Q2` })).rejects.toMatchObject({
      code: 'USAGE',
      message: expect.stringContaining('no GGUF file with "Q2"'),
    });
  });

  it('in parts come together, and count as one only when they are complete', async () => {
    const part = (i: number): string => `big-0000${i}-of-00002.gguf`;
    hub.server.publish({ [part(1)]: q4, [part(2)]: Buffer.alloc(100) });
    const { path, files: taken } = await hub.pull({ force: true });
    expect(taken.map((file) => file.path)).toEqual([part(1), part(2)]);
    expect(path.endsWith(part(1))).toBe(true);
    expect(pulledPath(`hf:${REPOSITORY}`, hub.cache)).toBe(path);
    hub.server.publish({ [part(1)]: q4 });
    await expect(hub.pull()).rejects.toMatchObject({ message: expect.stringContaining('only 1 parts') });
  });

  it('need their name when two were pulled', async () => {
    await hub.pull({ name: `${REPOSITORY}:Q4_K_M` });
    await hub.pull({ name: `${REPOSITORY}:Q8_0` });
    expect(() => pulledPath(`hf:${REPOSITORY}`, hub.cache)).toThrow(/stands for 2 pulled models/);
    expect(pulledPath(`hf:${REPOSITORY}:Q8_0`, hub.cache)).toMatch(/sub\/m\.Q8_0\.gguf$/);
  });
});

describe('the token', () => {
  it('is sent to the Hub and not to the host it redirects to', async () => {
    await hub.pull({ token: 'hf_secret' });
    const byHost = (host: string) => hub.server.seen.filter((seen) => seen.host === host);
    expect(byHost('storage').length).toBeGreaterThan(0);
    expect(byHost('hub').every((seen) => seen.authorization === 'Bearer hf_secret')).toBe(true);
    expect(byHost('storage').every((seen) => seen.authorization === undefined)).toBe(true);
  });

  it('is asked for when the Hub refuses', async () => {
    hub.server.fault = (_, response) => Boolean(response.writeHead(401).end());
    await expect(hub.pull()).rejects.toMatchObject({
      code: 'DOWNLOAD_FAILED',
      hint: expect.stringContaining('HF_TOKEN'),
    });
  });
});
