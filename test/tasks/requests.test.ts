import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Tokenizer } from '../../src/model/tokenizer.js';
import {
  encodePair,
  encodeRequest,
  readLikeLmEval,
  type Encoded,
  type EncodeOptions,
} from '../../src/tasks/requests.js';
import { sharedInputs } from '../../src/tasks/run.js';

/** A letter is its code; `ab` is one token, as merges make them. */
const tokenizer = {
  encode: (text: string, { addSpecial = true } = {}) => [
    ...(addSpecial ? [1] : []),
    ...[...text.replaceAll('ab', '\u0100')].map((c) => c.codePointAt(0)!),
  ],
} as Tokenizer;
const options: EncodeOptions = {
  ...{ tokenizer, beginToken: false, prefixId: 0, maxLength: 8, maxNewTokens: null },
};
const ids = (text: string): number[] => tokenizer.encode(text, { addSpecial: false });
const scored = (request: Encoded) => (request.type === 'score' ? request.parts : []);

describe('a context and its continuation', () => {
  it('share the spaces as lm-eval does: they go to the continuation', () => {
    expect(encodePair('x \n', 'y', options)).toEqual({ context: ids('x'), continuation: ids(' \ny') });
  });

  it('are encoded together, and cut after as many ids as the context has', () => {
    // 'a' + 'b' is one token: one id for the context, none for the continuation.
    expect(encodePair('xa', 'b', options)).toEqual({ context: ids('xa'), continuation: [] });
  });

  it('begin with the prefix token where the context is empty', () => {
    expect(encodePair('', 'xy', options)).toEqual({ context: [0], continuation: ids('xy') });
    expect(encodePair(' ', 'x', options)).toEqual({ context: [0], continuation: ids(' x') });
  });

  it('lose their beginning when they are too long', () => {
    const [part] = scored(
      encodeRequest({ type: 'loglikelihood', context: 'cdefghijk', continuation: 'lm' }, options, ''),
    );
    expect(part).toEqual({ tokens: ids('efghijklm'), scored: 2, begin: 7 });
    const long = { type: 'loglikelihood', context: 'c', continuation: 'defghijkl' } as const;
    expect(() => encodeRequest(long, options, 'line 3')).toThrow(/line 3: a continuation of 9 tokens/);
  });

  it('may have a begin token', () => {
    expect(encodePair('x', 'y', { ...options, beginToken: true })).toEqual({
      context: [1, 120],
      continuation: [121],
    });
  });
});

describe('a text that is scored as a whole', () => {
  it('is covered by windows, every token once', () => {
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom('c', 'd', 'e'), maxLength: 40 }), (text) => {
        const parts = scored(encodeRequest({ type: 'rolling', text }, options, ''));
        expect(parts.flatMap(({ tokens, scored: n }) => tokens.slice(-n))).toEqual(ids(text));
        for (const { tokens } of parts) expect(tokens.length).toBeLessThanOrEqual(options.maxLength + 1);
      }),
    );
  });
});

describe('a prompt', () => {
  const settings = { until: [], maxTokens: 5, temperature: 0, topP: null };
  it('keeps its end, with room for the answer', () => {
    const encoded = encodeRequest({ type: 'generate', context: 'cdefg', settings }, options, '');
    expect(encoded).toMatchObject({ prompt: ids('efg') });
  });

  it('is followed by as many tokens as the model says, where it says so', () => {
    const own = { ...options, maxNewTokens: 200 };
    expect(encodeRequest({ type: 'generate', context: 'c', settings }, own, '')).toMatchObject({
      settings: { maxTokens: 200 },
    });
  });

  it('without room is refused', () => {
    const large = { type: 'generate', context: 'c', settings: { ...settings, maxTokens: 8 } } as const;
    expect(() => encodeRequest(large, options, 'line 1')).toThrow(/leaves no room/);
  });
});

describe('requests with the same tokens', () => {
  const cut = (context: string, continuation: string): Encoded =>
    encodeRequest({ type: 'loglikelihood', context, continuation }, options, '');

  it('are read where the longest continuation begins, as lm-eval does', () => {
    const requests = [cut('cdef', 'g'), cut('cd', 'efg'), cut('cdx', 'g')];
    expect(readLikeLmEval(requests)).toBe(1);
    expect(requests.map((r) => scored(r)[0].begin)).toEqual([2, 2, 3]);
  });

  it('share inputs that begin one another, and every one is found in one', () => {
    const word = fc.string({ unit: fc.constantFrom('c', 'd'), minLength: 2, maxLength: 6 });
    fc.assert(
      fc.property(fc.array(word, { minLength: 1, maxLength: 12 }), (texts) => {
        const parts = texts.map((text, i) => ({
          key: `${i}`,
          part: { tokens: ids(text), scored: 1, begin: text.length - 1 },
        }));
        const shared = sharedInputs(parts);
        expect(shared.flatMap(({ uses }) => uses)).toHaveLength(texts.length);
        const inputs = shared.map(({ tokens }) => tokens.join());
        for (const [i, { tokens, uses }] of shared.entries()) {
          for (const { part } of uses)
            expect(tokens.slice(0, part.tokens.length - 1)).toEqual(part.tokens.slice(0, -1));
          expect(inputs.some((other, j) => i !== j && `${other},`.startsWith(`${inputs[i]},`))).toBe(false);
        }
      }),
    );
  });
});
