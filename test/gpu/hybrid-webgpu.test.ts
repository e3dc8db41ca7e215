/**
 * The demo model on a real device interface: WebGPU (a software adapter does), at budgets of 0, 25, 50 and
 * 100 % of the FFN, against the CPU alone.
 */
import { afterAll, describe, expect, it } from 'vitest';

import { Engine, type EngineOptions } from '../../src/engine/engine.js';
import { openGpu } from '../../src/gpu/open-gpu.js';
import { createTokenizer } from '../../src/model/tokenizer.js';
import { openPack } from '../../src/pack/reader.js';
import { neuronBytes } from '../../src/profiler/gpu-bytes.js';
import { DEMO, GREEDY, packOf, removePacks } from '../engine/open.js';
import { webgpuMissing } from './adapter.js';

const missing = await webgpuMissing();
afterAll(removePacks);

const TEXT = 'Once upon a time there was a king who had three daughters, and the youngest';
const TOKENS = 8;
const BATCH = 32;
/**
 * Relative to the logits' norm. f32 weights: only the order of sums differs. Quantised ones: the CPU rounds
 * activations to 8 bits, the GPU does not; the same difference shows with the GPU's weights in f32.
 */
const TOLERANCE: Record<string, number> = { f32: 1e-4, q8: 1e-2 };

async function open(
  quant: 'f32' | 'q8',
  budgetBytes: number,
  options: EngineOptions & { failAfterRuns?: number } = {},
) {
  const pack = openPack(await packOf(DEMO, quant));
  const opened = await openGpu({
    pack,
    choice: 'webgpu',
    budgetBytes,
    ffnOnly: true,
    plan: null,
    ffn: 'exact',
    lanes: 1,
    maxTokens: BATCH,
    failAfterRuns: options.failAfterRuns,
  });
  const { failAfterRuns: _, ...engineOptions } = options;
  const gpu = opened.gpu && {
    ...opened.gpu,
    onFailure: engineOptions.gpu?.onFailure ?? opened.gpu.onFailure,
  };
  const engine = await Engine.open(pack, {
    threads: 1,
    batchTokens: BATCH,
    contextLength: 64,
    ffn: 'exact',
    ...engineOptions,
    gpu,
  });
  const close = async () => {
    await engine.close();
    await opened.close();
  };
  return { engine, opened, close };
}

describe.skipIf(missing !== null)(`hybrid decode on WebGPU${missing ? ` (skipped: ${missing})` : ''}`, () => {
  const cases = [
    { quant: 'f32' as const, shares: [0.25, 0.5, 1] },
    { quant: 'q8' as const, shares: [0.5] },
  ];
  it.each(cases)(
    'computes what the CPU alone does with a $quant pack, at $shares of the FFN',
    async ({ quant, shares }) => {
      const pack = openPack(await packOf(DEMO, quant));
      const { layers, hiddenSize, intermediateSize } = pack.header.config;
      const prompt = createTokenizer(pack.header.tokenizer).encode(TEXT);
      pack.close();
      const ffnBytes = layers * neuronBytes('packed', quant, intermediateSize, hiddenSize);
      const request = { prompt, maxTokens: TOKENS, sampling: GREEDY };
      const reference = await open(quant, 0);
      expect(reference.opened.gpu).toBeNull();
      const { logits } = await reference.engine.logits({ tokens: prompt });
      const text = await reference.engine.generate(request);
      await reference.close();

      for (const share of shares) {
        const budget = Math.floor(share * ffnBytes);
        const { engine, opened, close } = await open(quant, budget, { timeline: true });
        expect(opened.gpu!.bytes).toBe(opened.result!.bytes);
        expect(opened.gpu!.bytes).toBeLessThanOrEqual(budget);
        expect(opened.gpu!.bytes).toBeGreaterThan(0.9 * budget);
        expect(opened.note).toMatch(/^webgpu/);

        const difference = distance((await engine.logits({ tokens: prompt })).logits, logits);
        console.log(`${quant}, ${share} of the FFN: logits differ by ${difference.toExponential(1)}`);
        expect(difference).toBeLessThan(TOLERANCE[quant]);
        const hybrid = await engine.generate(request);
        // Quantised packs part at near-ties, as two CPU backends do (docs/gpu.md).
        if (quant === 'f32') expect(hybrid.tokens).toEqual(text.tokens);
        expect(hybrid.stats.gpu).toMatchObject({ provider: 'webgpu', bytes: opened.gpu!.bytes });
        // With all neurons on the GPU, the lane has nothing to do meanwhile.
        if (share < 1) expect(overlapping(engine)).toBeGreaterThan(0);
        await close();
      }
    },
    300_000,
  );

  it('ends with one error when the device is lost, and the process lives on', async () => {
    const { engine, close } = await open('q8', 300_000, { failAfterRuns: 3 });
    const run = engine.generate({ prompt: [1, 2, 3, 4], maxTokens: TOKENS, sampling: GREEDY });
    await expect(run).rejects.toMatchObject({ code: 'GPU_FAILED' });
    await close();
  }, 120_000);
});

/** |a - b| / |b| */
function distance(a: Float32Array, b: Float32Array): number {
  let [difference, norm] = [0, 0];
  b.forEach((value, i) => {
    difference += (a[i] - value) ** 2;
    norm += value ** 2;
  });
  return Math.sqrt(difference / norm);
}

/** GPU units in the engine's timeline during which a lane was computing an FFN. */
function overlapping(engine: Engine): number {
  const events = engine.chromeTrace()!.traceEvents as {
    ph: string;
    tid: number;
    name: string;
    ts: number;
    dur: number;
  }[];
  const spans = events.filter((event) => event.ph === 'X');
  const lanes = spans.filter((span) => span.name === 'ffn');
  return spans.filter(
    (unit) =>
      unit.name === 'unit' && lanes.some((ffn) => ffn.ts < unit.ts + unit.dur && unit.ts < ffn.ts + ffn.dur),
  ).length;
}
