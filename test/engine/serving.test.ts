/** Several requests on one engine: prefixes, masks, log-probabilities, cancelling, few pages. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Engine, GenerateRequest } from '../../src/engine/engine.js';
import type { LayerDensity } from '../../src/engine/stats.js';
import { writeTinyFolder } from '../helpers/tiny-models.js';
import { GREEDY, openEngine, removePacks } from './open.js';

const VOCAB = 288;
const PROMPT = Array.from({ length: 80 }, (_, i) => (i * 31 + 5) % VOCAB);
const request = (extra: Partial<GenerateRequest> = {}): GenerateRequest => ({
  prompt: PROMPT,
  maxTokens: 10,
  sampling: GREEDY,
  ...extra,
});
let folder: string;
let engine: Engine;
beforeAll(async () => {
  folder = writeTinyFolder({ maxContext: 256 });
  engine = await openEngine(folder, 'q8');
});
afterAll(async () => {
  await engine.close();
  removePacks();
});

describe('known prefixes', () => {
  it('are taken in whole pages of 32 positions, never the last token, and change nothing', async () => {
    const own = await openEngine(folder, 'q8');
    const first = await own.generate(request());
    expect(first.stats.cachedPromptTokens).toBe(0);
    const again = await own.generate(request());
    expect(again.stats.cachedPromptTokens).toBe(64);
    expect(again.tokens).toEqual(first.tokens);
    const whole = await own.generate(request({ prompt: PROMPT.slice(0, 64), maxTokens: 1 }));
    expect(whole.stats.cachedPromptTokens).toBe(32);
    await own.close();
  });

  it('include the answer: a conversation computes its new tokens only', async () => {
    const own = await openEngine(folder, 'q8');
    const first = await own.generate(request({ maxTokens: 60 }));
    const next = await own.generate(request({ prompt: [...PROMPT, ...first.tokens, 7, 8, 9] }));
    expect(next.stats.promptTokens).toBe(143);
    expect(next.stats.cachedPromptTokens).toBe(128);
    await own.close();
  });

  it('are not shared once the modes of layers have changed, nor with who wants everything computed', async () => {
    const own = await openEngine(folder, 'q8', { ffn: 'exact' });
    await own.generate(request());
    expect((await own.generate(request({ cachePrompt: false }))).stats.cachedPromptTokens).toBe(0);
    await own.setModes(own.modes.map(() => 'dense'));
    expect((await own.generate(request())).stats.cachedPromptTokens).toBe(0);
    await own.close();
  });
});

describe('pages', () => {
  it('are all given back: nothing is held when nothing runs', async () => {
    const own = await openEngine(folder, 'q8', { slots: 3 });
    const controller = new AbortController();
    const runs = Array.from({ length: 9 }, (_, i) =>
      own.generate(
        request({ prompt: PROMPT.slice(i), maxTokens: 30, signal: i % 3 ? undefined : controller.signal }),
      ),
    );
    await runs[1];
    controller.abort();
    await Promise.all(runs);
    await own.setModes(own.modes); // waits until the last step is over
    expect(own.pages.used).toBe(0);
    expect(own.pages.cached).toBeGreaterThan(0);
    await own.close();
  });

  it('that run out make requests wait and not fail; a prompt longer than all of them is refused at once', async () => {
    const perPage = 32 * 2 * 2 * 2 * (16 + 4);
    const own = await openEngine(folder, 'q8', { slots: 4, kvMemory: 4 * perPage });
    const long = request({ prompt: PROMPT.slice(0, 60), maxTokens: 50 });
    const expected = (await engine.generate(long)).tokens;
    const all = await Promise.all([long, long, long, long].map((r) => own.generate(r)));
    for (const { tokens } of all) expect(tokens).toEqual(expected);
    const tooLong = new Array<number>(129).fill(3);
    expect(() => own.generate(request({ prompt: tooLong }))).toThrow(/129 tokens.*KV cache holds 128/);
    await own.close();
  });

  it('that end in the middle of the only sequence end it with reason length', async () => {
    const own = await openEngine(folder, 'q8', { slots: 1, kvMemory: 2 * 32 * 2 * 2 * 2 * (16 + 4) });
    const run = await own.generate(request({ prompt: PROMPT.slice(0, 50), maxTokens: 100 }));
    expect(run.stopReason).toBe('length');
    expect(run.tokens.length).toBe(15); // 64 positions, and the last token needs none
    await own.close();
  });
});

describe('a mask', () => {
  const only = (ids: number[]): Uint32Array => {
    const bits = new Uint32Array(Math.ceil(VOCAB / 32));
    for (const id of ids) bits[id >> 5] |= 1 << (id & 31);
    return bits;
  };

  it('is asked for before every choice, with the tokens so far, and obeyed', async () => {
    const seen: number[][] = [];
    const run = await engine.generate(
      request({
        maxTokens: 4,
        mask: (tokens) => {
          seen.push([...tokens]);
          return tokens.length === 2 ? null : only([40 + tokens.length, 60]);
        },
      }),
    );
    expect(seen.map((s) => s.length)).toEqual([0, 1, 2, 3]);
    expect(seen[3]).toEqual(run.tokens.slice(0, 3));
    expect([40, 60]).toContain(run.tokens[0]);
    expect([41, 60]).toContain(run.tokens[1]);
    expect([43, 60]).toContain(run.tokens[3]);
  });

  it('that allows nothing, or a function that throws, fails its own request only', async () => {
    const beside = engine.generate(request());
    await expect(engine.generate(request({ mask: () => only([]) }))).rejects.toMatchObject({ code: 'USAGE' });
    const broken = (): Uint32Array => {
      throw new Error('no grammar');
    };
    await expect(engine.generate(request({ mask: broken }))).rejects.toThrow('no grammar');
    expect((await beside).tokens).toEqual((await engine.generate(request())).tokens);
  });
});

describe('layers that are watched', () => {
  interface Seen {
    tokens: number;
    layers: LayerDensity[];
    /** Tokens that had come before. */
    after: number;
  }
  const watch = async (own: Engine, extra: Partial<GenerateRequest> = {}) => {
    const seen: Seen[] = [];
    let come = 0;
    const run = await own.generate(
      request({
        onTokens: (fresh) => void (come += fresh.length),
        onLayers: (layers, tokens) => void seen.push({ tokens, layers, after: come }),
        ...extra,
      }),
    );
    return { run, seen, rows: seen.reduce((sum, { tokens }) => sum + tokens, 0) };
  };
  /** Means over all calls are the means that the result has. */
  const expectWhole = ({ run, seen, rows }: Awaited<ReturnType<typeof watch>>): void => {
    for (const [l, whole] of run.layers.entries()) {
      const mean = (pick: (layer: LayerDensity) => number): number =>
        seen.reduce((sum, { tokens, layers }) => sum + tokens * pick(layers[l]), 0) / rows;
      expect(mean((layer) => layer.sparsity)).toBeCloseTo(whole.sparsity, 9);
      expect(mean((layer) => layer.candidates)).toBeCloseTo(whole.candidates, 9);
    }
  };

  it('are seen while the answer comes, and altogether are what the result says of them', async () => {
    const own = await openEngine(folder, 'q8', { kernels: 'reference' });
    const watched = await watch(own, { maxTokens: 120 });
    expect(watched.rows).toBe(119); // the first token comes from the prompt's rows
    expect(watched.seen.length).toBeGreaterThan(1);
    expect(watched.seen[0].after).toBeLessThan(120);
    expectWhole(watched);
    await own.close();
  });

  it('change nothing in the text, and show recall where it is measured', async () => {
    const [free, watched] = [await engine.generate(request()), await watch(engine, { measureRecall: true })];
    expect(watched.run.tokens).toEqual(free.tokens);
    expectWhole(watched);
  });

  it('lose nothing when their sequence has to give its pages to others', async () => {
    const perPage = 32 * 2 * 2 * 2 * (16 + 4);
    const own = await openEngine(folder, 'q8', { slots: 4, kvMemory: 4 * perPage });
    const long = { prompt: PROMPT.slice(0, 60), maxTokens: 50 };
    const all = await Promise.all(Array.from({ length: 4 }, () => watch(own, long)));
    for (const watched of all) {
      expect(watched.rows).toBeGreaterThanOrEqual(49);
      expectWhole(watched);
    }
    await own.close();
  });

  it('of an answer of one token are none', async () => {
    expect((await watch(engine, { maxTokens: 1 })).seen).toEqual([]);
  });
});

describe('log-probabilities', () => {
  it('are those of the model: the chosen token’s and the likeliest ones’, the same numbers that logits give', async () => {
    const run = await engine.generate(request({ logprobs: 3, maxTokens: 5 }));
    expect(run.logprobs).toHaveLength(5);
    const { logits } = await engine.logits({ tokens: [...PROMPT, ...run.tokens] });
    run.logprobs!.forEach(({ id, logprob, top }, i) => {
      const at = (PROMPT.length - 1 + i) * VOCAB;
      const row = Float64Array.from(logits.subarray(at, at + VOCAB));
      const best = Math.max(...row);
      const lnSum = best + Math.log(row.reduce((sum, v) => sum + Math.exp(v - best), 0));
      expect(id).toBe(run.tokens[i]);
      expect(logprob).toBeCloseTo(row[id] - lnSum, 5);
      expect(top).toHaveLength(3);
      expect(top[0].id).toBe(id); // greedy
      expect(top[0].logprob).toBeGreaterThanOrEqual(top[1].logprob);
    });
  });
});

describe('a logit bias', () => {
  it('forbids and forces tokens', async () => {
    const free = await engine.generate(request({ maxTokens: 1 }));
    const banned = await engine.generate(request({ maxTokens: 1, logitBias: { [free.tokens[0]]: -100 } }));
    expect(banned.tokens[0]).not.toBe(free.tokens[0]);
    const forced = await engine.generate(request({ maxTokens: 3, logitBias: { 77: 100 } }));
    expect(forced.tokens).toEqual([77, 77, 77]);
  });
});

describe('speculation', () => {
  it('accepts drafts on text that repeats itself and reports them', async () => {
    const loop = Array.from({ length: 60 }, (_, i) => 40 + (i % 5));
    // An engine that does not know yet what a row costs makes drafts wherever there is one.
    const own = await openEngine(folder, 'q8');
    const fast = await own.generate(request({ prompt: loop, maxTokens: 150, speculate: 'ngram' }));
    const free = await own.generate(request({ prompt: loop, maxTokens: 150 }));
    await own.close();
    expect(fast.tokens).toEqual(free.tokens);
    expect(free.stats.draftTokens).toBe(0);
    expect(fast.stats.draftTokens).toBeGreaterThan(0);
    expect(fast.stats.acceptedTokens).toBeGreaterThan(0);
    expect(fast.stats.acceptedTokens).toBeLessThanOrEqual(fast.stats.draftTokens);
  });
});

describe('logits', () => {
  it('are the same beside generations as alone', async () => {
    const alone = await engine.logits({ tokens: PROMPT });
    const [beside] = await Promise.all([
      engine.logits({ tokens: PROMPT }),
      engine.generate(request({ maxTokens: 40 })),
      engine.generate(request({ prompt: PROMPT.slice(3), maxTokens: 40 })),
    ]);
    expect(beside.logits).toEqual(alone.logits);
    expect(beside.layers).toEqual(alone.layers);
  });

  it('stop when they are aborted, with the signal’s reason', async () => {
    const controller = new AbortController();
    controller.abort(new Error('enough'));
    await expect(engine.logits({ tokens: PROMPT, signal: controller.signal })).rejects.toThrow('enough');
  });

  it('can be dense while the engine’s own mode is another', async () => {
    const { layers } = await engine.logits({ tokens: PROMPT, ffn: 'dense' });
    const own = await engine.logits({ tokens: PROMPT });
    expect(layers[0].gated).toBe(96);
    expect(own.layers[0].gated).toBeLessThan(96);
    expect(engine.modes).toEqual(['exact', 'exact']);
  });
});

describe('a model in two arenas', () => {
  it('computes what it computes in one', async () => {
    const one = await openEngine(folder, 'f32');
    const two = await openEngine(folder, 'f32', {
      maxArenaBytes: Math.ceil(one.layout.arenaBytes[0] * 0.93),
    });
    expect(two.layout.arenaBytes.length).toBeGreaterThan(1);
    const [a, b] = [await one.logits({ tokens: PROMPT }), await two.logits({ tokens: PROMPT })];
    expect(b.logits).toEqual(a.logits);
    const run = request({ maxTokens: 30 });
    expect((await two.generate(run)).tokens).toEqual((await one.generate(run)).tokens);
    await Promise.all([one.close(), two.close()]);
  });
});

describe('an abort', () => {
  it('while the norms for recall are computed ends the request, and the next one has them', async () => {
    const own = await openEngine(folder, 'q8');
    const controller = new AbortController();
    const run = own.generate(request({ measureRecall: true, signal: controller.signal }));
    controller.abort();
    expect(await run).toMatchObject({ tokens: [], stopReason: 'abort', layers: [] });
    expect((await own.generate(request({ measureRecall: true }))).tokens).toHaveLength(10);
    await own.close();
  });

  it('while loading ends the load with the signal’s reason', async () => {
    const controller = new AbortController();
    const opening = openEngine(folder, 'q8', {
      signal: controller.signal,
      onProgress: () => controller.abort(new Error('enough')),
    });
    controller.abort(new Error('enough'));
    await expect(opening).rejects.toThrow('enough');
  });
});

describe('an engine that is closed', () => {
  it('ends what runs or waits for a slot with reason abort, and refuses what comes', async () => {
    const own = await openEngine(folder, 'q8', { slots: 1 });
    let begun!: () => void;
    const first = new Promise<void>((resolve) => (begun = resolve));
    const running = own.generate(request({ maxTokens: 170, onTokens: () => begun() }));
    const waiting = own.generate(request({ maxTokens: 170 }));
    await first;
    await own.close();
    for (const { stopReason } of await Promise.all([running, waiting])) expect(stopReason).toBe('abort');
    await expect(own.generate(request())).rejects.toMatchObject({ code: 'CLOSED' });
  });
});
