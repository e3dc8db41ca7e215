/**
 * The `pattern` of a JSON schema: the part of ECMAScript's syntax that describes regular languages, as a
 * nondeterministic automaton over the bytes of a JSON string's inside (characters in UTF-8, quotes,
 * backslashes and control characters in their escaped forms).
 */
import { utf8 } from './machine.js';
import { SchemaError } from './schema-error.js';

/** Code points, inclusive. */
export type Range = [number, number];

type Tree =
  | { kind: 'set'; ranges: Range[] }
  | { kind: 'sequence'; items: Tree[] }
  | { kind: 'choice'; items: Tree[] }
  | { kind: 'repeat'; item: Tree; min: number; max: number }
  | { kind: 'start' | 'end' };

const MAX_CODE = 0x10ffff;
const ANY: Range[] = [[0, MAX_CODE]];
const LINE_ENDS: Range[] = [
  [0x0a, 0x0a],
  [0x0d, 0x0d],
  [0x2028, 0x2029],
];
const DIGITS: Range[] = [[0x30, 0x39]];
const WORD: Range[] = [
  [0x30, 0x39],
  [0x41, 0x5a],
  [0x5f, 0x5f],
  [0x61, 0x7a],
];
const SPACES: Range[] = [
  [0x09, 0x0d],
  [0x20, 0x20],
  [0xa0, 0xa0],
  [0x1680, 0x1680],
  [0x2000, 0x200a],
  [0x2028, 0x2029],
  [0x202f, 0x202f],
  [0x205f, 0x205f],
  [0x3000, 0x3000],
  [0xfeff, 0xfeff],
];

/** Longest `{n,m}`; the automaton holds so many copies. */
const MAX_REPEAT = 256;
/** States of the automaton: every byte of every candidate token may touch all of them. */
const MAX_STATES = 4000;
const MAX_DEPTH = 50;

// ---- parsing -----------------------------------------------------------------------------------------

class Parser {
  private at = 0;
  private depth = 0;

  constructor(private readonly source: string) {}

  parse(): Tree {
    const tree = this.choice();
    if (this.at < this.source.length) throw this.refuse(`unexpected ${JSON.stringify(this.source[this.at])}`);
    return tree;
  }

  private choice(): Tree {
    if (++this.depth > MAX_DEPTH) throw this.refuse('groups nested too deep');
    const items = [this.sequence()];
    while (this.take('|')) items.push(this.sequence());
    this.depth--;
    return items.length === 1 ? items[0] : { kind: 'choice', items };
  }

  private sequence(): Tree {
    const items: Tree[] = [];
    while (this.at < this.source.length && !this.ahead('|') && !this.ahead(')'))
      items.push(this.quantified());
    return { kind: 'sequence', items };
  }

  private quantified(): Tree {
    const item = this.atom();
    const bounds = this.quantifier();
    if (!bounds) return item;
    this.take('?'); // lazy or greedy: the same texts match
    if (item.kind === 'start' || item.kind === 'end') throw this.refuse('a repeated anchor');
    if (this.quantifier()) throw this.refuse('a quantifier behind a quantifier');
    return { kind: 'repeat', item, ...bounds };
  }

  private quantifier(): { min: number; max: number } | null {
    if (this.take('*')) return { min: 0, max: Infinity };
    if (this.take('+')) return { min: 1, max: Infinity };
    if (this.take('?')) return { min: 0, max: 1 };
    const match = /^\{(\d{1,6})(,(\d{0,6}))?\}/.exec(this.source.slice(this.at));
    if (!match) return null;
    this.at += match[0].length;
    const min = Number(match[1]);
    const max = match[2] === undefined ? min : match[3] === '' ? Infinity : Number(match[3]);
    if (max < min || min > MAX_REPEAT || (max !== Infinity && max > MAX_REPEAT))
      throw this.refuse(`repetitions ${match[0]}, at most ${MAX_REPEAT}`);
    return { min, max };
  }

  private atom(): Tree {
    const char = this.next();
    if (char === '^') return { kind: 'start' };
    if (char === '$') return { kind: 'end' };
    if (char === '.') return { kind: 'set', ranges: complement(LINE_ENDS) };
    if (char === '[') return { kind: 'set', ranges: this.charClass() };
    if (char === '(') return this.group();
    if (char === '\\') return { kind: 'set', ranges: this.escape() };
    if ('*+?{'.includes(char)) throw this.refuse(`nothing to repeat before ${char}`);
    return single(char.codePointAt(0)!);
  }

  private group(): Tree {
    if (this.take('?')) {
      if (!this.take(':') && !this.namedGroup()) throw this.refuse('look-around');
    }
    const tree = this.choice();
    if (!this.take(')')) throw this.refuse('an open group');
    return tree;
  }

  private namedGroup(): boolean {
    const match = /^<[A-Za-z_$][\w$]*>/.exec(this.source.slice(this.at));
    if (match) this.at += match[0].length;
    return match !== null;
  }

  private charClass(): Range[] {
    const negated = this.take('^');
    const ranges: Range[] = [];
    while (!this.take(']')) {
      const from = this.classAtom();
      if (this.ahead('-') && this.source[this.at + 1] !== ']') {
        this.at++;
        const to = this.classAtom();
        if (
          from.length !== 1 ||
          to.length !== 1 ||
          from[0][0] !== from[0][1] ||
          to[0][0] !== to[0][1] ||
          to[0][0] < from[0][0]
        )
          throw this.refuse('a range without order');
        ranges.push([from[0][0], to[0][0]]);
      } else ranges.push(...from);
    }
    return negated ? complement(ranges) : ranges;
  }

  private classAtom(): Range[] {
    const char = this.next();
    if (char !== '\\') return [[char.codePointAt(0)!, char.codePointAt(0)!]];
    if (this.take('b')) return [[8, 8]];
    return this.escape();
  }

  private escape(): Range[] {
    const char = this.next();
    const classes: Record<string, Range[]> = {
      d: DIGITS,
      w: WORD,
      s: SPACES,
      D: complement(DIGITS),
      W: complement(WORD),
      S: complement(SPACES),
    };
    if (Object.hasOwn(classes, char)) return classes[char];
    const controls: Record<string, number> = { n: 10, r: 13, t: 9, f: 12, v: 11, '0': 0 };
    if (Object.hasOwn(controls, char) && !/\d/.test(char === '0' ? (this.source[this.at] ?? '') : ''))
      return [[controls[char], controls[char]]];
    if (char === 'x' || char === 'u') return this.hexEscape(char);
    if (/[A-Za-z0-9]/.test(char)) throw this.refuse(`\\${char}`);
    return [[char.codePointAt(0)!, char.codePointAt(0)!]];
  }

  private hexEscape(kind: 'x' | 'u'): Range[] {
    const form = kind === 'x' ? /^([0-9a-fA-F]{2})/ : /^(?:([0-9a-fA-F]{4})|\{([0-9a-fA-F]{1,6})\})/;
    const match = form.exec(this.source.slice(this.at));
    const code = match ? parseInt(match[1] ?? match[2], 16) : NaN;
    if (!match || code > MAX_CODE || (code >= 0xd800 && code <= 0xdfff))
      throw this.refuse(`\\${kind} without a character`);
    this.at += match[0].length;
    return [[code, code]];
  }

  private next(): string {
    const code = this.source.codePointAt(this.at);
    if (code === undefined) throw this.refuse('an end where more is expected');
    const char = String.fromCodePoint(code);
    this.at += char.length;
    return char;
  }

  private ahead(char: string): boolean {
    return this.source[this.at] === char;
  }

  private take(char: string): boolean {
    if (!this.ahead(char)) return false;
    this.at++;
    return true;
  }

  private refuse(what: string): SchemaError {
    return new SchemaError(`pattern ${JSON.stringify(this.source.slice(0, 80))}: ${what} is not supported`);
  }
}

const single = (code: number): Tree => ({ kind: 'set', ranges: [[code, code]] });

function complement(ranges: readonly Range[]): Range[] {
  const out: Range[] = [];
  let next = 0;
  for (const [from, to] of [...ranges].sort((a, b) => a[0] - b[0])) {
    if (from > next) out.push([next, from - 1]);
    next = Math.max(next, to + 1);
  }
  if (next <= MAX_CODE) out.push([next, MAX_CODE]);
  return out;
}

// ---- automaton ---------------------------------------------------------------------------------------

interface Edge {
  from: number; // bytes, inclusive
  to: number;
  target: number;
  /** The first byte of a character. */
  begins: boolean;
}

/** Over bytes, without empty moves in `edges` (they are in `empty`). */
export interface Nfa {
  start: number;
  accept: number;
  edges: Edge[][];
  empty: number[][];
  /** Fewest and most characters from a state to acceptance; Infinity: none, or no end. */
  fewest: Float64Array;
  most: Float64Array;
}

/**
 * @param pattern as JSON Schema means it: it may match anywhere unless anchored
 * @throws SchemaError naming what is not supported
 */
export function compilePattern(pattern: string): Nfa {
  return new Builder().build(anchored(new Parser(pattern).parse()));
}

/** `.*` where the pattern has no anchor. Anchors in other places than the ends are refused. */
function anchored(tree: Tree): Tree {
  if (tree.kind === 'choice') return { kind: 'choice', items: tree.items.map(anchored) };
  const items = tree.kind === 'sequence' ? [...tree.items] : [tree];
  const free: Tree = { kind: 'repeat', item: { kind: 'set', ranges: ANY }, min: 0, max: Infinity };
  if (items[0]?.kind === 'start') items.shift();
  else if (items.length !== 1 || items[0].kind !== 'choice' || !hasAnchor(items[0])) items.unshift(free);
  else return anchored(items[0]);
  if (items.at(-1)?.kind === 'end') items.pop();
  else items.push(free);
  if (items.some(hasAnchor))
    throw new SchemaError('pattern: anchors inside are not supported, only ^ at the begin and $ at the end');
  return { kind: 'sequence', items };
}

function hasAnchor(tree: Tree): boolean {
  if (tree.kind === 'start' || tree.kind === 'end') return true;
  if (tree.kind === 'repeat') return hasAnchor(tree.item);
  return 'items' in tree && tree.items.some(hasAnchor);
}

class Builder {
  private readonly edges: Edge[][] = [];
  private readonly empty: number[][] = [];

  build(tree: Tree): Nfa {
    const start = this.state();
    const accept = this.state();
    this.add(tree, start, accept);
    const { edges, empty } = this;
    const fewest = distances(edges, empty, accept);
    return { start, accept, edges, empty, fewest, most: longest(edges, empty, accept, fewest) };
  }

  private state(): number {
    if (this.edges.length === MAX_STATES)
      throw new SchemaError(`pattern: it needs more than ${MAX_STATES} states`);
    this.empty.push([]);
    return this.edges.push([]) - 1;
  }

  private add(tree: Tree, from: number, to: number): void {
    if (tree.kind === 'set') return this.addSet(tree.ranges, from, to);
    if (tree.kind === 'choice') return tree.items.forEach((item) => this.add(item, from, to));
    if (tree.kind === 'sequence') {
      let at = from;
      for (const item of tree.items) {
        const next = this.state();
        this.add(item, at, next);
        at = next;
      }
      this.empty[at].push(to);
    } else if (tree.kind === 'repeat') this.addRepeat(tree.item, tree.min, tree.max, from, to);
  }

  private addRepeat(item: Tree, min: number, max: number, from: number, to: number): void {
    let at = from;
    for (let i = 0; i < min; i++) at = this.copy(item, at);
    if (max === Infinity) {
      const loop = this.state();
      this.empty[at].push(loop);
      this.add(item, loop, loop);
      this.empty[loop].push(to);
      return;
    }
    for (let i = min; i < max; i++) {
      this.empty[at].push(to);
      at = this.copy(item, at);
    }
    this.empty[at].push(to);
  }

  private copy(item: Tree, from: number): number {
    const next = this.state();
    this.add(item, from, next);
    return next;
  }

  /** Plain characters in UTF-8; those that JSON must escape in their one escaped form. */
  private addSet(ranges: readonly Range[], from: number, to: number): void {
    for (const [low, high] of merged(ranges)) {
      for (let code = low; code <= Math.min(high, 0x5c); code++) {
        if (code < 0x20 || code === 0x22 || code === 0x5c)
          this.addBytes(utf8(JSON.stringify(String.fromCharCode(code)).slice(1, -1)), from, to);
      }
      for (const [a, b] of PLAIN) {
        const [first, last] = [Math.max(low, a), Math.min(high, b)];
        if (first <= last) this.addUtf8(first, last, from, to);
      }
    }
  }

  private addBytes(bytes: Uint8Array, from: number, to: number): void {
    this.addPath(
      [...bytes].map((byte): Range => [byte, byte]),
      from,
      to,
    );
  }

  /** Code points of one range as sequences of byte ranges: split where the length or a leading byte changes. */
  private addUtf8(first: number, last: number, from: number, to: number): void {
    for (const limit of [0x7f, 0x7ff, 0xffff]) {
      if (first <= limit && last > limit) {
        this.addUtf8(first, limit, from, to);
        this.addUtf8(limit + 1, last, from, to);
        return;
      }
    }
    const length = utf8(String.fromCodePoint(first)).length;
    for (let shift = 6; shift < length * 6; shift += 6) {
      const mask = 2 ** shift - 1;
      if (Math.floor(first / (mask + 1)) === Math.floor(last / (mask + 1))) continue;
      if (first % (mask + 1) !== 0) {
        const cut = first - (first % (mask + 1)) + mask;
        this.addUtf8(first, cut, from, to);
        this.addUtf8(cut + 1, last, from, to);
        return;
      }
      if (last % (mask + 1) !== mask) {
        const cut = last - (last % (mask + 1)) - 1;
        this.addUtf8(first, cut, from, to);
        this.addUtf8(cut + 1, last, from, to);
        return;
      }
    }
    const [a, b] = [utf8(String.fromCodePoint(first)), utf8(String.fromCodePoint(last))];
    this.addPath(
      [...a].map((byte, i): Range => [byte, b[i]]),
      from,
      to,
    );
  }

  private addPath(bytes: readonly Range[], from: number, to: number): void {
    bytes.forEach(([low, high], i) => {
      const target = i === bytes.length - 1 ? to : this.state();
      this.edges[from].push({ from: low, to: high, target, begins: i === 0 });
      from = target;
    });
  }
}

/** What stands in a JSON string as it is. Surrogates are no characters. */
const PLAIN: Range[] = [
  [0x20, 0x21],
  [0x23, 0x5b],
  [0x5d, 0xd7ff],
  [0xe000, MAX_CODE],
];

function merged(ranges: readonly Range[]): Range[] {
  return complement(complement(ranges));
}

/** Fewest characters to acceptance: backwards, character edges cost 1, all others nothing. */
function distances(edges: readonly Edge[][], empty: readonly number[][], accept: number): Float64Array {
  const far = new Float64Array(edges.length).fill(Infinity);
  far[accept] = 0;
  for (let changed = true; changed;) {
    changed = false;
    for (let s = edges.length - 1; s >= 0; s--) {
      let best = far[s];
      for (const t of empty[s]) best = Math.min(best, far[t]);
      for (const e of edges[s]) best = Math.min(best, far[e.target] + (e.begins ? 1 : 0));
      if (best < far[s]) [far[s], changed] = [best, true];
    }
  }
  return far;
}

/** Most characters to acceptance: Infinity where a useful cycle can be reached. */
function longest(
  edges: readonly Edge[][],
  empty: readonly number[][],
  accept: number,
  fewest: Float64Array,
): Float64Array {
  const most = new Float64Array(edges.length).fill(-Infinity);
  most[accept] = 0;
  // Without a cycle a longest way visits no state twice; one that still grows after so many rounds has none.
  for (let round = 0, changed = true; changed; round++) {
    changed = false;
    for (let s = edges.length - 1; s >= 0; s--) {
      if (fewest[s] === Infinity) continue;
      let best = most[s];
      for (const t of empty[s]) best = Math.max(best, most[t]);
      for (const e of edges[s])
        if (fewest[e.target] < Infinity) best = Math.max(best, most[e.target] + (e.begins ? 1 : 0));
      if (best > MAX_STATES) best = Infinity;
      if (best > most[s]) [most[s], changed] = [best, true];
    }
    if (round > MAX_STATES) break;
  }
  return most;
}
