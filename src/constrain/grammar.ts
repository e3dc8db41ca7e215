/** Syntax over lexemes: what a schema compiles to. Nodes are shared and may refer to themselves through `ref`. */
import type { Machine } from './machine.js';

export interface Member {
  /** `"key": value`, without the comma. */
  node: Node;
  required: boolean;
}

export type Node = { readonly id: number } & (
  | { kind: 'lexeme'; machine: Machine }
  | { kind: 'sequence'; items: Node[] }
  | { kind: 'choice'; items: Node[] }
  /** `target` is set once the definition was compiled. */
  | { kind: 'ref'; target: Node | null }
  /** What follows `{`: members in their order, then others; up to and with `}`. */
  | {
      kind: 'members';
      members: Member[];
      others: Node | null;
      separator: Node;
      close: Node;
      closeFirst: Node;
    }
  /** What follows `[`. Item i is items[i], later ones `rest`. */
  | {
      kind: 'items';
      items: Node[];
      rest: Node | null;
      min: number;
      max: number;
      separator: Node;
      close: Node;
      closeFirst: Node;
    }
);

export type NodeOf<K extends Node['kind']> = Extract<Node, { kind: K }>;

/** Makes nodes with numbers of their own. */
export class NodeFactory {
  count = 0;

  private make<T extends object>(fields: T): T & { id: number } {
    return { ...fields, id: this.count++ };
  }

  lexeme(machine: Machine): Node {
    return this.make({ kind: 'lexeme', machine });
  }
  sequence(...items: Node[]): Node {
    return this.make({ kind: 'sequence', items });
  }
  choice(items: Node[]): Node {
    return items.length === 1 ? items[0] : this.make({ kind: 'choice', items });
  }
  ref(): NodeOf<'ref'> {
    return this.make({ kind: 'ref', target: null });
  }
  members(fields: Omit<NodeOf<'members'>, 'id' | 'kind'>): Node {
    return this.make({ kind: 'members', ...fields });
  }
  items(fields: Omit<NodeOf<'items'>, 'id' | 'kind'>): Node {
    return this.make({ kind: 'items', ...fields });
  }
}

/**
 * Cuts away what has no finite text: alternatives, optional members and items that would never end.
 * @returns whether the root itself has one
 */
export function prune(root: Node): boolean {
  const nodes = reachable(root);
  const ends = new Set<Node>();
  const ok = (node: Node | null): boolean => node !== null && ends.has(node);
  for (let before = -1; before !== ends.size;) {
    before = ends.size;
    for (const node of nodes) if (!ends.has(node) && canEnd(node, ok)) ends.add(node);
  }
  for (const node of nodes) {
    if (node.kind === 'choice') node.items = node.items.filter(ok);
    else if (node.kind === 'members') {
      node.members = node.members.filter((member) => ok(member.node));
      if (!ok(node.others)) node.others = null;
    } else if (node.kind === 'items') {
      const bad = node.items.findIndex((item) => !ok(item));
      if (bad >= 0) node.max = Math.min(node.max, bad);
      if (!ok(node.rest)) node.max = Math.min(node.max, node.items.length);
    }
  }
  return ends.has(root);
}

function canEnd(node: Node, ok: (node: Node | null) => boolean): boolean {
  switch (node.kind) {
    case 'lexeme':
      return true;
    case 'sequence':
      return node.items.every(ok);
    case 'choice':
      return node.items.some(ok);
    case 'ref':
      return ok(node.target);
    case 'members':
      return node.members.every((member) => !member.required || ok(member.node));
    case 'items':
      return Array.from({ length: Math.min(node.min, node.items.length + 1) }).every((_, i) =>
        ok(node.items[i] ?? node.rest),
      );
  }
}

function reachable(root: Node): Set<Node> {
  const found = new Set([root]);
  for (const node of found) for (const child of childrenOf(node)) found.add(child);
  return found;
}

function childrenOf(node: Node): Node[] {
  if (node.kind === 'sequence' || node.kind === 'choice') return node.items;
  if (node.kind === 'ref') return node.target ? [node.target] : [];
  if (node.kind === 'lexeme') return [];
  const ends = [node.separator, node.close, node.closeFirst];
  if (node.kind === 'members')
    return [...node.members.map((m) => m.node), ...(node.others ? [node.others] : []), ...ends];
  return [...node.items, ...(node.rest ? [node.rest] : []), ...ends];
}
