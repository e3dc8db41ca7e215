/**
 * The KV cache's pages as counted values, and the prefix index: which page holds which tokens. Only numbers
 * live here; the memory of page p belongs to the caller.
 *
 *     free ──take──► used by 1..n sequences ──last user leaves──► cached (when in the index), else free
 *       ▲                     ▲                                      │
 *       └──────── evicted ────┼──────────────────────────────────────┤
 *                             └────────────── matched ───────────────┘
 *
 * The index is a tree: a node is a page; its key is the node of the page before it and its own tokens. Two
 * sequences meet in a node exactly when salt and all tokens up to the page's end are the same, and that is
 * compared token by token: the hash only finds candidates. Removing a node removes what hangs below it
 * (nobody could reach it any more), so a parent's id always means the page it meant when the child was added.
 */

const NONE = -1;

/** What besides the tokens decides the keys and values (FFN mode, plan): equal tokens with another salt are other pages. */
export type Salt = string | number;

/** Memory the caller has to copy: all of page `from` over page `to`. */
export interface PageCopy {
  from: number;
  to: number;
}

export interface PageStats {
  total: number;
  /** Pages in at least one sequence. */
  used: number;
  /** Pages in no sequence whose content is kept for a later prompt. */
  cached: number;
  free: number;
}

/** One sequence's pages. `PagePool` writes it; position p lies in page `ids[floor(p / pageSize)]`. */
export class PageTable {
  /** Pages in use: ids[0 .. pages). */
  pages = 0;
  /** Positions in use. */
  length = 0;
  /** Full pages whose positions are all accepted: never written again, so they may be shared. */
  sealed = 0;
  salt: Salt = '';
  /** Pages whose node in the index was found or made, and the last such node, valid while its stamp is. */
  indexed = 0;
  node = NONE;
  nodeStamp = 0;

  /** @param ids u32 [most pages this sequence may have]; may be a view of memory that lanes read */
  constructor(readonly ids: Uint32Array) {}
}

export class PagePool {
  private readonly users: Uint32Array; // [pageCount] sequences that hold the page
  private readonly freeIds: Uint32Array; // [pageCount] min-heap: the lowest id leaves first
  private freeCount: number;

  // The index, by page id.
  private readonly tokens: Int32Array; // [pageCount][pageSize] what an indexed page holds
  private readonly salts: Salt[]; // [pageCount] of nodes without a parent
  private readonly isIndexed: Uint8Array; // [pageCount]
  private readonly stamp: Float64Array; // [pageCount] counts removals, so that a remembered node can be checked
  private readonly hashes: Int32Array; // [pageCount] key of an indexed page
  private readonly parent: Int32Array; // [pageCount]
  private readonly firstChild: Int32Array; // [pageCount]
  private readonly older: Int32Array; // [pageCount] siblings
  private readonly younger: Int32Array; // [pageCount]
  private readonly buckets = new Map<number, number>(); // hash -> first page
  private readonly bucketNext: Int32Array; // [pageCount]

  // Cached pages, least recently used first. Index pageCount is the list's anchor.
  private readonly lruNext: Int32Array; // [pageCount + 1]
  private readonly lruBefore: Int32Array; // [pageCount + 1]
  private cachedCount = 0;

  /** @param hash replaced in tests, to make every key collide */
  constructor(
    readonly pageCount: number,
    readonly pageSize: number,
    private readonly hash: (
      seed: number,
      tokens: ArrayLike<number>,
      from: number,
      count: number,
    ) => number = fnv,
  ) {
    const links = (n: number): Int32Array => new Int32Array(n).fill(NONE);
    this.users = new Uint32Array(pageCount);
    this.freeIds = Uint32Array.from({ length: pageCount }, (_, i) => i); // ascending: a heap already
    this.freeCount = pageCount;
    this.tokens = new Int32Array(pageCount * pageSize);
    this.salts = new Array<Salt>(pageCount).fill('');
    this.isIndexed = new Uint8Array(pageCount);
    this.stamp = new Float64Array(pageCount);
    this.hashes = new Int32Array(pageCount);
    this.parent = links(pageCount);
    this.firstChild = links(pageCount);
    this.older = links(pageCount);
    this.younger = links(pageCount);
    this.bucketNext = links(pageCount);
    this.lruNext = links(pageCount + 1).fill(pageCount, pageCount);
    this.lruBefore = links(pageCount + 1).fill(pageCount, pageCount);
  }

  stats(): PageStats {
    const { pageCount: total, freeCount: free, cachedCount: cached } = this;
    return { total, used: total - free - cached, cached, free };
  }

  /** Who keeps the page: sequences, and one more when it is in the index. */
  usersOf(page: number): number {
    return this.users[page] + this.isIndexed[page];
  }

  /** Pages a sequence could take now: free ones and cached ones that nobody uses. */
  get available(): number {
    return this.freeCount + this.cachedCount;
  }

  /** Positions that can be added to the sequence now. */
  room(table: PageTable): number {
    const pages = Math.min(table.pages + this.available, table.ids.length);
    return pages * this.pageSize - table.length;
  }

  // ---- prefixes ---------------------------------------------------------------------------------------

  /**
   * Positions of the longest known prefix, in whole pages: tokens and salt are the same. Never all of `tokens`:
   * somebody needs the last one's logits, so that one is computed again.
   */
  match(tokens: ArrayLike<number>, salt: Salt): number {
    let node = NONE;
    let pages = 0;
    for (const most = this.matchable(tokens.length); pages < most; pages++) {
      node = this.find(node, salt, tokens, pages);
      if (node === NONE) break;
    }
    return pages * this.pageSize;
  }

  /** Begins an empty table with the known prefix of `tokens`. @returns positions that need not be computed */
  begin(table: PageTable, tokens: ArrayLike<number>, salt: Salt): number {
    if (table.pages > 0)
      throw new RangeError(`the page table still holds ${table.pages} pages; release it first`);
    table.salt = salt;
    const most = Math.min(this.matchable(tokens.length), table.ids.length);
    while (table.pages < most) {
      const page = this.find(table.node, salt, tokens, table.pages);
      if (page === NONE) break;
      this.use(page);
      table.ids[table.pages++] = page;
      this.remember(table, page);
    }
    table.sealed = table.pages;
    table.length = table.pages * this.pageSize;
    return table.length;
  }

  /**
   * Enters the full pages among the first `accepted` positions into the index. Where an equal page is there
   * already, this sequence keeps its own: pages are not exchanged while somebody runs.
   * @param tokens the sequence's tokens from position 0
   */
  publish(table: PageTable, tokens: ArrayLike<number>, accepted: number): void {
    const full = Math.floor(Math.min(accepted, table.length) / this.pageSize);
    if (full <= table.indexed) return;
    table.sealed = Math.max(table.sealed, full);
    // The node of an equal page may have been evicted: enter this sequence's own pages from the start.
    if (table.indexed > 0 && this.stamp[table.node] !== table.nodeStamp) this.forget(table);
    for (let i = table.indexed; i < full; i++) {
      let node = this.find(table.node, table.salt, tokens, i);
      if (node === NONE) {
        node = table.ids[i];
        this.addNode(node, table.node, table.salt, tokens, i);
      }
      this.remember(table, node);
    }
  }

  // ---- a running sequence -----------------------------------------------------------------------------

  /**
   * Makes room for `positions` more, evicting cached pages when no free ones are left.
   * @returns false when there are not enough pages; nothing has changed then
   * @throws RangeError beyond the table's maximum
   */
  extend(table: PageTable, positions: number): boolean {
    const length = table.length + positions;
    const pages = Math.ceil(length / this.pageSize);
    if (pages > table.ids.length)
      throw new RangeError(
        `${length} positions need ${pages} pages, the table has room for ${table.ids.length}`,
      );
    if (pages - table.pages > this.available) return false;
    while (table.pages < pages) table.ids[table.pages++] = this.take();
    table.length = length;
    return true;
  }

  /**
   * Gives back what lies behind `length` (rejected draft tokens).
   * @throws RangeError in the middle of a sealed page: its next position would be written again
   */
  truncate(table: PageTable, length: number): void {
    if (length > table.length) throw new RangeError(`cannot truncate ${table.length} positions to ${length}`);
    const inside = length % this.pageSize !== 0;
    const full = Math.floor(length / this.pageSize);
    if (full < table.sealed && inside)
      throw new RangeError(
        `position ${length} lies in a sealed page; the nearest cut is ${full * this.pageSize}`,
      );
    this.shrink(table, full + (inside ? 1 : 0));
    table.length = length;
    table.sealed = Math.min(table.sealed, full);
    if (table.indexed > full) this.forget(table);
  }

  /**
   * A second sequence with the same past, all of it accepted: full pages are shared, a partial last one is
   * copied by the caller.
   * @returns what to copy (at most one page); null when no page is left for it, and nothing has changed
   */
  fork(from: PageTable, into: PageTable): PageCopy[] | null {
    if (into.pages > 0)
      throw new RangeError(`the page table still holds ${into.pages} pages; release it first`);
    if (into.ids.length < from.pages)
      throw new RangeError(`${from.pages} pages do not fit a table of ${into.ids.length}`);
    const full = Math.floor(from.length / this.pageSize);
    if (full < from.pages && this.available === 0) return null;
    const copies: PageCopy[] = [];
    for (let i = 0; i < full; i++) {
      this.use(from.ids[i]);
      into.ids[i] = from.ids[i];
    }
    if (full < from.pages) {
      into.ids[full] = this.take();
      copies.push({ from: from.ids[full], to: into.ids[full] });
    }
    from.sealed = full;
    const { pages, length, sealed, salt, indexed, node, nodeStamp } = from;
    Object.assign(into, { pages, length, sealed, salt, indexed, node, nodeStamp });
    return copies;
  }

  /** Ends the sequence: its pages stay as cache where they are in the index, the others are free. */
  release(table: PageTable): void {
    this.shrink(table, 0);
    table.length = 0;
    table.sealed = 0;
    table.salt = '';
    this.forget(table);
  }

  /** Frees everything that no sequence uses. */
  clearCache(): void {
    while (this.cachedCount > 0) this.removeNode(this.lruNext[this.pageCount]);
  }

  // ---- counting ---------------------------------------------------------------------------------------

  private use(page: number): void {
    if (this.users[page]++ === 0) this.leaveLru(page);
  }

  /** Last page first: what comes later in a text is evicted before what it hangs on. */
  private shrink(table: PageTable, pages: number): void {
    while (table.pages > pages) {
      const page = table.ids[--table.pages];
      if (--this.users[page] > 0) continue;
      if (this.isIndexed[page]) this.enterLru(page);
      else this.pushFree(page);
    }
  }

  /** A page for one user. There is one: the caller has looked at `available`. */
  private take(): number {
    if (this.freeCount === 0) this.removeNode(this.lruNext[this.pageCount]);
    const page = this.popFree();
    this.users[page] = 1;
    return page;
  }

  private enterLru(page: number): void {
    const anchor = this.pageCount;
    const last = this.lruBefore[anchor];
    this.lruNext[last] = page;
    this.lruBefore[page] = last;
    this.lruNext[page] = anchor;
    this.lruBefore[anchor] = page;
    this.cachedCount++;
  }

  private leaveLru(page: number): void {
    const [before, next] = [this.lruBefore[page], this.lruNext[page]];
    this.lruNext[before] = next;
    this.lruBefore[next] = before;
    this.cachedCount--;
  }

  private pushFree(page: number): void {
    const heap = this.freeIds;
    let at = this.freeCount++;
    for (let up = (at - 1) >> 1; at > 0 && heap[up] > page; up = (at - 1) >> 1) {
      heap[at] = heap[up];
      at = up;
    }
    heap[at] = page;
  }

  private popFree(): number {
    const heap = this.freeIds;
    const lowest = heap[0];
    const page = heap[--this.freeCount];
    let at = 0;
    for (let down = 1; down < this.freeCount; down = 2 * at + 1) {
      if (down + 1 < this.freeCount && heap[down + 1] < heap[down]) down++;
      if (heap[down] >= page) break;
      heap[at] = heap[down];
      at = down;
    }
    heap[at] = page;
    return lowest;
  }

  // ---- the index --------------------------------------------------------------------------------------

  /** At least the last token is left over. */
  private matchable(tokenCount: number): number {
    return Math.max(0, Math.floor((tokenCount - 1) / this.pageSize));
  }

  private remember(table: PageTable, node: number): void {
    table.indexed++;
    table.node = node;
    table.nodeStamp = this.stamp[node];
  }

  private forget(table: PageTable): void {
    table.indexed = 0;
    table.node = NONE;
  }

  private keyOf(parent: number, salt: Salt, tokens: ArrayLike<number>, page: number): number {
    return (
      this.hash(parent === NONE ? saltNumber(salt) : parent, tokens, page * this.pageSize, this.pageSize) | 0
    );
  }

  /** The node below `parent` that holds the tokens of page number `page`, or NONE. */
  private find(parent: number, salt: Salt, tokens: ArrayLike<number>, page: number): number {
    let node = this.buckets.get(this.keyOf(parent, salt, tokens, page)) ?? NONE;
    while (node !== NONE && !this.isNode(node, parent, salt, tokens, page)) node = this.bucketNext[node];
    return node;
  }

  private isNode(node: number, parent: number, salt: Salt, tokens: ArrayLike<number>, page: number): boolean {
    if (this.parent[node] !== parent || (parent === NONE && this.salts[node] !== salt)) return false;
    const [held, asked] = [node * this.pageSize, page * this.pageSize];
    for (let i = 0; i < this.pageSize; i++) if (this.tokens[held + i] !== tokens[asked + i]) return false;
    return true;
  }

  private addNode(node: number, parent: number, salt: Salt, tokens: ArrayLike<number>, page: number): void {
    for (let i = 0; i < this.pageSize; i++)
      this.tokens[node * this.pageSize + i] = tokens[page * this.pageSize + i];
    this.isIndexed[node] = 1;
    this.parent[node] = parent;
    this.salts[node] = parent === NONE ? salt : '';
    this.firstChild[node] = NONE;
    this.younger[node] = NONE;
    this.older[node] = parent === NONE ? NONE : this.firstChild[parent];
    if (parent !== NONE) {
      if (this.older[node] !== NONE) this.younger[this.older[node]] = node;
      this.firstChild[parent] = node;
    }
    const key = this.keyOf(parent, salt, tokens, page);
    this.hashes[node] = key;
    this.bucketNext[node] = this.buckets.get(key) ?? NONE;
    this.buckets.set(key, node);
  }

  /** Takes a node and all below it out of the index; pages that nobody uses become free. */
  private removeNode(top: number): void {
    this.unlinkSibling(top);
    let node = top;
    for (;;) {
      while (this.firstChild[node] !== NONE) node = this.firstChild[node];
      const up = this.parent[node];
      if (node !== top) this.unlinkSibling(node);
      this.unlinkBucket(node);
      this.isIndexed[node] = 0;
      this.stamp[node]++;
      if (this.users[node] === 0) {
        this.leaveLru(node);
        this.pushFree(node);
      }
      if (node === top) return;
      node = up;
    }
  }

  private unlinkSibling(node: number): void {
    const [older, younger, parent] = [this.older[node], this.younger[node], this.parent[node]];
    if (older !== NONE) this.younger[older] = younger;
    if (younger !== NONE) this.older[younger] = older;
    else if (parent !== NONE) this.firstChild[parent] = older;
  }

  private unlinkBucket(node: number): void {
    const key = this.hashes[node];
    const next = this.bucketNext[node];
    let at = this.buckets.get(key) as number;
    if (at === node) {
      if (next === NONE) this.buckets.delete(key);
      else this.buckets.set(key, next);
      return;
    }
    while (this.bucketNext[at] !== node) at = this.bucketNext[at];
    this.bucketNext[at] = next;
  }
}

/** FNV-1a over 32-bit words. */
function fnv(seed: number, tokens: ArrayLike<number>, from: number, count: number): number {
  let h = Math.imul(0x811c9dc5 ^ seed, 0x01000193);
  for (let i = 0; i < count; i++) {
    h = Math.imul(h ^ tokens[from + i], 0x01000193);
    h ^= h >>> 15; // multiplication alone moves nothing downwards
  }
  return h;
}

/** Negative, unlike a page id; equal numbers for other salts only cost a comparison. */
function saltNumber(salt: Salt): number {
  let h = 0;
  for (const c of String(salt)) h = Math.imul(h ^ (c.codePointAt(0) as number), 0x01000193);
  return h | 0x80000000;
}
