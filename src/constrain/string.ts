/**
 * JSON strings, quotes included: valid UTF-8, valid escapes, a length in characters, a pattern, and keys that
 * must not appear. All of it is one machine, so that constraints can be combined.
 */
import { DEAD, StateTable, utf8, type Machine } from './machine.js';
import type { Nfa } from './regex.js';

export interface StringRules {
  /** Characters (code points). @default 0 */
  minLength?: number;
  /** @default Infinity */
  maxLength?: number;
  pattern?: Nfa;
  /** These texts are not allowed; escapes are not either then, or they could be spelt in another way. */
  forbidden?: readonly string[];
}

/** Where in a string: */
const Phase = { START: 0, BODY: 1, ESCAPE: 2, HEX: 3, TAIL: 4, END: 5 } as const;

interface State {
  phase: number;
  /** HEX: digits still to come, and whether the first was D (then 8..F would make half a surrogate pair). */
  hex: number;
  surrogate: boolean;
  /** TAIL: continuation bytes still to come, and the range of the next one. */
  tail: number;
  low: number;
  high: number;
  /** Characters begun; counted only as far as the rules ask. */
  count: number;
  /** States of the pattern, sorted; empty without a pattern. */
  nfa: readonly number[];
  /** Position in the trie of forbidden texts, -1: off it. */
  trie: number;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const SHORT_ESCAPES = new Set([...utf8('"\\/bfnrt')]);

export function stringMachine(rules: StringRules = {}): Machine {
  const { minLength = 0, maxLength = Infinity, pattern, forbidden } = rules;
  const trie = forbidden ? new Trie(forbidden) : null;
  const table = new StateTable<State>(
    (s) =>
      `${s.phase},${s.hex},${s.surrogate},${s.tail},${s.low},${s.high},${s.count},${s.trie},${s.nfa.join('.')}`,
  );
  // Counting on after everything is decided would only make states that differ in nothing.
  const lastCount = Math.max(minLength, maxLength === Infinity ? 0 : maxLength + 1);
  const base: State = {
    phase: Phase.BODY,
    hex: 0,
    surrogate: false,
    tail: 0,
    low: 0,
    high: 0,
    count: 0,
    nfa: [],
    trie: trie ? 0 : -1,
  };

  const possible = (s: State, nfaState: number): boolean =>
    s.count + pattern!.fewest[nfaState] <= maxLength && s.count + pattern!.most[nfaState] >= minLength;

  function advance(s: State, byte: number, begins: boolean): State | null {
    const next = { ...s };
    if (begins) {
      if (s.count >= maxLength) return null;
      next.count = Math.min(s.count + 1, lastCount);
    }
    if (trie && s.trie >= 0) next.trie = trie.step(s.trie, byte);
    if (pattern) {
      next.nfa = closure(pattern, moves(pattern, s.nfa, byte)).filter((state) => possible(next, state));
      if (next.nfa.length === 0) return null;
    }
    return next;
  }

  function body(s: State, byte: number): State | null {
    if (byte === QUOTE) {
      const ends =
        s.count >= minLength && (!pattern || s.nfa.includes(pattern.accept)) && !(trie && trie.ends(s.trie));
      return ends ? { ...base, phase: Phase.END, trie: -1 } : null;
    }
    if (byte < 0x20) return null;
    const next = advance(s, byte, true);
    if (!next) return null;
    if (byte === BACKSLASH) return trie ? null : { ...next, phase: Phase.ESCAPE };
    if (byte < 0x80) return next;
    const tail = leadByte(byte);
    return tail && { ...next, phase: Phase.TAIL, ...tail };
  }

  function step(s: State, byte: number): State | null {
    if (s.phase === Phase.START)
      return byte === QUOTE
        ? { ...base, nfa: pattern ? closure(pattern, [pattern.start]).filter((n) => possible(base, n)) : [] }
        : null;
    if (s.phase === Phase.BODY) return body(s, byte);
    if (s.phase === Phase.END) return null;
    const next = advance(s, byte, false);
    if (!next) return null;
    const done = { ...next, phase: Phase.BODY, hex: 0, surrogate: false, tail: 0, low: 0, high: 0 };
    if (s.phase === Phase.ESCAPE) {
      if (SHORT_ESCAPES.has(byte)) return done;
      return byte === 0x75 ? { ...next, phase: Phase.HEX, hex: 4 } : null;
    }
    if (s.phase === Phase.HEX) {
      const digit = hexDigit(byte);
      if (digit < 0 || (s.surrogate && digit >= 8)) return null;
      return s.hex === 1 ? done : { ...next, hex: s.hex - 1, surrogate: s.hex === 4 && digit === 0xd };
    }
    if (byte < s.low || byte > s.high) return null;
    return s.tail === 1 ? done : { ...next, tail: s.tail - 1, low: 0x80, high: 0xbf };
  }

  return {
    start: table.id({ ...base, phase: Phase.START }),
    step(id, byte) {
      const next = step(table.get(id), byte);
      return next ? table.id(next) : DEAD;
    },
    accepts: (id) => table.get(id).phase === Phase.END,
  };
}

/** Continuation bytes after a leading byte, and the range of the first: no overlong forms, no surrogates. */
function leadByte(byte: number): { tail: number; low: number; high: number } | null {
  if (byte >= 0xc2 && byte <= 0xdf) return { tail: 1, low: 0x80, high: 0xbf };
  if (byte >= 0xe0 && byte <= 0xef)
    return { tail: 2, low: byte === 0xe0 ? 0xa0 : 0x80, high: byte === 0xed ? 0x9f : 0xbf };
  if (byte >= 0xf0 && byte <= 0xf4)
    return { tail: 3, low: byte === 0xf0 ? 0x90 : 0x80, high: byte === 0xf4 ? 0x8f : 0xbf };
  return null;
}

function hexDigit(byte: number): number {
  if (byte >= 0x30 && byte <= 0x39) return byte - 0x30;
  const letter = byte | 0x20;
  return letter >= 0x61 && letter <= 0x66 ? letter - 0x57 : -1;
}

function moves(nfa: Nfa, states: readonly number[], byte: number): number[] {
  const out: number[] = [];
  for (const s of states)
    for (const e of nfa.edges[s]) if (byte >= e.from && byte <= e.to) out.push(e.target);
  return out;
}

/** With empty moves, sorted, every state once. */
function closure(nfa: Nfa, states: readonly number[]): number[] {
  const found = new Set(states);
  for (const s of found) for (const t of nfa.empty[s]) found.add(t);
  return [...found].sort((a, b) => a - b);
}

class Trie {
  private readonly children: Map<number, number>[] = [new Map()];
  private readonly last = new Set<number>();

  constructor(texts: readonly string[]) {
    for (const text of texts) {
      let node = 0;
      for (const byte of utf8(text)) {
        let next = this.children[node].get(byte);
        if (next === undefined) this.children[node].set(byte, (next = this.children.push(new Map()) - 1));
        node = next;
      }
      this.last.add(node);
    }
  }

  step(node: number, byte: number): number {
    return this.children[node].get(byte) ?? -1;
  }

  ends(node: number): boolean {
    return this.last.has(node);
  }
}
