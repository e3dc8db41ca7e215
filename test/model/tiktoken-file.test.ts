import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { readRanks, readTiktoken, tiktokenJson } from '../../src/model/tiktoken-file.js';
import { createTokenizer } from '../../src/model/tokenizer.js';
import { rejection } from '../helpers/expect-reject.js';
import { writeTinyFolder } from '../helpers/tiny-models.js';

/** All bytes, then some unions, as lines of a tiktoken file. */
const UNIONS = ['he', 'th', 'the', ' the', 'aa', 'aaaa', '  ', '12', 'é'];
const entries = [
  ...Array.from({ length: 256 }, (_, b) => Buffer.from([b])),
  ...UNIONS.map((t) => Buffer.from(t)),
];
const lines = entries.map((bytes, rank) => `${bytes.toString('base64')} ${rank}`);

const tokenizer = createTokenizer({
  tokenizerJson: JSON.stringify(
    tiktokenJson(readRanks(lines.join('\n'), 'x.tiktoken'), {
      pre: 'llama-bpe',
      ranks: lines.length,
      special: ['<|end|>', null, '<|turn|>'],
    }),
  ),
  tokenizerConfigJson: '{}',
  chatTemplate: null,
  generationConfigJson: null,
});
const pieces = (text: string): string[] => tokenizer.encode(text).map((id) => entries[id].toString());

/** tiktoken's rule in its plainest form: again and again, join the leftmost pair of lowest rank. */
function joined(word: string): string[] {
  const parts = Array.from(Buffer.from(word), (b) => Buffer.from([b]));
  const rank = (i: number) => entries.findIndex((e) => e.equals(Buffer.concat([parts[i], parts[i + 1]])));
  for (;;) {
    let best = -1;
    for (let i = 0; i + 1 < parts.length; i++)
      if (rank(i) >= 0 && (best < 0 || rank(i) < rank(best))) best = i;
    if (best < 0) return parts.map(String);
    parts.splice(best, 2, Buffer.concat([parts[best], parts[best + 1]]));
  }
}

describe('tiktoken files', () => {
  it.each(['the', 'thehe', 'aaaaaaa', 'hthe', 'éa'])('join pairs by rank: %s', (word) => {
    expect(pieces(word)).toEqual(joined(word));
  });

  it('cut texts before joining, and spell every byte', () => {
    expect(pieces('a the 12')).toEqual(['a', ' the', ' ', '12']);
    expect(tokenizer.decode(tokenizer.encode('naïve 🦉'))).toBe('naïve 🦉');
  });

  it('have special tokens behind their ranks', () => {
    expect(tokenizer.encode('<|turn|>')).toEqual([lines.length + 2]);
  });

  it('may have Windows line ends and no last line end', () => {
    expect(readRanks(lines.join('\r\n'), 'x')).toEqual(readRanks(`${lines.join('\n')}\n`, 'x'));
  });

  it.each<[string, string, RegExp]>([
    ['a line that is none', 'IQ== 0\nhello', /line 2: expected base64 and a rank/],
    ['a rank twice', 'IQ== 0\nIg== 0', /line 2: rank 0/],
    ['a rank outside', 'IQ== 5', /rank 5 of 1/],
    ['a token twice', 'IQ== 0\nIQ== 1', /line 2: an empty token, or one used twice/],
  ])('are refused with %s', (_, text, message) => {
    expect(() => readRanks(text, 'x.tiktoken')).toThrow(message);
  });

  it('of an unknown vocabulary are refused: how they cut texts is not in the file', () => {
    expect(() => readTiktoken(lines.join('\n'), 'x.tiktoken')).toThrow(/265 tokens: how it cuts texts/);
  });

  it('are looked for when tokenizer.json and tokenizer.model are missing', async () => {
    const folder = writeTinyFolder();
    rmSync(join(folder, 'tokenizer.json'));
    expect((await rejection(folder)).message).toMatch(/no tokenizer.json, tokenizer.model or .tiktoken/);
    writeFileSync(join(folder, 'qwen.tiktoken'), lines.join('\n'));
    expect((await rejection(folder)).message).toMatch(/qwen.tiktoken: a tiktoken file of 265 tokens/);
  });
});
