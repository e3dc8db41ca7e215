import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Tokenizer as Library } from '@huggingface/tokenizers';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { HybridError } from '../../src/errors.js';
import { createTokenizer, generationDefaults } from '../../src/model/index.js';
import type { TokenizerFiles } from '../../src/model/types.js';
import { tinySentencepiece } from '../helpers/tiny-gguf.js';
import { tinyTokenizerJson } from '../helpers/tiny-models.js';

type Json = ReturnType<typeof tinyTokenizerJson>;

const files = (json: unknown, config: unknown = {}): TokenizerFiles => ({
  tokenizerJson: typeof json === 'string' ? json : JSON.stringify(json),
  tokenizerConfigJson: JSON.stringify(config),
  chatTemplate: null,
  generationConfigJson: null,
});
const specials = { bos_token: '<|begin|>', eos_token: { content: '<|end|>' } };
const bent = (bend: (json: Json) => void): Json => {
  const json = tinyTokenizerJson();
  bend(json);
  return json;
};
const tiny = createTokenizer(files(tinyTokenizerJson(), specials));

/** A sentencepiece-like tokenizer.json: spaces as U+2581, byte fallback. */
function sentencepieceJson(): Json {
  const { tokens } = tinySentencepiece();
  const json = tinyTokenizerJson();
  return {
    ...json,
    added_tokens: [0, 1, 2].map((id) => ({ ...json.added_tokens[0], id, content: tokens[id] })),
    normalizer: {
      type: 'Sequence',
      normalizers: [
        { type: 'Prepend', prepend: '\u2581' },
        { type: 'Replace', pattern: { String: ' ' }, content: '\u2581' },
      ],
    },
    pre_tokenizer: null,
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '\u2581' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        { type: 'Strip', content: ' ', start: 1, stop: 0 },
      ],
    },
    model: {
      ...json.model,
      unk_token: '<unk>',
      byte_fallback: true,
      vocab: Object.fromEntries(tokens.map((t, id) => [t, id])),
      merges: ['\u2581 t', 'h e', '\u2581t he', 'i n', '\u2581 a', 'a n'],
    },
  };
}

describe('encoding', () => {
  it('gives back any text when decoded', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), (text) => {
        const clean = text.replace(/<\|(begin|end)\|>/g, '').toWellFormed();
        expect(tiny.decode(tiny.encode(clean))).toBe(clean);
      }),
    );
  });

  it('puts the begin token in front as add_bos_token says', () => {
    const withBos = createTokenizer(files(tinyTokenizerJson(), { ...specials, add_bos_token: true }));
    expect(withBos.encode('hi')[0]).toBe(0);
    expect(withBos.encode('hi', { addSpecial: false })[0]).not.toBe(0);
    expect(tiny.encode('hi')).toEqual(withBos.encode('hi', { addSpecial: false }));
    expect(withBos.encode('')).toEqual([0]);
  });

  it('adds the end token as add_eos_token says', () => {
    const both = createTokenizer(
      files(tinyTokenizerJson(), { ...specials, add_bos_token: true, add_eos_token: true }),
    );
    expect(both.encode('')).toEqual([0, 1]);
  });

  it('follows the post-processor where the config says nothing', () => {
    const json = bent((j) => {
      j.post_processor = {
        type: 'TemplateProcessing',
        single: [{ SpecialToken: { id: '<|begin|>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
        pair: [],
        special_tokens: { '<|begin|>': { id: '<|begin|>', ids: [0], tokens: ['<|begin|>'] } },
      };
    });
    expect(createTokenizer(files(json)).encode('e')[0]).toBe(0);
    expect(createTokenizer(files(json, { ...specials, add_bos_token: false })).encode('e')[0]).not.toBe(0);
  });

  it('reads special tokens in a text', () => {
    expect(tiny.encode('<|end|>')).toEqual([1]);
    expect(tiny.isSpecial(1)).toBe(true);
    expect(tiny.isSpecial(2)).toBe(false);
    expect([tiny.bosId, tiny.eosIds, tiny.vocabSize]).toEqual([0, [1], 288]);
  });

  it('takes sentencepiece vocabularies with byte fallback', () => {
    const tokenizer = createTokenizer(files(sentencepieceJson()));
    expect(tokenizer.encode('the')).toEqual([261]);
    expect(tokenizer.decode(tokenizer.encode('the café'))).toBe('the café');
  });
});

describe('decoding', () => {
  it('agrees with the library', () => {
    const json = tinyTokenizerJson();
    const library = new Library(json, { clean_up_tokenization_spaces: false });
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 2, max: 287 }), { minLength: 1 }), (ids) => {
        const theirs = library.decode(ids);
        if (!theirs.includes('\ufffd')) expect(tiny.decode(ids)).toBe(theirs);
      }),
    );
  });

  it('leaves special tokens out unless asked', () => {
    expect(tiny.decode([0, 10, 1])).not.toContain('<|');
    expect(tiny.decode([0, 1], { skipSpecial: false })).toBe('<|begin|><|end|>');
  });

  it('streams pieces that join to the whole and never hold half a character', () => {
    const text = 'naïve 🦉 — 東京 <e>';
    const stream = tiny.streamDecoder();
    const pieces = tiny.encode(text).map((id) => stream.push(id));
    expect(pieces.join('') + stream.flush()).toBe(text);
    expect(pieces.every((p) => !p.includes('\ufffd'))).toBe(true);
    expect(pieces).toContain('🦉');
  });

  it('ends a stream with U+FFFD when bytes are missing', () => {
    const stream = tiny.streamDecoder();
    const [first] = tiny.encode('🦉');
    expect(stream.push(first)).toBe('');
    expect(stream.flush()).toBe('\ufffd');
  });

  it('keeps the space of a sentencepiece continuation, and takes it off a text’s start', () => {
    const tokenizer = createTokenizer(files(sentencepieceJson()));
    expect(tokenizer.streamDecoder().push(261)).toBe(' the');
    expect(tokenizer.streamDecoder({ atStart: true }).push(261)).toBe('the');
    expect(tokenizer.decode([261, 261])).toBe('the the');
  });

  it('ignores ids outside the vocabulary', () => {
    expect(tiny.decode([5000, -1])).toBe('');
  });
});

describe('broken tokenizers are refused', () => {
  it.each<[string, (json: Json) => void, RegExp]>([
    ['a merge out of vocabulary', (j) => j.model.merges.push('zz zz'), /"zz" is not in the vocabulary/],
    ['a merge whose result is no token', (j) => j.model.merges.push('z z'), /"zz" is not in the vocabulary/],
    ['a merge of three', (j) => j.model.merges.push('a b c'), /expected two tokens/],
    ['an id of 2^31 - 1', (j) => (j.model.vocab['zz'] = 2 ** 31 - 1), /id 2147483647/],
    ['a duplicate id', (j) => (j.model.vocab['zz'] = 5), /id 5 belongs to/],
    ['a negative id', (j) => (j.model.vocab['zz'] = -1), /id -1/],
    ['a fractional id', (j) => (j.model.vocab['zz'] = 300.5), /id 300.5/],
    ['a missing byte', (j) => delete j.model.vocab['!'], /1 of 256 byte tokens are missing: !/],
    [
      'no byte tokens at all',
      (j) => Object.assign(j, { pre_tokenizer: null, decoder: null }),
      /neither byte-level/,
    ],
    [
      'an added token with the id of another',
      (j) => j.added_tokens.push({ ...j.added_tokens[0], id: 40, content: '<x>' }),
      /id 40 belongs/,
    ],
    [
      'an added token of id 2^31 - 1',
      (j) => j.added_tokens.push({ ...j.added_tokens[0], id: 2 ** 31 - 1, content: '<x>' }),
      /added_tokens/,
    ],
    ['an added token twice', (j) => j.added_tokens.push(j.added_tokens[0]), /appears twice/],
    ['an unknown model', (j) => (j.model.type = 'WordPiece'), /model type WordPiece is not supported/],
    ['an unknown token outside the vocabulary', (j) => (j.model.unk_token = '<nope>'), /unk_token/],
    [
      'a replacement that multiplies the text',
      (j) =>
        (j.normalizer = {
          type: 'Sequence',
          normalizers: Array(3).fill({ type: 'Replace', pattern: { String: 'e' }, content: 'e'.repeat(50) }),
        }),
      /lengthen a text/,
    ],
    [
      'a pattern that does not compile',
      (j) =>
        (j.pre_tokenizer = {
          type: 'Sequence',
          pretokenizers: [
            { type: 'Split', pattern: { Regex: '(((' }, behavior: 'Isolated' },
            j.pre_tokenizer,
          ],
        }),
      /tokenizer\.json/,
    ],
    ['an unknown step', (j) => (j.normalizer = { type: 'Nonsense' }), /tokenizer\.json/],
    ['no vocabulary', (j) => Object.assign(j.model, { vocab: null }), /model.vocab/],
    ['no merges', (j) => Object.assign(j.model, { merges: null }), /model.merges/],
  ])('for %s', (_, bend, message) => {
    const start = performance.now();
    const build = () => createTokenizer(files(bent(bend)));
    expect(build).toThrow(HybridError);
    expect(build).toThrow(message);
    expect(performance.now() - start).toBeLessThan(1000);
  });

  it('for a key that appears twice', () => {
    const text = JSON.stringify(tinyTokenizerJson()).replace(
      '"<|begin|>":0',
      '"<|begin|>":0,"<|begin\\u007c>":0',
    );
    expect(() => createTokenizer(files(text))).toThrow(/appears twice/);
  });

  it('but a token named __proto__ or constructor is a token', () => {
    const json = bent((j) => (j.added_tokens = []));
    json.model.vocab = JSON.parse(
      JSON.stringify(json.model.vocab).replace('{', '{"__proto__":288,"constructor":289,'),
    ) as Json['model']['vocab'];
    const tokenizer = createTokenizer(files(json));
    expect(tokenizer.decode([288, 289])).toBe('__proto__constructor');
    expect(({} as Record<string, unknown>)['polluted']).toBeUndefined();
  });
});

describe('hostile texts and patterns', () => {
  const catastrophic = (regex: string): Json =>
    bent((j) => {
      j.pre_tokenizer = {
        type: 'Sequence',
        pretokenizers: [
          { type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false },
          j.pre_tokenizer,
        ],
      };
    });

  it('stops a pattern that backtracks for ever', () => {
    const tokenizer = createTokenizer(files(catastrophic('(a+)+$|(a|a)*b')));
    const start = performance.now();
    expect(() => tokenizer.encode('a'.repeat(60) + '!')).toThrow(/take too long/);
    expect(performance.now() - start).toBeLessThan(3000);
  });

  it.each(['a', ' ', '🦉', '\n'])('takes a megabyte of %j in bounded time', (character) => {
    const text = character.repeat(2 ** 20 / character.length);
    const start = performance.now();
    const ids = tiny.encode(text);
    expect(performance.now() - start).toBeLessThan(10_000);
    expect(tiny.decode(ids)).toBe(text);
  });
});

describe('generation defaults', () => {
  const from = (text: string | null) => generationDefaults({ ...files('{}'), generationConfigJson: text });

  it('come from generation_config.json', () => {
    const text =
      '{"temperature":0.7,"top_p":0.9,"top_k":40,"do_sample":true,"max_new_tokens":64,"eos_token_id":[1,2]}';
    expect(from(text)).toEqual({
      temperature: 0.7,
      topP: 0.9,
      topK: 40,
      doSample: true,
      maxNewTokens: 64,
      eosIds: [1, 2],
    });
  });

  it('are empty without the file', () => {
    expect(from(null)).toEqual({ eosIds: [] });
  });

  it.each(['{"temperature":-1}', '{"top_p":2}', '{"eos_token_id":"x"}', '[]'])('are refused: %s', (text) => {
    expect(() => from(text)).toThrow(/generation_config\.json/);
  });
});

describe('the demo tokenizer', () => {
  const corpus = fileURLToPath(new URL('../../../shared/corpus/valid.txt', import.meta.url));
  // Needs the project's validation text, which is not part of the repository.
  it.skipIf(!existsSync(corpus))('decodes a stream of 33,333 tokens at more than a million a second', () => {
    const folder = new URL('../../models/tales-4m-relu/', import.meta.url);
    const tokenizer = createTokenizer(files(readFileSync(new URL('tokenizer.json', folder), 'utf8')));
    const ids = tokenizer.encode(readFileSync(corpus, 'utf8'));
    const stream = tokenizer.streamDecoder();
    const start = performance.now();
    for (const id of ids) stream.push(id);
    expect(performance.now() - start).toBeLessThan(500);
  });
});
