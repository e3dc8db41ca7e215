import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import {
  argmaxFinite,
  randomSource,
  SamplerScratch,
  TokenChooser,
  type SamplingOptions,
} from '../../src/engine/sampler.js';

const PLAIN: SamplingOptions = {
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  repetitionWindow: 64,
  seed: 7,
};
const LOGITS = Float32Array.from([0.5, 2, -1, 2.5, 0, 1]);

/** Share of draws per token. */
function frequencies(options: Partial<SamplingOptions>, logits = LOGITS, draws = 20_000): number[] {
  const sampler = chooser(logits.length, { ...PLAIN, ...options });
  const counts = new Array<number>(logits.length).fill(0);
  for (let i = 0; i < draws; i++) counts[sampler.next(logits)] += 1 / draws;
  return counts;
}

function softmax(logits: ArrayLike<number>, temperature = 1): number[] {
  const e = Array.from(logits, (v) => Math.exp(v / temperature));
  const sum = e.reduce((a, b) => a + b, 0);
  return e.map((v) => v / sum);
}

describe('Sampler', () => {
  it('takes the likeliest token at temperature 0, the first of equals', () => {
    expect(chooser(6, { ...PLAIN, temperature: 0 }).next(LOGITS)).toBe(3);
    expect(chooser(3, { ...PLAIN, temperature: 0 }).next(Float32Array.from([1, 4, 4]))).toBe(1);
  });

  it('draws in proportion to the softmax at the temperature', () => {
    for (const temperature of [0.5, 1, 2]) {
      const expected = softmax(LOGITS, temperature);
      // 20,000 draws: a standard deviation is below 0.0036
      frequencies({ temperature }).forEach((f, i) => expect(Math.abs(f - expected[i])).toBeLessThan(0.015));
    }
  });

  it('keeps only the k likeliest with top-k', () => {
    const f = frequencies({ topK: 2 });
    expect(f.map((v) => v > 0)).toEqual([false, true, false, true, false, false]);
  });

  it('keeps the smallest set that reaches p with top-p', () => {
    const p = softmax(LOGITS); // sorted: 3, 1, 5, 0, 4, 2
    const f = frequencies({ topP: p[3] + p[1] + p[5] - 0.01 });
    expect(f.map((v) => v > 0)).toEqual([false, true, false, true, false, true]);
    expect(frequencies({ topP: 1e-6 })[3]).toBeCloseTo(1, 6);
  });

  it('drops what is less likely than min-p times the likeliest', () => {
    const f = frequencies({ minP: Math.exp(-1.6) });
    expect(f.map((v) => v > 0)).toEqual([false, true, false, true, false, true]);
  });

  it('lowers recent tokens with the repetition penalty, whatever the sign of their logit', () => {
    const sampler = chooser(3, { ...PLAIN, temperature: 0, repetitionPenalty: 2 }, [0]);
    expect(sampler.next(Float32Array.from([3, 2, 1]))).toBe(1);
    expect(sampler.next(Float32Array.from([-1, -1.5, -9]))).toBe(1);
  });

  it('forgets tokens older than the repetition window', () => {
    const sampler = chooser(
      2,
      { ...PLAIN, temperature: 0, repetitionPenalty: 9, repetitionWindow: 1 },
      [0, 1],
    );
    expect(sampler.next(Float32Array.from([3, 2]))).toBe(0);
  });

  it('repeats its draws for the same seed', () => {
    const draw = (seed: number): number[] => {
      const sampler = chooser(6, { ...PLAIN, seed });
      return Array.from({ length: 50 }, () => sampler.next(LOGITS));
    };
    expect(draw(3)).toEqual(draw(3));
    expect(draw(3)).not.toEqual(draw(4));
  });

  it('always returns a token of the vocabulary', () => {
    fc.assert(
      fc.property(
        fc.array(fc.float({ noNaN: true, noDefaultInfinity: true, min: -1000, max: 1000 }), {
          minLength: 1,
          maxLength: 40,
        }),
        fc.record({
          temperature: fc.double({ min: 0, max: 10, noNaN: true }),
          topK: fc.nat(50),
          topP: fc.double({ min: 1e-9, max: 1, noNaN: true }),
          minP: fc.double({ min: 0, max: 1, noNaN: true }),
          seed: fc.nat(),
        }),
        (values, options) => {
          const logits = Float32Array.from(values);
          const token = chooser(logits.length, { ...PLAIN, ...options }).next(logits);
          return Number.isInteger(token) && token >= 0 && token < logits.length;
        },
      ),
    );
  });

  it('refuses NaN and infinite logits, naming the token', () => {
    const bad = Float32Array.from([0, 1, NaN, 3]);
    expect(() => chooser(4, PLAIN).next(bad)).toThrow(/logit of token 2 is NaN/);
    expect(() => argmaxFinite(Float32Array.from([Infinity, 1]))).toThrow(/token 0 is Infinity/);
  });
});

const chooser = (vocab: number, options: Partial<SamplingOptions>, history: number[] = []): TokenChooser =>
  new TokenChooser(new SamplerScratch(vocab), { ...PLAIN, ...options }, history);
const maskOf = (allowed: boolean[]): Uint32Array => {
  const mask = new Uint32Array(Math.ceil(allowed.length / 32));
  allowed.forEach((yes, id) => yes && (mask[id >> 5] |= 1 << (id & 31)));
  return mask;
};

/** What the documentation says, step by step, with arrays and sorts. */
function reference(
  logits: Float32Array,
  options: SamplingOptions,
  history: number[],
  allowed: boolean[] | null,
  random: () => number,
): number {
  const v = Float32Array.from(logits);
  for (const [id, bias] of options.logitBias ?? []) v[id] += bias;
  if (allowed) allowed.forEach((yes, id) => yes || (v[id] = -Infinity));
  const recent = options.repetitionWindow > 0 ? history.slice(-options.repetitionWindow) : [];
  for (const id of new Set(recent)) {
    const times = recent.filter((other) => other === id).length;
    const scaled = v[id] > 0 ? v[id] / options.repetitionPenalty : v[id] * options.repetitionPenalty;
    v[id] = scaled - (options.presencePenalty ?? 0) - times * (options.frequencyPenalty ?? 0);
  }
  let list = Array.from(v, (logit, id) => ({ id, logit })).sort((a, b) => b.logit - a.logit || a.id - b.id);
  if (options.temperature === 0) return list[0].id;
  if (options.topK > 0) list = list.slice(0, options.topK);
  const probabilities = (of: typeof list, temperature: number): number[] => {
    const weights = of.map(({ logit }) => Math.exp((logit - of[0].logit) / temperature));
    const sum = weights.reduce((a, b) => a + b, 0);
    return weights.map((w) => w / sum);
  };
  if (options.topP < 1) {
    const p = probabilities(list, 1);
    let n = 0;
    for (let sum = 0; n < p.length && sum < options.topP; n++) sum += p[n];
    list = list.slice(0, n);
  }
  const p = probabilities(list, 1);
  list = list.filter((_, i) => p[i] >= options.minP * p[0]);
  let point = random();
  const q = probabilities(list, options.temperature);
  for (let i = 0; i < list.length; i++) {
    point -= q[i];
    if (point < 0) return list[i].id;
  }
  return list[list.length - 1].id;
}

describe('TokenChooser', () => {
  // No simple fraction: where k of m equal tokens reach p exactly, rounding would decide.
  const share = fc.integer({ min: 1, max: 1000 }).map((n) => (n / 1000) * 0.9999371);
  const penalty = fc.integer({ min: -20, max: 20 }).map((n) => n / 10);

  it('chooses what a naive implementation of its documentation chooses, all options together', () => {
    fc.assert(
      fc.property(
        // Few distinct values, so that there are ties; some hundred tokens, so that heaps are deep.
        fc.array(fc.integer({ min: -40, max: 40 }), { minLength: 1, maxLength: 300, size: 'max' }),
        fc.constantFrom(1, 8, 0.37),
        fc.record({
          temperature: fc.constantFrom(0, 0.3, 0.8, 1, 2.5),
          topK: fc.constantFrom(0, 1, 2, 7, 40, 299, 1000),
          topP: fc.oneof(fc.constant(1), share),
          minP: fc.oneof(fc.constant(0), share),
          repetitionPenalty: fc.constantFrom(1, 1.3, 0.7),
          repetitionWindow: fc.constantFrom(0, 1, 5, 64),
          presencePenalty: fc.oneof(fc.constant(0), penalty),
          frequencyPenalty: fc.oneof(fc.constant(0), penalty),
          seed: fc.nat(),
        }),
        fc.array(fc.nat(299), { maxLength: 80, size: 'max' }),
        fc.array(fc.tuple(fc.nat(299), fc.integer({ min: -100, max: 100 })), { maxLength: 4 }),
        fc.option(fc.infiniteStream(fc.boolean())),
        (values, scale, options, past, bias, allow) => {
          const logits = Float32Array.from(values, (v) => v / scale);
          const n = logits.length;
          const logitBias = bias.map(([id, b]): [number, number] => [id % n, b]);
          const allowed = allow && Array.from(logits, () => allow.next().value as boolean);
          if (allowed && !allowed.includes(true)) allowed[n - 1] = true;
          const all = { ...options, logitBias };
          const history = past.map((id) => id % n);
          const tested = new TokenChooser(new SamplerScratch(n), all, history);
          const random = randomSource(options.seed);
          for (let i = 0; i < 6; i++) {
            const expected = reference(logits, all, history, allowed, random);
            expect(tested.next(logits, allowed && maskOf(allowed))).toBe(expected);
            history.push(expected);
            tested.accept(expected);
          }
          expect(tested.randomState).toBe(random.state);
        },
      ),
      { numRuns: 300 },
    );
  });

  it('applies top-p and min-p at temperature 1, whatever the temperature', () => {
    const p = softmax(LOGITS); // sorted: 3, 1, 5, 0, 4, 2
    const hot = frequencies({ temperature: 5, topP: p[3] + p[1] - 0.01 });
    expect(hot.map((v) => v > 0)).toEqual([false, true, false, true, false, false]);
    const cold = frequencies({ temperature: 0.5, minP: Math.exp(-1.6) });
    expect(cold.map((v) => v > 0)).toEqual([false, true, false, true, false, true]);
  });

  it('counts top-p among the tokens that top-k kept', () => {
    const equal = new Float32Array(10);
    const f = frequencies({ topK: 4, topP: 0.5 }, equal, 500);
    expect(f.map((v) => v > 0)).toEqual([true, true, ...new Array<boolean>(8).fill(false)]);
  });

  it('subtracts the presence penalty once and the frequency penalty each time', () => {
    const logits = Float32Array.from([3, 2, 1.9]);
    expect(chooser(3, { temperature: 0, presencePenalty: 0.9 }, [0, 0, 0]).next(logits)).toBe(0);
    expect(chooser(3, { temperature: 0, presencePenalty: 1.1 }, [0]).next(logits)).toBe(1);
    expect(chooser(3, { temperature: 0, frequencyPenalty: 0.4 }, [0, 0, 0]).next(logits)).toBe(1);
    expect(chooser(3, { temperature: 0, frequencyPenalty: 0.4 }, [0, 0]).next(logits)).toBe(0);
  });

  it('adds the bias and obeys the mask at temperature 0 too', () => {
    expect(chooser(6, { temperature: 0, logitBias: new Map([[2, 100]]) }).next(LOGITS)).toBe(2);
    const mask = maskOf([true, false, true, false, true, false]);
    expect(chooser(6, { temperature: 0 }).next(LOGITS, mask)).toBe(0);
  });

  it('never draws a masked token, however few are left', () => {
    const logits = Float32Array.from({ length: 70 }, (_, i) => i);
    const mask = maskOf(Array.from(logits, (_, i) => i === 1 || i === 33));
    const c = chooser(70, { topK: 40, temperature: 100 });
    expect(new Set(Array.from({ length: 200 }, () => c.next(logits, mask)))).toEqual(new Set([1, 33]));
  });

  it('refuses a mask that allows nothing or is too short, and a bias for no token', () => {
    expect(() => chooser(6, {}).next(LOGITS, new Uint32Array(1))).toThrow(/mask allows no token/);
    expect(() => chooser(6, {}).next(LOGITS, new Uint32Array(0))).toThrow(/0 words, 6 tokens need 1/);
    expect(() => chooser(6, { logitBias: [[6, 1]] })).toThrow(/token 6, the vocabulary has ids 0 to 5/);
    expect(() => chooser(1, {}).next(Float32Array.of(-Infinity))).toThrow(/every logit is -Infinity/);
  });

  it('reports log probabilities of the raw distribution, likeliest first', () => {
    const expected = softmax(LOGITS).map(Math.log);
    const c = chooser(6, { temperature: 0, topLogprobs: 3, logitBias: [[2, 100]] });
    expect(c.next(LOGITS)).toBe(2);
    expect(c.logprob).toBeCloseTo(expected[2], 6);
    expect(Array.from(c.topIds)).toEqual([3, 1, 5]);
    c.topIds.forEach((id, i) => expect(c.topLogprobs[i]).toBeCloseTo(expected[id], 6));
  });

  it('draws the same whether log probabilities are asked for or not', () => {
    const draws = (topLogprobs: number | null): number[] => {
      const c = chooser(6, { topLogprobs });
      return Array.from({ length: 50 }, () => c.next(LOGITS));
    };
    expect(draws(0)).toEqual(draws(null));
    expect(draws(4)).toEqual(draws(null));
  });

  it('goes on from a saved random state and history', () => {
    const options = { ...PLAIN, repetitionPenalty: 1.5, repetitionWindow: 3 };
    const scratch = new SamplerScratch(6);
    const run = (c: TokenChooser, n: number): number[] =>
      Array.from({ length: n }, () => {
        const token = c.next(LOGITS);
        c.accept(token);
        return token;
      });
    const whole = run(new TokenChooser(scratch, options), 20);
    const first = new TokenChooser(scratch, options);
    const begun = run(first, 8);
    const second = new TokenChooser(scratch, options, begun, first.randomState);
    expect([...begun, ...run(second, 12)]).toEqual(whole);
  });

  it('keeps sequences apart that share their work arrays', () => {
    const scratch = new SamplerScratch(6);
    const options = { ...PLAIN, frequencyPenalty: 1 };
    const alone = Array.from(
      { length: 20 },
      (
        (c) => () =>
          c.next(LOGITS)
      )(chooser(6, options, [3, 3])),
    );
    const [a, b] = [new TokenChooser(scratch, options, [3, 3]), new TokenChooser(scratch, options, [1])];
    const together = Array.from({ length: 20 }, () => {
      b.next(LOGITS);
      return a.next(LOGITS);
    });
    expect(together).toEqual(alone);
  });
});

describe('randomSource', () => {
  it('is uniform: mean and variance of many draws', () => {
    const next = randomSource(123);
    const values = Array.from({ length: 50_000 }, next);
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    const variance = values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length;
    expect(mean).toBeCloseTo(0.5, 2);
    expect(variance).toBeCloseTo(1 / 12, 2);
    expect(Math.min(...values)).toBeGreaterThanOrEqual(0);
    expect(Math.max(...values)).toBeLessThan(1);
  });
});
