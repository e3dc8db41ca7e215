import { spawnSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, describe, expect, it } from 'vitest';

import { GpuMailbox } from '../../src/engine/gpu-mailbox.js';
import { GpuHost, type GpuHostOptions } from '../../src/gpu/gpu-host.js';
import { planUnits, type GpuPlacement } from '../../src/gpu/hot-ffn.js';
import type { Pack } from '../../src/pack/types.js';
import { testProviders } from './adapter.js';
import { memoryPack, randomFloats } from './memory-pack.js';

const providers = await testProviders();
const folder = mkdtempSync(join(tmpdir(), 'hybrid-gpu-'));
const path = join(folder, 'model.hpack');
const source = memoryPack('q8', { kind: 'relu', threshold: 0 });
writeFileSync(path, source.bytes);
const fd = openSync(path, 'r');
const pack: Pack = { path, header: source.header, fd, close: () => {} };
afterAll(() => {
  closeSync(fd);
  rmSync(folder, { recursive: true, force: true });
});

const { hiddenSize: d, vocabSize } = source.header.config;
const placement: GpuPlacement = {
  weights: 'packed',
  lmHead: true,
  layers: [{ qkv: false, o: true, hotNeurons: Uint32Array.from({ length: 64 }, (_, i) => i) }],
};
const MAX_TOKENS = 5;
/** WebGPU reads the pack's own rows. */
const placementFor = (provider: GpuHostOptions['provider']): GpuPlacement => ({
  ...placement,
  weights: provider === 'webgpu' ? 'rows' : 'packed',
});
const start = (options: Partial<GpuHostOptions> = {}) => {
  const provider = options.provider ?? 'cpu';
  return GpuHost.start({ pack, placement: placementFor(provider), provider, maxTokens: MAX_TOKENS, lanes: 1, ...options }); // prettier-ignore
};

function lane(host: GpuHost): GpuMailbox {
  const { buffer, byteOffset, layout } = host.engine.mailbox;
  return new GpuMailbox(buffer, byteOffset, layout);
}

function product(x: Float32Array, w: Float32Array, outputs: number, tokens: number): number[] {
  const y: number[] = [];
  for (let t = 0; t < tokens; t++)
    for (let r = 0; r < outputs; r++) {
      let sum = 0;
      for (let c = 0; c < d; c++) sum += w[r * d + c] * x[t * d + c];
      y.push(sum);
    }
  return y;
}

const expectClose = (actual: Float32Array, expected: number[]) =>
  expected.forEach((value, i) => expect(actual[i]).toBeCloseTo(value, 3));

describe.each(providers)('GPU worker on $provider', ({ provider, reason }) => {
  if (reason !== null) {
    it.skip(`skipped: ${reason}`, () => {});
    return;
  }

  it('holds the planned bytes', async () => {
    const host = await start({ provider });
    const planned = planUnits(pack.header, placementFor(provider)).reduce((sum, u) => sum + u.bytes, 0);
    // WebGPU's figure has what a run works in besides.
    if (provider === 'webgpu') expect(host.bytes).toBeGreaterThan(planned);
    else expect(host.bytes).toBe(planned);
    await host.close();
  });

  it('answers requests of one and of several tokens, with rows of the unit’s own width', async () => {
    const host = await start({ provider });
    const mailbox = lane(host);
    for (const tokens of [1, MAX_TOKENS]) {
      const x = randomFloats(tokens * d, tokens);
      mailbox.x.set(x);
      mailbox.wait(mailbox.post(host.engine.lmHead, tokens));
      expectClose(mailbox.y, product(x, source.floats.lmHead, vocabSize, tokens));
      mailbox.x.set(x);
      mailbox.wait(mailbox.post(host.engine.layers[0].o, tokens));
      expectClose(mailbox.y, product(x, source.floats.o, d, tokens));
    }
    const times = mailbox.lastTimes();
    expect(times.runs).toBe(4);
    expect(times.endUs).toBeGreaterThanOrEqual(times.beginUs);
    await host.close();
  });

  it('fails with one clear error, and for good, when the device is lost', async () => {
    const host = await start({ provider, failAfterRuns: 1 });
    const mailbox = lane(host);
    mailbox.wait(mailbox.post(host.engine.lmHead, 1));
    const before = mailbox.y.slice();
    const lost = mailbox.post(host.engine.lmHead, 1);
    expect(() => mailbox.wait(lost)).toThrow(/lost/);
    expect(() => mailbox.wait(mailbox.post(host.engine.lmHead, 1))).toThrow(/lost/);
    expect(mailbox.y).toEqual(before);
    expect(host.failure).toMatch(/lost/);
    await host.close();
  });
});

describe('GpuHost', () => {
  it('refuses a provider that is not there', async () => {
    await expect(start({ provider: 'dml' })).rejects.toMatchObject({ code: 'GPU_UNAVAILABLE' });
  });

  it('lets the process exit with its own code while runs are under way', () => {
    // onnxruntime's binding aborts the process when its thread is taken down inside a run.
    const provider = providers.findLast((p) => p.reason === null)!.provider;
    const script = `
      import { openSync, readFileSync } from 'node:fs';
      import { GpuHost } from ${JSON.stringify(new URL('../../dist/gpu/gpu-host.js', import.meta.url).href)};
      import { GpuMailbox } from ${JSON.stringify(new URL('../../dist/engine/gpu-mailbox.js', import.meta.url).href)};
      const [path, header, provider] = process.argv.slice(1);
      const pack = { path, fd: openSync(path, 'r'), header: JSON.parse(readFileSync(header, 'utf8')), close() {} };
      const layers = [{ qkv: false, o: false, hotNeurons: new Uint32Array(0) }];
      const weights = provider === 'webgpu' ? 'rows' : 'packed';
      const placement = { weights, lmHead: true, layers };
      const host = await GpuHost.start({ pack, placement, provider, maxTokens: 5, lanes: 1 });
      const { buffer, byteOffset, layout } = host.engine.mailbox;
      const box = new GpuMailbox(buffer, byteOffset, layout);
      for (let i = 0; i < 20; i++) box.wait(box.post(host.engine.lmHead, 1));
      box.post(host.engine.lmHead, 5);
      process.exit(3);`;
    const headerPath = join(folder, 'header.json');
    writeFileSync(headerPath, JSON.stringify(pack.header));
    const args = ['--input-type=module', '-e', script, path, headerPath, provider];
    const { status, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
    expect(stderr).toBe('');
    expect(status).toBe(3);
  });

  it('closes twice without complaint', async () => {
    const host = await start();
    await host.close();
    await host.close();
  });

  it('can be aborted while loading', async () => {
    const signal = AbortSignal.abort();
    await expect(start({ signal })).rejects.toMatchObject({ code: 'ABORTED' });
  });
});
