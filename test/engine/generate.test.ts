/** Generation on lanes: decode agrees with batches, repeats exactly, ends when it should. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Engine } from '../../src/engine/engine.js';
import { writeTinyFolder } from '../helpers/tiny-models.js';
import { GREEDY, openEngine, removePacks } from './open.js';

const PROMPT = Array.from({ length: 21 }, (_, i) => (i * 31 + 5) % 288);
let folder: string;
let engine: Engine;
beforeAll(async () => {
  folder = writeTinyFolder({ maxContext: 96 });
  engine = await openEngine(folder, 'q8');
});
afterAll(async () => {
  await engine.close();
  removePacks();
});

const argmax = (row: Float32Array): number => row.reduce((best, v, i) => (v > row[best] ? i : best), 0);

describe('decode', () => {
  for (const kvCache of ['f32', 'q8'] as const) {
    it(`chooses the tokens that batched logits choose (${kvCache} cache)`, async () => {
      const own = await openEngine(folder, 'f32', { kvCache });
      const { tokens } = await own.generate({ prompt: PROMPT, maxTokens: 12, sampling: GREEDY });
      const { logits } = await own.logits({ tokens: [...PROMPT, ...tokens] });
      const vocab = own.layout.config.vocabSize;
      tokens.forEach((token, i) => {
        const at = (PROMPT.length - 1 + i) * vocab;
        expect(argmax(logits.subarray(at, at + vocab))).toBe(token);
      });
      await own.close();
    });
  }

  it('gives the same tokens 20 times in a row for one seed', async () => {
    const sampling = { ...GREEDY, temperature: 1, seed: 42 };
    const first = await engine.generate({ prompt: PROMPT, maxTokens: 24, sampling });
    for (let i = 0; i < 19; i++) {
      const again = await engine.generate({ prompt: PROMPT, maxTokens: 24, sampling });
      expect(again.tokens).toEqual(first.tokens);
    }
    const other = await engine.generate({
      prompt: PROMPT,
      maxTokens: 24,
      sampling: { ...sampling, seed: 43 },
    });
    expect(other.tokens).not.toEqual(first.tokens);
  });

  it('gives the same greedy tokens with 1, 2 and 4 lanes', async () => {
    const expected = (await engine.generate({ prompt: PROMPT, maxTokens: 30, sampling: GREEDY })).tokens;
    for (const threads of [1, 4]) {
      const other = await openEngine(folder, 'q8', { threads });
      expect((await other.generate({ prompt: PROMPT, maxTokens: 30, sampling: GREEDY })).tokens).toEqual(
        expected,
      );
      await other.close();
    }
  });

  it('gives the same greedy tokens in dense and exact mode, and exact reads fewer bytes', async () => {
    // An f32 cache: in 8 bits, a last-bit difference of the sums can grow to a step.
    const exact = await openEngine(folder, 'q8', { ffn: 'exact', kvCache: 'f32' });
    const dense = await openEngine(folder, 'q8', { ffn: 'dense', kvCache: 'f32' });
    const [a, b] = [exact, dense].map((e) => e.generate({ prompt: PROMPT, maxTokens: 30, sampling: GREEDY }));
    const [exactRun, denseRun] = [await a, await b];
    expect(exactRun.tokens).toEqual(denseRun.tokens);
    expect(exactRun.stats.sparsity).toBeCloseTo(denseRun.stats.sparsity, 6);
    const { ffn } = exact.layout.layers[0];
    const saved = exact.layout.layers.length * exactRun.stats.sparsity * ffn.rows * ffn.stride;
    expect(denseRun.stats.bytesPerToken - exactRun.stats.bytesPerToken).toBeCloseTo(saved, -1);
    await Promise.all([exact.close(), dense.close()]);
  });
});

describe('a generation ends', () => {
  it('at maxTokens with reason length', async () => {
    const run = await engine.generate({ prompt: PROMPT, maxTokens: 5, sampling: GREEDY });
    expect(run.tokens).toHaveLength(5);
    expect(run.stopReason).toBe('length');
  });

  it('at once for maxTokens 0', async () => {
    const run = await engine.generate({ prompt: PROMPT, maxTokens: 0, sampling: GREEDY });
    expect(run.tokens).toEqual([]);
    expect(run.stopReason).toBe('length');
  });

  it('when the context is full, with reason length', async () => {
    const run = await engine.generate({ prompt: PROMPT, maxTokens: 1000, sampling: GREEDY });
    expect(PROMPT.length + run.tokens.length).toBe(96 + 1); // the last token is chosen but needs no position
    expect(run.stopReason).toBe('length');
  });

  it('at a stop token, which is not part of the output', async () => {
    const free = await engine.generate({ prompt: PROMPT, maxTokens: 12, sampling: GREEDY });
    const stop = free.tokens.find((token, i) => i >= 3 && !free.tokens.slice(0, i).includes(token))!;
    const run = await engine.generate({ prompt: PROMPT, maxTokens: 12, sampling: GREEDY, stopIds: [stop] });
    expect(run.tokens).toEqual(free.tokens.slice(0, free.tokens.indexOf(stop)));
    expect(run.stopReason).toBe('stop');
  });

  it('soon after an abort, with the tokens so far', async () => {
    const long = await openEngine(writeTinyFolder({ maxContext: 32_768 }), 'q8', { contextLength: 32_768 });
    const controller = new AbortController();
    const run = await long.generate({
      prompt: PROMPT,
      maxTokens: 32_000,
      sampling: GREEDY,
      signal: controller.signal,
      onTokens: () => controller.abort(),
    });
    expect(run.stopReason).toBe('abort');
    expect(run.tokens.length).toBeGreaterThan(0);
    await long.close();
  });

  it('without work when it was aborted while waiting in the queue, and the others are not disturbed', async () => {
    const controller = new AbortController();
    const request = { prompt: PROMPT, maxTokens: 20, sampling: GREEDY };
    const first = engine.generate(request);
    const second = engine.generate({ ...request, signal: controller.signal });
    const third = engine.generate(request);
    controller.abort();
    expect((await second).tokens).toEqual([]);
    expect((await second).stopReason).toBe('abort');
    expect((await third).tokens).toEqual((await first).tokens);
  });
});

describe('requests are refused', () => {
  it('when the prompt is longer than the context, before any work', () => {
    const prompt = new Array(97).fill(3);
    expect(() => engine.generate({ prompt, maxTokens: 1, sampling: GREEDY })).toThrow(/97 tokens.*holds 96/);
  });

  it('when a token id is out of the vocabulary', () => {
    expect(() => engine.generate({ prompt: [5, 288], maxTokens: 1, sampling: GREEDY })).toThrow(
      /token 1 is 288/,
    );
  });

  it('after close', async () => {
    const own = await openEngine(folder, 'q8');
    await own.close();
    await expect(own.generate({ prompt: PROMPT, maxTokens: 1, sampling: GREEDY })).rejects.toThrow(/closed/);
  });

  it('when options are impossible', async () => {
    await expect(openEngine(folder, 'q8', { threads: 0 })).rejects.toThrow(/threads is 0/);
    await expect(openEngine(folder, 'q8', { contextLength: 97 })).rejects.toThrow(/contextLength is 97/);
    await expect(openEngine(folder, 'q8', { ffn: 'predicted' })).rejects.toThrow(
      /hybrid-infer profile|profile and predictor/,
    );
    const silu = writeTinyFolder({ hiddenAct: 'silu' });
    await expect(openEngine(silu, 'q8', { ffn: 'exact' })).rejects.toThrow(/silu, which has none/);
  });
});
