/**
 * Runs a grammar over bytes. A state is a set of configurations (a lexeme's machine in some state, and a
 * stack of what follows), found when it is first needed and remembered with its transitions: after a while
 * a step is one look into a table.
 */
import type { Node } from './grammar.js';
import { DEAD, type Machine } from './machine.js';
import { ConstraintError } from './schema-error.js';

/** What follows: the node on top, a counter inside it, and the rest. Equal stacks are the same object. */
interface Stack {
  readonly id: number;
  readonly node: Node;
  /** sequence: next item; members: 0: nothing written yet, else next member + 1; items: items written. */
  readonly at: number;
  readonly below: Stack | null;
  readonly depth: number;
}

interface Configuration {
  machine: Machine;
  machineId: number;
  state: number;
  stack: Stack | null;
}

export interface State {
  readonly configurations: readonly Configuration[];
  /** The text may end here. */
  readonly accepting: boolean;
  /** By byte: undefined: not known yet; null: none. */
  readonly next: (State | null | undefined)[];
  /** Room for what is known about the state: masks.ts. */
  mask: Uint32Array | null;
}

/** Nested values; the stack holds about three entries for each. */
const MAX_DEPTH = 1000;
/** Ambiguity: configurations of one state. */
const MAX_CONFIGURATIONS = 2000;
/** States remembered; then all are forgotten but the current one. */
const MAX_STATES = 20_000;

export class Automaton {
  readonly start: State;
  private readonly stacks = new Map<string, Stack>();
  private stackCount = 0;
  private states = new Map<string, State>();
  private readonly machineIds = new Map<Machine, number>();
  /** Configurations advanced so far: what work costs. */
  work = 0;

  constructor(root: Node) {
    const found = new Map<string, Configuration>();
    const accepting = this.expand(this.push(root, null), found);
    this.start = this.intern(found, accepting);
  }

  /** @returns null when no text goes on with this byte */
  step(state: State, byte: number): State | null {
    const known = state.next[byte];
    if (known !== undefined) return known;
    const found = new Map<string, Configuration>();
    let accepting = false;
    for (const c of state.configurations) {
      this.work++;
      const next = c.machine.step(c.state, byte);
      if (next === DEAD) continue;
      this.add(found, { ...c, state: next });
      if (c.machine.accepts(next)) accepting = this.expand(c.stack, found) || accepting;
    }
    const result = found.size === 0 ? null : this.intern(found, accepting);
    state.next[byte] = result;
    return result;
  }

  /** Bounds memory: all but this state may be forgotten. */
  trim(state: State): State {
    if (this.states.size < MAX_STATES) return state;
    this.states = new Map();
    const found = new Map(state.configurations.map((c) => [keyOf(c), c]));
    return this.intern(found, state.accepting);
  }

  private intern(found: ReadonlyMap<string, Configuration>, accepting: boolean): State {
    if (found.size > MAX_CONFIGURATIONS) throw new ConstraintError('the schema is too ambiguous');
    const key = [...found.keys()].sort().join(' ') + (accepting ? '!' : '');
    let state = this.states.get(key);
    if (!state) {
      state = {
        configurations: [...found.values()],
        accepting,
        next: new Array<State | null | undefined>(256),
        mask: null,
      };
      this.states.set(key, state);
    }
    return state;
  }

  private add(found: Map<string, Configuration>, c: Configuration): void {
    found.set(keyOf(c), c);
  }

  /** All lexemes that may come next. @returns whether nothing need come */
  private expand(stack: Stack | null, found: Map<string, Configuration>): boolean {
    let mayEnd = false;
    const seen = new Set<number>();
    const todo: (Stack | null)[] = [stack];
    while (todo.length > 0) {
      const top = todo.pop()!;
      if (top === null) {
        mayEnd = true;
        continue;
      }
      if (seen.has(top.id)) continue;
      seen.add(top.id);
      this.work++;
      const { node, at, below } = top;
      if (node.kind === 'lexeme') {
        const { machine } = node;
        this.add(found, { machine, machineId: this.machineId(machine), state: machine.start, stack: below });
        if (machine.accepts(machine.start)) todo.push(below);
      } else if (node.kind === 'sequence') {
        const rest = at + 1 < node.items.length ? this.push(node, below, at + 1) : below;
        todo.push(node.items.length === 0 ? below : this.push(node.items[at], rest));
      } else if (node.kind === 'choice') {
        for (const item of node.items) todo.push(this.push(item, below));
      } else if (node.kind === 'ref') {
        if (node.target) todo.push(this.push(node.target, below));
      } else todo.push(...this.inside(top));
    }
    return mayEnd;
  }

  /** The next member of an object or item of an array, or its end. */
  private inside({ node, at, below }: Stack): (Stack | null)[] {
    if (node.kind === 'members') {
      return this.nextMembers(node, Math.max(0, at - 1), at === 0, below);
    }
    if (node.kind !== 'items') return [];
    const out: (Stack | null)[] = [];
    if (at >= node.min) out.push(this.push(at === 0 ? node.closeFirst : node.close, below));
    const item = node.items[at] ?? node.rest;
    if (item && at < node.max) {
      // Beyond everything that counts, the number of items makes no difference.
      const last = node.max === Infinity ? Math.max(1, node.min, node.items.length) : Infinity;
      const rest = this.push(item, this.push(node, below, Math.min(at + 1, last)));
      out.push(at === 0 ? rest : this.push(node.separator, rest));
    }
    return out;
  }

  private nextMembers(
    node: Extract<Node, { kind: 'members' }>,
    from: number,
    first: boolean,
    below: Stack | null,
  ): (Stack | null)[] {
    const out: (Stack | null)[] = [];
    const go = (member: Node, next: number): void => {
      const rest = this.push(member, this.push(node, below, next + 1));
      out.push(first ? rest : this.push(node.separator, rest));
    };
    for (let i = from; i < node.members.length; i++) {
      go(node.members[i].node, i + 1);
      if (node.members[i].required) return out;
    }
    out.push(this.push(first ? node.closeFirst : node.close, below));
    if (node.others) go(node.others, node.members.length);
    return out;
  }

  private push(node: Node, below: Stack | null, at = 0): Stack {
    const key = `${node.id}.${at}.${below ? below.id : ''}`;
    let stack = this.stacks.get(key);
    if (!stack) {
      const depth = (below?.depth ?? 0) + 1;
      if (depth > MAX_DEPTH) throw new ConstraintError('values are nested too deep');
      stack = { id: this.stackCount++, node, at, below, depth };
      this.stacks.set(key, stack);
    }
    return stack;
  }

  private machineId(machine: Machine): number {
    let id = this.machineIds.get(machine);
    if (id === undefined) this.machineIds.set(machine, (id = this.machineIds.size));
    return id;
  }
}

const keyOf = (c: Configuration): string => `${c.machineId}:${c.state}:${c.stack ? c.stack.id : ''}`;
