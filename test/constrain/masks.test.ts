/** Masks over a real vocabulary: the same tokens as trying each, and texts that parse. */
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { Automaton, type State } from '../../src/constrain/automaton.js';
import { TokenMasks } from '../../src/constrain/masks.js';
import { compileSchema } from '../../src/constrain/schema.js';
import { tokenTrie } from '../../src/constrain/token-trie.js';
import { byteSpelling, tokenBytes } from '../../src/model/token-bytes.js';
import { checkTokenizerJson, invalid } from '../../src/model/tokenizer-schema.js';
import { parseStrictJson } from '../../src/io/strict-json.js';
import { DEMO } from '../engine/open.js';

const checked = checkTokenizerJson(
  parseStrictJson(readFileSync(`${DEMO}/tokenizer.json`, 'utf8'), 'tokenizer.json', invalid),
);
const special = new Set(checked.added.filter((t) => t.special).map((t) => t.id));
const bytes = tokenBytes(checked, byteSpelling(checked)).map((part, id) =>
  special.has(id) ? undefined : part,
);
const END = 1;
const masks = new TokenMasks({ size: 1024, bytes, endIds: [END] });
const has = (mask: Uint32Array, id: number): boolean => ((mask[id >>> 5] >>> (id & 31)) & 1) === 1;

const SCHEMA = {
  type: 'object',
  properties: {
    name: { type: 'string', maxLength: 12 },
    age: { type: 'integer', minimum: 0, maximum: 150 },
    tags: { type: 'array', items: { enum: ['king', 'queen', 'wolf'] }, maxItems: 3 },
  },
  required: ['name', 'age', 'tags'],
  additionalProperties: false,
};

describe('the trie', () => {
  it('holds every token once, under its bytes', () => {
    const trie = tokenTrie(bytes);
    const found = new Map<number, number[]>();
    const path: number[] = [];
    for (let node = 0; node < trie.byte.length; node++) {
      path.length = trie.depth[node];
      path.push(trie.byte[node]);
      for (let i = trie.first[node]; i < trie.first[node + 1]; i++) found.set(trie.tokens[i], [...path]);
    }
    expect(found.size).toBe(bytes.filter((part) => part && part.length > 0).length);
    for (const [id, text] of found) expect([...bytes[id]!]).toEqual(text);
  });
});

describe('a mask', () => {
  it('allows the tokens that trying each of them allows', () => {
    const grammar = compileSchema(SCHEMA);
    const automaton = new Automaton(grammar);
    const next = masks.start(grammar);
    const tokens: number[] = [];
    for (let i = 0, state: State = automaton.start; i < 12; i++) {
      const mask = next(tokens);
      const after = (id: number): State | null => {
        let at: State | null = state;
        for (const byte of bytes[id] ?? []) at = at && automaton.step(at, byte);
        return bytes[id] ? at : null;
      };
      const tried = bytes.flatMap((_, id) => (after(id) ? [id] : []));
      const masked = bytes.flatMap((_, id) => (has(mask, id) && id !== END ? [id] : []));
      expect(masked).toEqual(tried);
      expect(has(mask, END)).toBe(state.accepting);
      tokens.push(tried[(i * 7919) % tried.length]);
      state = after(tokens.at(-1)!)!;
    }
  });

  it('leads random choices to JSON of the schema, and offers the end only there', () => {
    let seed = 1;
    const random = () => (seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) / 2 ** 32;
    for (let run = 0; run < 20; run++) {
      const next = masks.start(compileSchema(SCHEMA));
      const tokens: number[] = [];
      for (;;) {
        const mask = next(tokens);
        const allowed = Array.from({ length: 1024 }, (_, id) => id).filter((id) => has(mask, id));
        expect(allowed.length).toBeGreaterThan(0);
        if (allowed.includes(END)) break;
        tokens.push(allowed[Math.floor(random() * allowed.length)]);
      }
      const text = Buffer.concat(tokens.map((id) => bytes[id]!)).toString();
      const value = JSON.parse(text) as { name: string; age: number; tags: string[] };
      expect(Object.keys(value)).toEqual(['name', 'age', 'tags']);
      expect(value.age).toBeLessThanOrEqual(150);
    }
  });

  it('follows when tokens are taken back, as speculation does', () => {
    const next = masks.start(compileSchema({ enum: ['abc', 'abd', 'x'] }));
    const id = (text: string): number =>
      bytes.findIndex((part) => part && Buffer.from(part).toString() === text);
    const tokens = ['"', 'a', 'b'].map(id);
    const before = next(tokens);
    next([id('"'), id('x')]);
    expect(next(tokens)).toEqual(before);
    expect(has(next(tokens), id('d'))).toBe(true);
    expect(has(next(tokens), id('x'))).toBe(false);
  });

  it('refuses a token that was not allowed', () => {
    const next = masks.start(compileSchema({ type: 'null' }));
    expect(() => next([bytes.findIndex((part) => part?.[0] === 0x78)])).toThrow(/was not allowed/);
  });
});
