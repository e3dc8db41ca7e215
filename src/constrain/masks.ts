/** From a grammar and a vocabulary to the tokens that may come next. */
import { Automaton, type State } from './automaton.js';
import type { Node } from './grammar.js';
import { ConstraintError } from './schema-error.js';
import { tokenTrie, type TokenTrie } from './token-trie.js';

export interface Vocabulary {
  /** Logits, hence bits of a mask. */
  size: number;
  /** By id; undefined: control tokens and holes. */
  bytes: readonly (Uint8Array | undefined)[];
  /** Allowed where the text may end, and nowhere else. */
  endIds: readonly number[];
}

/** Steps of the automaton that one mask may cost: about a second. Real schemas need thousands. */
const MAX_WORK = 5_000_000;

/** One vocabulary, shared by all requests of a model. */
export class TokenMasks {
  private readonly trie: TokenTrie;
  private readonly words: number;
  /** Sequences under one grammar, such as the choices of a request, find each other's masks. */
  private readonly automata = new WeakMap<Node, Automaton>();

  constructor(private readonly vocabulary: Vocabulary) {
    this.trie = tokenTrie(vocabulary.bytes.slice(0, vocabulary.size));
    this.words = Math.ceil(vocabulary.size / 32);
  }

  /**
   * Constrain one sequence.
   * @returns for the tokens generated so far, a bit for every token that may follow
   */
  start(root: Node): (tokens: readonly number[]) => Uint32Array {
    const automaton = this.automata.get(root) ?? new Automaton(root);
    this.automata.set(root, automaton);
    /** After i tokens. */
    const states: State[] = [automaton.start];
    const taken: number[] = [];
    return (tokens) => {
      let same = 0;
      while (same < taken.length && same < tokens.length && taken[same] === tokens[same]) same++;
      taken.length = same;
      states.length = same + 1;
      for (const token of tokens.slice(same)) {
        states.push(automaton.trim(this.accept(automaton, states[taken.length], token)));
        taken.push(token);
      }
      return this.maskOf(automaton, states[taken.length]);
    };
  }

  private accept(automaton: Automaton, from: State, token: number): State {
    let state: State | null = from;
    for (const byte of this.vocabulary.bytes[token] ?? []) state = state && automaton.step(state, byte);
    if (!state) throw new ConstraintError(`token ${token} was not allowed`);
    return state;
  }

  private maskOf(automaton: Automaton, start: State): Uint32Array {
    if (start.mask) return start.mask;
    const { byte, depth, skip, first, tokens, maxDepth } = this.trie;
    const mask = new Uint32Array(this.words);
    const path = new Array<State>(maxDepth + 1);
    path[0] = start;
    const budget = automaton.work + MAX_WORK;
    let any = false;
    for (let node = 0; node < byte.length;) {
      const at = depth[node];
      const next = automaton.step(path[at], byte[node]);
      if (next === null) {
        node = skip[node];
        continue;
      }
      if (automaton.work > budget) throw new ConstraintError('the schema takes too long');
      path[at + 1] = next;
      for (let i = first[node]; i < first[node + 1]; i++) {
        mask[tokens[i] >>> 5] |= 1 << (tokens[i] & 31);
        any = true;
      }
      node++;
    }
    if (start.accepting) for (const id of this.vocabulary.endIds) mask[id >>> 5] |= 1 << (id & 31);
    if (!any && !start.accepting)
      throw new ConstraintError('the schema’s constraints contradict each other: nothing may follow');
    return (start.mask = mask);
  }
}
