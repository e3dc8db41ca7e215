import { describe, expect, it } from 'vitest';
import { namePreTokenizer, PRE_TOKENIZERS, preTokenizerJson } from '../../src/model/pre-tokenizers.js';
import { openModel } from '../../src/model/index.js';
import { createTokenizer } from '../../src/model/tokenizer.js';
import { rejection } from '../helpers/expect-reject.js';
import { text, writeTinyGguf } from '../helpers/tiny-gguf.js';
import { tinyTokenizerJson } from '../helpers/tiny-models.js';

const names = Object.keys(PRE_TOKENIZERS);

/** Texts as a GGUF file with this name cuts them, part by part; every byte is a token of its own. */
async function bytesOf(pre: string, sample: string): Promise<string> {
  const model = await openModel(writeTinyGguf({ metadata: { 'tokenizer.ggml.pre': text(pre) } }));
  await model.close();
  const tokenizer = createTokenizer(model.tokenizer);
  return tokenizer.decode(tokenizer.encode(sample, { addSpecial: false }));
}

/** What the patterns alone cut, from the definition: matches, and what is left between them. */
function cut(patterns: readonly string[], sample: string): string[] {
  return patterns.reduce<string[]>(
    (parts, source) => {
      const regex = new RegExp(
        source.replaceAll(
          "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
          "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
        ),
        'gu',
      );
      return parts.flatMap((part) => {
        const out: string[] = [];
        let at = 0;
        for (const match of part.matchAll(regex)) {
          if (match.index > at) out.push(part.slice(at, match.index));
          if (match[0] !== '') out.push(match[0]);
          at = match.index + match[0].length;
        }
        if (at < part.length) out.push(part.slice(at));
        return out;
      });
    },
    [sample],
  );
}

describe('pre-tokenizers by name', () => {
  it.each(names)('%s keeps every byte of a text', async (name) => {
    const sample = "It's 12345 naïve tests,  and\r\n\n more... 日本語 x=1; \t ПРИВЕТ'LL";
    expect(await bytesOf(name, sample)).toBe(sample);
  });

  it.each<[string, string, string[]]>([
    ['gpt-2', "we'll pay 1234  now", ['we', "'ll", ' pay', ' 1234', ' ', ' now']],
    ['llama-bpe', "we'LL pay 1234  now", ['we', "'LL", ' pay', ' ', '123', '4', ' ', ' now']],
    ['qwen2', 'pay 12', ['pay', ' ', '1', '2']],
    ['smollm', 'pay 12', ['pay', ' ', '1', '2']],
    ['falcon', 'a+b 1234', ['a', '+', 'b', ' ', '123', '4']],
    ['default', 'a+b 1234', ['a', '+', 'b', ' ', '123', '4']],
    ['gpt-4o', 'camelCase HTTPServer', ['camel', 'Case', ' HTTPServer']],
    ['tekken', 'it is 12', ['it', ' is', ' ', '1', '2']],
    ['deepseek-v3', 'x 1234 .call', ['x', ' ', '123', '4', ' .', 'call']],
    ['deepseek-llm', 'x 1234\ny', ['x', ' ', '1234', '\n', 'y']],
    ['deepseek-coder', 'x 12', ['x', ' ', '1', '2']],
  ])('%s cuts as published: %s', (name, sample, parts) => {
    expect(cut(PRE_TOKENIZERS[name].patterns, sample)).toEqual(parts);
  });

  it('are found again in a tokenizer.json under a name that means the same', () => {
    for (const name of names) {
      const pre = PRE_TOKENIZERS[name];
      const found = namePreTokenizer(
        preTokenizerJson(pre),
        pre.nfc ? { type: 'NFC' } : null,
        pre.ignoreMerges ?? false,
      );
      expect(PRE_TOKENIZERS[found!].patterns, name).toEqual(pre.patterns);
    }
  });

  it('are found in the spellings that tokenizer.json files use', () => {
    const bytes = { type: 'ByteLevel', add_prefix_space: false, use_regex: true };
    const digits = { type: 'Digits', individual_digits: true };
    const sequence = (...pretokenizers: object[]) => ({ type: 'Sequence', pretokenizers });
    expect(namePreTokenizer(bytes, null, false)).toBe('gpt-2');
    expect(namePreTokenizer(sequence(digits, bytes), null, false)).toBe('smollm');
    expect(namePreTokenizer(tinyTokenizerJson().pre_tokenizer, null, false)).toBe('gpt-2');
    expect(namePreTokenizer(bytes, { type: 'NFC' }, false)).toBe('olmo');
  });

  it('have no name when they do anything else', () => {
    const bytes = { type: 'ByteLevel', add_prefix_space: false, use_regex: true };
    expect(namePreTokenizer({ type: 'Whitespace' }, null, false)).toBeNull();
    expect(namePreTokenizer({ ...bytes, add_prefix_space: true }, null, false)).toBeNull();
    expect(namePreTokenizer(bytes, { type: 'Lowercase' }, false)).toBeNull();
    expect(namePreTokenizer(bytes, null, true)).toBeNull();
  });

  it.each(['mystery', 'constructor'])('that are unknown are an error: %s', async (name) => {
    const error = await rejection(writeTinyGguf({ metadata: { 'tokenizer.ggml.pre': text(name) } }));
    expect(error.message).toContain(`tokenizer.ggml.pre "${name}" is not supported`);
    expect(error.hint).toContain('llama-bpe');
  });

  it('that are missing are an error', async () => {
    const error = await rejection(writeTinyGguf({ metadata: { 'tokenizer.ggml.pre': null } }));
    expect(error.message).toMatch(/tokenizer.ggml.pre is missing/);
  });
});
