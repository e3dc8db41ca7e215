/**
 * The k largest of many values, in order as far as somebody asks. Selection is one pass with a heap of k ids
 * whose root is the least of them; then the heap is turned over, and `at(i)` takes the largest off until the
 * i-th is known. Equal values are ordered by id.
 */
export class TopTokens {
  count = 0;
  private values: Float32Array;
  private readonly ids: Uint32Array; // [vocab] a heap, then from the end of `count` down the sorted ids
  private sorted = 0;
  private turned = false;

  constructor(capacity: number) {
    this.ids = new Uint32Array(capacity);
    this.values = new Float32Array(0);
  }

  select(values: Float32Array, k: number): void {
    const { ids } = this;
    this.values = values;
    this.sorted = 0;
    this.turned = false;
    this.count = Math.min(k, values.length);
    for (let id = 0; id < this.count; id++) ids[id] = id;
    if (this.count === values.length) return;
    for (let at = (this.count >> 1) - 1; at >= 0; at--) this.sink(at, this.count, ids[at], false);
    let least = values[ids[0]];
    for (let id = this.count; id < values.length; id++) {
      if (!(values[id] > least)) continue; // an equal one has a higher id
      this.sink(0, this.count, id, false);
      least = values[ids[0]];
    }
  }

  /** Keeps what is at least `floor`. Before the first `at`. */
  dropBelow(floor: number): void {
    let kept = 0;
    for (let i = 0; i < this.count; i++)
      if (this.values[this.ids[i]] >= floor) this.ids[kept++] = this.ids[i];
    this.count = kept;
  }

  /** Sum of exp((value - most) / temperature) over all, or over the first `kept`. */
  weight(most: number, temperature: number, kept = this.count): number {
    let sum = 0;
    for (let i = 0; i < kept; i++) {
      const id = kept === this.count ? this.ids[i] : this.at(i);
      sum += Math.exp((this.values[id] - most) / temperature);
    }
    return sum;
  }

  /** The id of the i-th largest value, i < count. */
  at(i: number): number {
    const { ids, count } = this;
    if (!this.turned) {
      for (let at = (count >> 1) - 1; at >= 0; at--) this.sink(at, count, ids[at], true);
      this.turned = true;
    }
    for (; this.sorted <= i; this.sorted++) {
      const last = count - 1 - this.sorted;
      const id = ids[last];
      ids[last] = ids[0];
      if (last > 0) this.sink(0, last, id, true);
    }
    return ids[count - 1 - i];
  }

  /** Puts `id` at the place `at` of the heap ids[0 .. size) and lets it sink below all that belong above it. */
  private sink(at: number, size: number, id: number, largestOnTop: boolean): void {
    const { ids, values } = this;
    for (let down = 2 * at + 1; down < size; down = 2 * at + 1) {
      if (down + 1 < size && precedes(values, ids[down + 1], ids[down]) === largestOnTop) down++;
      if (precedes(values, ids[down], id) !== largestOnTop) break;
      ids[at] = ids[down];
      at = down;
    }
    ids[at] = id;
  }
}

const precedes = (values: Float32Array, a: number, b: number): boolean =>
  values[a] > values[b] || (values[a] === values[b] && a < b);
