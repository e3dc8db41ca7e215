/** Hot and cold: how often each neuron fires, how much of the work the hottest do, who fires together. */

/** Active in at least this share of the tokens that meet it: nothing to predict, and not a sign of sparsity. */
export const ALWAYS_ON = 0.99;
/** Shares of the neurons at which the cumulative curve is kept. */
export const COVER_AT = [0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1];

export interface LayerHotness {
  sparsity: number;
  /** Never active: they flatter the sparsity of every token. */
  dead: number;
  alwaysOn: number;
  /** Share of all activations that the hottest COVER_AT share of the neurons makes. */
  covered: number[];
}

/** Tokens that met each neuron. @param routed tokens that met each expert, whose neurons stand one after the other */
const metBy = (counts: Uint32Array, routed: Uint32Array): ((neuron: number) => number) => {
  const size = counts.length / routed.length;
  return (neuron) => routed[Math.floor(neuron / size)];
};

/**
 * @param counts [nFf] tokens in which the neuron was active
 * @param routed of a mixture: tokens that met each expert
 */
export function layerHotness(
  counts: Uint32Array,
  tokens: number,
  routed: Uint32Array = Uint32Array.of(tokens),
): LayerHotness {
  const met = metBy(counts, routed);
  const sorted = Uint32Array.from(counts).sort().reverse();
  const total = sorted.reduce((a, b) => a + b, 0);
  const upTo = new Float64Array(sorted.length + 1);
  sorted.forEach((count, i) => (upTo[i + 1] = upTo[i] + count));
  return {
    sparsity: 1 - total / Math.max(1, tokens * counts.length),
    dead: sorted.filter((count) => count === 0).length,
    alwaysOn: counts.filter((count, i) => met(i) > 0 && count >= ALWAYS_ON * met(i)).length,
    covered: COVER_AT.map((share) => upTo[Math.round(share * sorted.length)] / Math.max(1, total)),
  };
}

/** Pairs among the neurons that say most about each other. */
export interface CoActivation {
  /** Neurons looked at: the hottest that are not always on. */
  neurons: number;
  /** Mean over their pairs: active together / active at all. */
  jaccard: number;
  /** What that would be if neurons fired independently, at the same frequencies. */
  independent: number;
  strongest: { a: number; b: number; jaccard: number }[];
}

/** 256 neurons make 32,640 pairs; over 4096 tokens that takes 20 ms. */
const PAIR_NEURONS = 256;
export const PAIR_TOKENS = 4096;
const STRONGEST = 8;

/** Samples of a layer, in which neurons are counted over all experts. */
export interface Activity {
  samples: number;
  eachActive(t: number, visit: (neuron: number) => void): void;
}

/** @param routed tokens that met each expert; one number without a mixture */
export function coActivation(rec: Activity, counts: Uint32Array, routed: Uint32Array): CoActivation {
  const met = metBy(counts, routed);
  const ids = Array.from(counts.keys())
    .filter((i) => counts[i] > 0 && counts[i] < ALWAYS_ON * met(i))
    .sort((a, b) => counts[b] - counts[a] || a - b)
    .slice(0, PAIR_NEURONS);
  const rows = Math.min(rec.samples, PAIR_TOKENS);
  const columns = ids.map(() => new Uint32Array(Math.ceil(rows / 32)));
  const columnOf = new Int32Array(counts.length).fill(-1);
  ids.forEach((id, c) => (columnOf[id] = c));
  for (let t = 0; t < rows; t++) {
    rec.eachActive(t, (id) => {
      if (columnOf[id] >= 0) columns[columnOf[id]][t >> 5] |= 1 << (t & 31);
    });
  }
  const active = columns.map((column) => column.reduce((sum, word) => sum + popcount(word), 0));
  const strongest: CoActivation['strongest'] = [];
  let [sum, expected, pairs] = [0, 0, 0];
  for (let a = 0; a < ids.length; a++) {
    for (let b = a + 1; b < ids.length; b++) {
      let both = 0;
      for (let w = 0; w < columns[a].length; w++) both += popcount(columns[a][w] & columns[b][w]);
      const either = active[a] + active[b] - both;
      if (either === 0) continue;
      const jaccard = both / either;
      const chance = (active[a] * active[b]) / rows;
      sum += jaccard;
      expected += chance / (active[a] + active[b] - chance);
      pairs++;
      if (strongest.length < STRONGEST || jaccard > strongest[STRONGEST - 1].jaccard) {
        strongest.push({ a: ids[a], b: ids[b], jaccard });
        strongest.sort((p, q) => q.jaccard - p.jaccard || p.a - q.a || p.b - q.b);
        strongest.length = Math.min(strongest.length, STRONGEST);
      }
    }
  }
  const mean = (total: number): number => (pairs === 0 ? 0 : total / pairs);
  return { neurons: ids.length, jaccard: mean(sum), independent: mean(expected), strongest };
}

function popcount(word: number): number {
  let v = word - ((word >>> 1) & 0x55555555);
  v = (v & 0x33333333) + ((v >>> 2) & 0x33333333);
  return Math.imul((v + (v >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}
