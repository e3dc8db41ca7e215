/**
 * All tokens of a vocabulary by their bytes, as a trie in flat arrays: nodes in depth-first order, so that a
 * walk is a loop, and a branch that cannot go on is one jump.
 */
export interface TokenTrie {
  /** [nodes] */
  byte: Uint8Array;
  /** [nodes] distance from the root: 0 for a first byte. */
  depth: Uint16Array;
  /** [nodes] the node behind this one's branch. */
  skip: Int32Array;
  /** [nodes + 1] where a node's tokens begin in `tokens`. */
  first: Int32Array;
  /** Token ids, in the order of nodes. */
  tokens: Int32Array;
  maxDepth: number;
}

/** Longer tokens are left out: no vocabulary has them, and their depth must fit into 16 bits. */
const MAX_TOKEN_BYTES = 4096;

/** @param bytes by id; undefined or empty: never offered (control tokens, holes) */
export function tokenTrie(bytes: readonly (Uint8Array | undefined)[]): TokenTrie {
  const ids = bytes.flatMap((part, id) =>
    part && part.length > 0 && part.length <= MAX_TOKEN_BYTES ? [id] : [],
  );
  ids.sort((a, b) => Buffer.compare(bytes[a]!, bytes[b]!) || a - b);
  const total = ids.reduce((sum, id) => sum + bytes[id]!.length, 0);
  const byte = new Uint8Array(total);
  const depth = new Uint16Array(total);
  const skip = new Int32Array(total);
  const first = new Int32Array(total + 1);
  const tokens = Int32Array.from(ids);
  /** Nodes from the root to the last one made. */
  const open: number[] = [];
  let nodes = 0;
  let previous: Uint8Array = new Uint8Array();
  ids.forEach((id, i) => {
    const text = bytes[id]!;
    let shared = 0;
    while (shared < text.length && shared < previous.length && text[shared] === previous[shared]) shared++;
    while (open.length > shared) skip[open.pop()!] = nodes;
    for (let d = shared; d < text.length; d++) {
      byte[nodes] = text[d];
      depth[nodes] = d;
      first[nodes] = i;
      open.push(nodes++);
    }
    // Between a node's begin and its children's lie its own tokens.
    first[nodes] = i + 1;
    previous = text;
  });
  while (open.length > 0) skip[open.pop()!] = nodes;
  const cut = {
    byte: byte.slice(0, nodes),
    depth: depth.slice(0, nodes),
    skip: skip.slice(0, nodes),
    first: first.slice(0, nodes + 1),
  };
  return { ...cut, tokens, maxDepth: cut.depth.reduce((max, d) => Math.max(max, d), 0) + 1 };
}
