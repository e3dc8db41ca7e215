/**
 * Hybrid decode with the GPU worker on onnxruntime's CPU provider: the same graphs, mailbox and engine code
 * as on a GPU, on any machine. (test/gpu runs them on a WebGPU adapter where there is one.)
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Engine, type EngineOptions } from '../../src/engine/engine.js';
import { mailboxLayout, type MailboxLayout } from '../../src/engine/gpu-mailbox.js';
import { GpuHost } from '../../src/gpu/gpu-host.js';
import type { GpuPlacement } from '../../src/gpu/hot-ffn.js';
import { openPack } from '../../src/pack/reader.js';
import { baseConfig, writeModel } from '../helpers/any-model.js';
import { writeTinyFolder } from '../helpers/tiny-models.js';
import { GREEDY, openEngine, packOf, removePacks } from './open.js';

const NFF = 96;
const PROMPT = Array.from({ length: 21 }, (_, i) => (i * 31 + 5) % 288);
let folder: string;
beforeAll(() => {
  folder = writeTinyFolder({ attentionBias: true });
});
afterAll(removePacks);

const every = (n: number): Uint32Array => Uint32Array.from({ length: Math.ceil(NFF / n) }, (_, i) => i * n);

function placement(
  hot: Uint32Array,
  rest: Partial<{ qkv: boolean; o: boolean; lmHead: boolean }> = {},
): GpuPlacement {
  const layer = { qkv: rest.qkv ?? false, o: rest.o ?? false, hotNeurons: hot };
  return { weights: 'f32', lmHead: rest.lmHead ?? false, layers: [layer, layer] };
}

async function openHybrid(
  where: GpuPlacement,
  options: EngineOptions & { failAfterRuns?: number; onFailure?: 'error' | 'cpu' } = {},
  model = folder,
): Promise<{ engine: Engine; close: () => Promise<void> }> {
  const pack = openPack(await packOf(model, 'f32'));
  const { failAfterRuns, onFailure, ...rest } = options;
  const host = await GpuHost.start({
    pack,
    placement: where,
    provider: 'cpu',
    maxTokens: 16,
    lanes: 2,
    failAfterRuns,
  });
  const gpu = {
    units: host.engine,
    provider: 'cpu',
    device: 'test',
    bytes: host.bytes,
    onFailure: onFailure ?? 'error',
  };
  const engine = await Engine.open(pack, { threads: 2, batchTokens: 16, gpu, ...rest });
  return {
    engine,
    close: async () => {
      await engine.close();
      await host.close();
    },
  };
}

describe('hybrid', () => {
  const cases: [string, GpuPlacement][] = [
    ['a third of the neurons', placement(every(3))],
    ['all neurons', placement(every(1))],
    [
      'q, k, v and the output projection, biases included',
      placement(new Uint32Array(0), { qkv: true, o: true }),
    ],
    ['everything', placement(every(1), { qkv: true, o: true, lmHead: true })],
  ];
  for (const [name, where] of cases) {
    it(`computes the same logits and greedy text as the CPU alone: ${name}`, async () => {
      const cpu = await openEngine(folder, 'f32', { ffn: 'exact' });
      const { engine, close } = await openHybrid(where);
      const [a, b] = [await cpu.logits({ tokens: PROMPT }), await engine.logits({ tokens: PROMPT })];
      const worst = a.logits.reduce((max, v, i) => Math.max(max, Math.abs(v - b.logits[i])), 0);
      expect(worst).toBeLessThan(1e-4);
      const request = { prompt: PROMPT, maxTokens: 20, sampling: GREEDY };
      const [x, y] = [await cpu.generate(request), await engine.generate(request)];
      expect(y.tokens).toEqual(x.tokens);
      expect(y.stats.gpu).toMatchObject({ provider: 'cpu', device: 'test' });
      if (where.layers[0].hotNeurons.length < NFF) expect(y.stats.sparsity).toBeGreaterThan(0.2);
      await cpu.close();
      await close();
    });
  }

  it.each<[string, Record<string, unknown>]>([
    ['OPTForCausalLM', { ffn_dim: NFF, word_embed_proj_dim: 16, do_layer_norm_before: false }],
    ['LlamaForCausalLM', { mlp_bias: true, attention_bias: true, intermediate_size: NFF }],
  ])('computes FFNs without a gate and with biases: %s', async (architecture, fields) => {
    const model = writeModel(baseConfig(architecture, fields));
    const cpu = await openEngine(model, 'f32', { ffn: 'exact' });
    const { engine, close } = await openHybrid(placement(every(2), { qkv: true, lmHead: true }), {}, model);
    const [a, b] = [await cpu.logits({ tokens: PROMPT }), await engine.logits({ tokens: PROMPT })];
    const worst = a.logits.reduce((max, v, i) => Math.max(max, Math.abs(v - b.logits[i])), 0);
    expect(worst).toBeLessThan(1e-4);
    await cpu.close();
    await close();
  });

  it('shows GPU units and lanes in one timeline', async () => {
    const { engine, close } = await openHybrid(placement(every(2)), { timeline: true });
    await engine.generate({ prompt: PROMPT, maxTokens: 6, sampling: GREEDY });
    const events = engine.chromeTrace()!.traceEvents as {
      ph: string;
      tid: number;
      name: string;
      ts: number;
      dur: number;
    }[];
    const spans = events.filter((e) => e.ph === 'X');
    const units = spans.filter((e) => e.tid === 2);
    // Two prefill batches and five decoded tokens, two layers each.
    expect(units).toHaveLength((2 + 5) * 2);
    expect(spans.filter((e) => e.tid === 0 && e.name === 'ffn')).toHaveLength((2 + 5) * 2);
    expect(spans.every((e) => e.dur >= 0)).toBe(true);
    await close();
  });

  it('ends with one error when the GPU fails and was asked for', async () => {
    const { engine, close } = await openHybrid(placement(every(2)), { failAfterRuns: 7 });
    const run = engine.generate({ prompt: PROMPT, maxTokens: 20, sampling: GREEDY });
    await expect(run).rejects.toMatchObject({ code: 'GPU_FAILED' });
    await close();
  });

  it('goes on with the same tokens on the CPU when the choice was left to us, and says so', async () => {
    const cpu = await openEngine(folder, 'f32', { ffn: 'exact' });
    const { engine, close } = await openHybrid(placement(every(2)), { failAfterRuns: 13, onFailure: 'cpu' });
    for (const sampling of [GREEDY, { ...GREEDY, temperature: 0.8, seed: 11 }]) {
      const request = { prompt: PROMPT, maxTokens: 20, sampling };
      const [x, y] = [await cpu.generate(request), await engine.generate(request)];
      expect(y.tokens).toEqual(x.tokens);
      expect(y.stats.gpu!.failure).toMatch(/GPU/);
    }
    await cpu.close();
    await close();
  });

  it('does not wait for ever for a GPU that hangs: its time-out comes before that of the lanes', async () => {
    const units = {
      mailbox: { ...emptyMailbox(), spareCore: false },
      layers: [0, 1].map(() => ({ qkv: -1, o: -1, ffn: 0 })),
      lmHead: -1,
      whole: -1,
      hotNeurons: [every(3), every(3)],
      timeoutMs: 6000, // longer than lanes may be silent
    };
    const gpu = { units, provider: 'cpu', device: 'test', bytes: 0, onFailure: 'cpu' as const };
    const engine = await openEngine(folder, 'f32', { ffn: 'exact', gpu });
    const cpu = await openEngine(folder, 'f32', { ffn: 'exact' });
    const request = { prompt: PROMPT, maxTokens: 5, sampling: GREEDY };
    const run = await engine.generate(request);
    expect(run.stats.gpu!.failure).toMatch(/did not answer within 6 s/);
    expect(run.tokens).toEqual((await cpu.generate(request)).tokens);
    await Promise.all([engine.close(), cpu.close()]);
  }, 30_000);
});

/** A mailbox that nobody serves. */
function emptyMailbox(): { buffer: SharedArrayBuffer; byteOffset: number; layout: MailboxLayout } {
  const layout = mailboxLayout(64, 64, 64);
  return { buffer: new SharedArrayBuffer(layout.bytes), byteOffset: 0, layout };
}
