/**
 * What constrained decoding costs a token: random walks through schemas, masks timed one by one, over the demo
 * model's vocabulary and a synthetic one of 128,000 tokens: node tools/mask-cost.mjs
 */
import { readFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';
import { compileSchema, TokenMasks } from '../dist/constrain/index.js';
import { parseStrictJson } from '../dist/io/strict-json.js';
import { byteSpelling, tokenBytes } from '../dist/model/token-bytes.js';
import { checkTokenizerJson, invalid } from '../dist/model/tokenizer-schema.js';

const SCHEMAS = {
  'object of 3': {
    type: 'object',
    properties: {
      name: { type: 'string' },
      age: { type: 'integer', minimum: 0, maximum: 150 },
      kind: { enum: ['king', 'queen'] },
    },
    required: ['name', 'age', 'kind'],
    additionalProperties: false,
  },
  'list of records, lengths and a pattern': {
    type: 'array',
    minItems: 3,
    maxItems: 5,
    items: {
      type: 'object',
      properties: {
        id: { type: 'string', pattern: '^[A-Z]{2}-\\d{4}$' },
        note: { type: 'string', maxLength: 40 },
        tags: { type: 'array', items: { type: 'string', maxLength: 8 }, maxItems: 3 },
      },
      required: ['id', 'note', 'tags'],
    },
  },
  'any object': { type: 'object' },
};

let state = 7;
const random = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;

function demoVocabulary() {
  const text = readFileSync('models/tales-4m-relu/tokenizer.json', 'utf8');
  const checked = checkTokenizerJson(parseStrictJson(text, 'tokenizer.json', invalid, 1 << 23));
  return tokenBytes(checked, byteSpelling(checked)).map((bytes, id) => (id < 2 ? undefined : bytes));
}

/** All bytes, and words with and without a space before them, as byte-level vocabularies have them. */
function largeVocabulary(size) {
  const tokens = [undefined, undefined, ...Array.from({ length: 256 }, (_, b) => Uint8Array.of(b))];
  const seen = new Set();
  while (tokens.length < size) {
    const length = 2 + Math.floor(random() * 9);
    let word = random() < 0.4 ? ' ' : '';
    for (let i = 0; i < length; i++) word += 'etaoinshrdlucmfwypvbgkjqxz'[Math.floor(26 * random() ** 2)];
    if (random() < 0.1)
      word =
        ['",', '": "', '"}', '{"', '],', '\n  "', '123', '00', '2024'][Math.floor(random() * 9)] +
        (random() < 0.5 ? '' : word);
    if (!seen.has(word) && seen.add(word)) tokens.push(Buffer.from(word));
  }
  return tokens;
}

for (const [vocabulary, bytes] of [
  ['1,024 (demo model)', demoVocabulary()],
  ['128,000 (synthetic)', largeVocabulary(128_000)],
]) {
  const began = performance.now();
  const masks = new TokenMasks({ size: bytes.length, bytes, endIds: [1] });
  console.log(`vocabulary ${vocabulary}: trie built in ${(performance.now() - began).toFixed(0)} ms`);
  for (const [name, schema] of Object.entries(SCHEMAS)) {
    const times = [];
    let compile = 0;
    for (let run = 0; run < 5; run++) {
      const start = performance.now();
      const next = masks.start(compileSchema(schema));
      compile += performance.now() - start;
      const tokens = [];
      while (tokens.length < 100) {
        const before = performance.now();
        const mask = next(tokens);
        times.push(performance.now() - before);
        const allowed = [];
        for (let id = 0; id < bytes.length; id++) if ((mask[id >>> 5] >>> (id & 31)) & 1) allowed.push(id);
        const id = allowed[Math.floor(random() * allowed.length)];
        if (id === 1) break;
        tokens.push(id);
      }
    }
    times.sort((a, b) => a - b);
    const at = (share) => times[Math.floor(share * (times.length - 1))].toFixed(3);
    const mean = times.reduce((a, b) => a + b, 0) / times.length;
    console.log(
      `  ${name}: compile ${(compile / 5).toFixed(1)} ms; mask mean ${mean.toFixed(3)}, p50 ${at(0.5)}, p99 ${at(0.99)}, max ${at(1)} ms (${times.length} masks)`,
    );
  }
}
