/** Lexemes: deterministic machines over bytes. The syntax above them (grammar.ts) is built of these. */

export const DEAD = -1;

/** States are small whole numbers; `step` gives DEAD when no text that goes on so is wanted. */
export interface Machine {
  readonly start: number;
  step(state: number, byte: number): number;
  /** May the text end here? */
  accepts(state: number): boolean;
}

const encoder = new TextEncoder();
export const utf8 = (text: string): Uint8Array => encoder.encode(text);

/** Exactly these bytes. */
export function literal(text: string): Machine {
  const bytes = utf8(text);
  return {
    start: 0,
    step: (state, byte) => (bytes[state] === byte ? state + 1 : DEAD),
    accepts: (state) => state === bytes.length,
  };
}

/** One of several texts: a trie. */
export function oneOf(texts: readonly string[]): Machine {
  const children: Map<number, number>[] = [new Map()];
  const ends = new Set<number>();
  for (const text of texts) {
    let node = 0;
    for (const byte of utf8(text)) {
      let next = children[node].get(byte);
      if (next === undefined) {
        next = children.push(new Map()) - 1;
        children[node].set(byte, next);
      }
      node = next;
    }
    ends.add(node);
  }
  return {
    start: 0,
    step: (state, byte) => children[state].get(byte) ?? DEAD,
    accepts: (state) => ends.has(state),
  };
}

const SPACE = 0x20;
const TAB = 0x09;
const NEWLINE = 0x0a;
/** Indentation of ten levels of two: a model that is allowed any number of spaces may write spaces for ever. */
const MAX_INDENT = 20;

/** Nothing, one space, or a line break with indentation. */
export const whitespace: Machine = {
  start: 0,
  step(state, byte) {
    if (state === 0) return byte === SPACE ? 1 : byte === NEWLINE ? 2 : DEAD;
    const indents = (byte === SPACE || byte === TAB) && state >= 2 && state < 2 + MAX_INDENT;
    return indents ? state + 1 : DEAD;
  },
  accepts: () => true,
};

/** Any text that does not hold `trigger`. States: how much of the trigger was just seen. */
export function textWithout(trigger: string): Machine {
  const next = matcher(trigger);
  const length = utf8(trigger).length;
  return {
    start: 0,
    step: (state, byte) => (next(state, byte) === length ? DEAD : next(state, byte)),
    accepts: () => true,
  };
}

/** Any text up to and with the first `trigger`. */
export function textUntil(trigger: string): Machine {
  const next = matcher(trigger);
  const length = utf8(trigger).length;
  return {
    start: 0,
    step: (state, byte) => (state === length ? DEAD : next(state, byte)),
    accepts: (state) => state === length,
  };
}

/** Knuth, Morris and Pratt: the longest beginning of the pattern that ends the text so far. */
function matcher(text: string): (state: number, byte: number) => number {
  const pattern = utf8(text);
  const fallback = new Int32Array(pattern.length + 1);
  for (let i = 1, k = 0; i < pattern.length; i++) {
    while (k > 0 && pattern[i] !== pattern[k]) k = fallback[k];
    if (pattern[i] === pattern[k]) k++;
    fallback[i + 1] = k;
  }
  return (state, byte) => {
    let k = state;
    while (k > 0 && pattern[k] !== byte) k = fallback[k];
    return pattern[k] === byte ? k + 1 : 0;
  };
}

/** Numbers for states that are described by something else. */
export class StateTable<T> {
  private readonly ids = new Map<string | number, number>();
  private readonly states: T[] = [];

  constructor(private readonly keyOf: (state: T) => string | number) {}

  id(state: T): number {
    const key = this.keyOf(state);
    let id = this.ids.get(key);
    if (id === undefined) {
      id = this.states.push(state) - 1;
      this.ids.set(key, id);
    }
    return id;
  }

  get(id: number): T {
    return this.states[id];
  }
}
