/** What happens when lanes die or numbers go bad: an error within seconds, and the next request works. */
import { afterAll, describe, expect, it } from 'vitest';
import { Word } from '../../src/engine/control.js';
import { writeTinyFolder } from '../helpers/tiny-models.js';
import { GREEDY, openEngine, removePacks } from './open.js';

afterAll(removePacks);

const PROMPT = [5, 9, 120, 33];
/** A token whose embedding is too large for f32 once it is scaled. */
const POISON = 200;

describe('a lane that is killed in the middle of a generation', () => {
  it('becomes an error within 5 s, and the next request works', async () => {
    const engine = await openEngine(writeTinyFolder({ maxContext: 4096, layers: 4 }), 'q8');
    const expected = (await engine.generate({ prompt: PROMPT, maxTokens: 8, sampling: GREEDY })).tokens;
    let killedAt = 0;
    const run = engine.generate({
      prompt: PROMPT,
      maxTokens: 4000,
      sampling: GREEDY,
      onTokens: () => {
        if (killedAt) return;
        killedAt = performance.now();
        void engine.workerThreads[1].terminate();
      },
    });
    await expect(run).rejects.toMatchObject({ code: 'LANE_FAILED' });
    expect(performance.now() - killedAt).toBeLessThan(5000);
    const again = await engine.generate({ prompt: PROMPT, maxTokens: 8, sampling: GREEDY });
    expect(again.tokens).toEqual(expected);
    await engine.close();
  });

  it('is also noticed when it dies idle', async () => {
    const engine = await openEngine(writeTinyFolder(), 'q8');
    await engine.workerThreads[0].terminate();
    // Whether the death is seen before or during this request, an answer or one typed error comes.
    await engine.generate({ prompt: PROMPT, maxTokens: 4, sampling: GREEDY }).catch((error) => {
      expect(error.code).toBe('LANE_FAILED');
    });
    expect((await engine.generate({ prompt: PROMPT, maxTokens: 4, sampling: GREEDY })).tokens).toHaveLength(
      4,
    );
    await engine.close();
  });
});

describe('a lane that hangs', () => {
  it('becomes an error within seconds, and the next request works', async () => {
    const engine = await openEngine(writeTinyFolder({ maxContext: 4096, layers: 4 }), 'q8');
    const expected = (await engine.generate({ prompt: PROMPT, maxTokens: 8, sampling: GREEDY })).tokens;
    let hungAt = 0;
    const run = engine.generate({
      prompt: PROMPT,
      maxTokens: 4000,
      sampling: GREEDY,
      onTokens: () => {
        if (hungAt) return;
        hungAt = performance.now();
        // One arrival too few: from here on every lane waits at the barrier for one that never comes.
        Atomics.sub(engine.laneControl, Word.ARRIVED, 1);
      },
    });
    await expect(run).rejects.toMatchObject({ code: 'LANE_FAILED' });
    expect(performance.now() - hungAt).toBeLessThan(10_000);
    const again = await engine.generate({ prompt: PROMPT, maxTokens: 8, sampling: GREEDY });
    expect(again.tokens).toEqual(expected);
    await engine.close();
  }, 30_000);
});

describe('numbers that are not finite', () => {
  it('end the request with the layer named', async () => {
    // Weights so large that the residual stream overflows f32 inside the layers.
    const engine = await openEngine(writeTinyFolder({ gain: 1e30 }), 'f32');
    const run = engine.generate({ prompt: PROMPT, maxTokens: 4, sampling: GREEDY });
    await expect(run).rejects.toMatchObject({
      code: 'NUMERIC',
      message: expect.stringMatching(/layer \d|output head/),
    });
    await engine.close();
  });

  it('leave the engine usable: a poisoned token fails its own requests and no others', async () => {
    const folder = writeTinyFolder({
      architecture: 'MiniCPMForCausalLM',
      modelType: 'minicpm',
      config: { scale_emb: 12, scale_depth: 1.4, dim_model_base: 16 },
      poisonedToken: POISON,
    });
    const engine = await openEngine(folder, 'f32');
    const healthy = { prompt: PROMPT, maxTokens: 6, sampling: GREEDY };
    const expected = (await engine.generate(healthy)).tokens;
    await expect(engine.generate({ ...healthy, prompt: [5, POISON] })).rejects.toMatchObject({
      code: 'NUMERIC',
    });
    const beside = [
      engine.generate({ ...healthy, maxTokens: 60 }),
      engine.generate({ ...healthy, prompt: [7, POISON] }).catch((error) => error.code),
      engine.generate({ ...healthy, maxTokens: 40 }),
    ];
    const [first, poisoned, third] = await Promise.all(beside);
    expect(poisoned).toBe('NUMERIC');
    for (const { tokens } of [first, third]) expect(tokens.slice(0, 6)).toEqual(expected);
    expect((await engine.generate(healthy)).tokens).toEqual(expected);
    await expect(engine.logits({ tokens: [POISON, 5] })).rejects.toMatchObject({ code: 'NUMERIC' });
    expect((await engine.generate(healthy)).tokens).toEqual(expected);
    await engine.close();
  });
});
