/**
 * A request's tokens depend on nothing but the request: not on what runs beside it, how many lanes there are,
 * how its prompt is cut, whether a prefix was known or tokens were drafted.
 */
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Engine, EngineOptions, GenerateRequest } from '../../src/engine/engine.js';
import type { FfnPlan } from '../../src/engine/ffn-plan.js';
import type { KernelBackend } from '../../src/kernels/kernels.js';
import { writeTinyFolder } from '../helpers/tiny-models.js';
import { openEngine, removePacks } from './open.js';
import { sketchPlan } from './plans.js';

afterAll(removePacks);

const VOCAB = 288;
const CONTEXT = 96;
/** Requests of each comparison; the reference kernels take a tenth, being hundreds of times slower. */
const COUNT = 200;

interface Asked extends GenerateRequest {
  /** Generated tokens after which the request is cancelled. */
  cancelAfter: number | null;
}

/** Prompts begin alike now and then, so that prefixes are shared. */
const requestOf = fc.record({
  stem: fc.integer({ min: 0, max: 3 }),
  stemLength: fc.integer({ min: 0, max: 70 }),
  tail: fc.array(fc.integer({ min: 0, max: VOCAB - 1 }), { minLength: 1, maxLength: 12 }),
  maxTokens: fc.integer({ min: 0, max: 20 }),
  temperature: fc.constantFrom(0, 0.7, 1.3),
  topK: fc.constantFrom(0, 5, 40),
  seed: fc.nat(),
  stopIds: fc.array(fc.integer({ min: 0, max: VOCAB - 1 }), { maxLength: 6 }),
  cancelAfter: fc.option(fc.integer({ min: 1, max: 6 }), { freq: 8 }),
  repetitionPenalty: fc.constantFrom(1, 1.3),
});

function requests(count: number): Asked[] {
  return fc.sample(requestOf, { seed: 11, numRuns: count }).map((r) => ({
    prompt: [
      ...Array.from({ length: r.stemLength }, (_, i) => (i * (r.stem * 2 + 31) + 5) % VOCAB),
      ...r.tail,
    ],
    maxTokens: r.maxTokens,
    stopIds: r.stopIds,
    cancelAfter: r.cancelAfter,
    sampling: {
      temperature: r.temperature,
      topK: r.topK,
      topP: 0.97,
      minP: 0.01,
      repetitionPenalty: r.repetitionPenalty,
      repetitionWindow: 16,
      presencePenalty: 0,
      frequencyPenalty: 0,
      seed: r.seed,
    },
  }));
}

async function answer(engine: Engine, asked: Asked): Promise<number[]> {
  const { cancelAfter, ...request } = asked;
  const controller = new AbortController();
  let count = 0;
  const { tokens } = await engine.generate({
    ...request,
    signal: controller.signal,
    onTokens: (fresh) => {
      count += fresh.length;
      if (cancelAfter !== null && count >= cancelAfter) controller.abort();
    },
  });
  // When exactly a cancelled request ends is a matter of timing; what it wrote until then is not.
  return cancelAfter === null ? tokens : tokens.slice(0, cancelAfter);
}

/** All at once; or one after the other. */
async function answers(engine: Engine, all: Asked[], sideBySide: boolean): Promise<number[][]> {
  if (sideBySide) return Promise.all(all.map((r) => answer(engine, r)));
  const out: number[][] = [];
  for (const r of all) out.push(await answer(engine, r));
  return out;
}

const COMPANY: [string, EngineOptions, Partial<GenerateRequest>, boolean][] = [
  ['one after the other, prefixes known', {}, {}, false],
  ['in mixed company on 1 slot', { slots: 1 }, {}, true],
  ['in mixed company on 2 slots, nothing cached', { slots: 2 }, { cachePrompt: false }, true],
  ['in mixed company on 4 slots', { slots: 4 }, {}, true],
  ['with prompts cut into small pieces', { slots: 4, batchTokens: 7 }, {}, true],
  ['with speculation', { slots: 4 }, { speculate: 'ngram' }, true],
  ['with speculation, alone', { slots: 1 }, { speculate: 'ngram' }, false],
  ['with few pages, so that sequences are paused', { slots: 4, kvMemory: 0 }, {}, true],
  ['on 1 lane', { threads: 1 }, {}, true],
  ['on 4 lanes', { threads: 4 }, {}, true],
];

describe.each(['native', 'wasm', 'reference'] as const)('%s kernels', (kernels) => {
  describe.each(['exact', 'predicted'] as const)('%s', (ffn) => {
    const asked = requests(kernels === 'reference' ? COUNT / 10 : COUNT);
    let folder: string;
    let plan: FfnPlan;
    let expected: number[][];
    const open = (options: EngineOptions): Promise<Engine> => {
      // Pages for little more than one whole context.
      const few = options.kvMemory === 0 ? { kvMemory: 4 * 32 * 2 * 2 * 2 * (16 + 4) } : {};
      return openEngine(folder, 'q4', { kernels: kernels as KernelBackend, ffn, plan, ...options, ...few });
    };
    beforeAll(async () => {
      folder = writeTinyFolder({ maxContext: CONTEXT });
      plan = await sketchPlan(folder);
      const engine = await open({ slots: 1 });
      expected = await answers(
        engine,
        asked.map((r) => ({ ...r, cachePrompt: false })),
        false,
      );
      await engine.close();
      expect(expected.flat().length).toBeGreaterThan(asked.length * 3);
    });

    it.each(COMPANY)('the same tokens %s', async (_, options, extra, sideBySide) => {
      const engine = await open(options);
      const got = await answers(
        engine,
        asked.map((r) => ({ ...r, ...extra })),
        sideBySide,
      );
      expect(got).toEqual(expected);
      await engine.close();
    });
  });
});
