/** What the engine needs to know to run a layer's FFN: the mode, the neuron order, the predictor's weights. */
import { isSmooth, type ActivationKind } from '../kernels/kernels.js';
import type { RowFormat } from '../kernels/layout.js';

/** DESIGN vocabulary: `dense` computes every neuron, `exact` skips after the gate, `predicted` before it. */
export type FfnMode = 'dense' | 'exact' | 'predicted';

/** What of a neuron is too small to be computed further; for ReLU and its kin the gate's is the threshold. */
export interface ActivationCut {
  /** Smooth activations: passes where |sigma(gate)| > this, before up and down are read. */
  gate: number;
  /** x1 = 0 where |x1| ||W_down[:, i]|| < this, before down is read. 0: none. */
  contribution: number;
}

/**
 * The cuts of a layer whose activation has no zeros of its own, by FFN mode; `dense` knows none. `exact` cuts what it
 * sees first, the gate; `predicted` what its predictor looks for.
 */
export type FfnCuts = Record<Exclude<FfnMode, 'dense'>, ActivationCut>;

/** What a layer cuts in a mode. @param cuts null or absent: none beside the activation's own */
export function cutIn(
  mode: FfnMode,
  { kind, threshold }: { kind: ActivationKind; threshold: number },
  cuts: FfnCuts | null | undefined,
): ActivationCut {
  if (!isSmooth(kind)) return { gate: threshold, contribution: 0 };
  return (mode === 'dense' ? null : cuts?.[mode]) ?? { gate: NOTHING, contribution: 0 };
}
/** Below every |sigma(gate)|. */
const NOTHING = -1;

/** Whether a model can leave neurons out: by its activation, or by the cuts of its plan. */
export const canSkip = (kind: ActivationKind, plan: FfnPlan | null | undefined): boolean =>
  !isSmooth(kind) || (plan ?? { layers: [] }).layers.some(({ cuts }) => cuts);

/** Quantised rows as they stand in an artifact (layout.ts row format, `stride` bytes apart, a multiple of 4). */
export interface QuantRows {
  format: RowFormat;
  rows: number;
  cols: number;
  stride: number;
  data: Uint8Array;
}

/**
 * One layer's predictor: score = fc2 . h, x the FFN input after its norm, and
 * h = relu(fc1 . x + b1), or fc1 . x when b1 is null, or x itself when fc1 is null (a sketch of W_gate).
 * Neuron scored[i] is a candidate when score_i >= cut[i]; fc2's own bias and the threshold are folded into cut.
 * `contribution` (a plain FFN without zeros): score = |sigma(fc2 . x + b)|, b the layer's own bias.
 * `reach` (a gated one): fc2 is a sketch of W_up that meets the exact gate, of which every one is computed:
 * score = |sigma(gate)| min(|fc2 . x + b|, reach). It scores all neurons, in the model's order.
 */
export interface PredictorWeights {
  rank: number; // hidden units; d for a sketch
  fc1: QuantRows | null; // [rank][d]
  b1: Float32Array | null; // [rank]
  fc2: QuantRows; // [scored.length][rank]
  /** The score is a contribution. @default false */
  contribution?: boolean;
  reach?: Float32Array | null; // [nFf]
  cut: Float32Array; // [scored.length]
}

export interface LayerPlan {
  mode: FfnMode;
  /** Model neuron ids that are always candidates. */
  always: Uint32Array;
  /** Model neuron ids the predictor scores, in fc2's row order. */
  scored: Uint32Array;
  /** Ids in neither list are never candidates in `predicted` mode. */
  predictor: PredictorWeights | null;
  /** Of activations without zeros. @default null */
  cuts?: FfnCuts | null;
  /** [nFf] activation frequency while profiling: neurons are stored hot first by it. Null: not known. */
  frequency: Float32Array | null;
}

/** A model's plan: one entry a layer. */
export interface FfnPlan {
  layers: LayerPlan[];
}

/**
 * A chunk of a layer's neurons in storage order: always, scored, rest, one after the other. Sums are kept per
 * chunk, so that results do not depend on which lane had it. In a mixture every expert has a part in each chunk,
 * which is described like a chunk of its own: whatever experts a token chooses, chunks are equally large.
 */
export interface NeuronChunk {
  begin: number;
  always: number;
  scored: number;
  rest: number;
}

export const chunkSize = (n: NeuronChunk): number => n.always + n.scored + n.rest;

/**
 * Chunks of a layer: a property of the model, so that any number of lanes adds in the same order. More chunks
 * balance better and cost more kernel calls; a small FFN is done before that pays.
 * @param neurons of the FFN that one token meets: of a mixture, those of the experts it chooses
 */
export const chunksFor = (neurons: number): number => (neurons >= 8192 ? 16 : neurons >= 4096 ? 8 : 4);

export interface DealtNeurons {
  /** Storage position -> model neuron id; null: the model's own order. */
  order: Uint32Array | null;
  /** [parts * experts]: part p of expert e at p * experts + e. */
  chunks: NeuronChunk[];
  /** Rows of the plan's scored list in the order of the chunks. */
  scoredRows: Uint32Array;
}

/**
 * Deal a layer's neurons to chunks so that every chunk gets the same share of hot ones, and keep each one
 * contiguous: always-candidates first, then the scored ones hot to cold, then the rest. Hot neurons being
 * neighbours makes the busy part of the memory nearly sequential. Of a mixture each expert is dealt so.
 * @param experts each has nFf / experts neurons, one after the other
 */
export function dealNeurons(nFf: number, plan: LayerPlan | null, parts: number, experts = 1): DealtNeurons {
  const size = nFf / experts;
  const listed = plan ? plan.always.length + plan.scored.length : 0;
  if (listed === 0 && !plan?.frequency) {
    const even = Array.from({ length: parts * experts }, (_, c) => {
      const [part, first] = [Math.floor(c / experts), (c % experts) * size];
      const begin = Math.floor((size * part) / parts);
      const rest = Math.floor((size * (part + 1)) / parts) - begin;
      return { begin: first + begin, always: 0, scored: 0, rest };
    });
    return { order: null, chunks: even, scoredRows: new Uint32Array(0) };
  }
  const { always, rows, rest, scored } = hotFirstLists(nFf, plan!);
  const hands = Array.from({ length: experts }, (_, e) => {
    const own = (id: number): boolean => Math.floor(id / size) === e;
    return {
      always: always.filter(own),
      rows: rows.filter((row) => own(scored[row])),
      rest: rest.filter(own),
    };
  });

  const order = new Uint32Array(nFf);
  const scoredRows = new Uint32Array(rows.length);
  const dealt: NeuronChunk[] = [];
  let at = 0;
  let scoredAt = 0;
  const deal = (ids: number[], first: number): number => {
    const before = at;
    for (let i = first; i < ids.length; i += parts) order[at++] = ids[i];
    return at - before;
  };
  for (let part = 0; part < parts; part++) {
    for (const hand of hands) {
      const begin = at;
      const alwaysCount = deal(hand.always, part);
      for (let i = part; i < hand.rows.length; i += parts) {
        order[at++] = scored[hand.rows[i]];
        scoredRows[scoredAt++] = hand.rows[i];
      }
      const scoredCount = at - begin - alwaysCount;
      // Counted from the other end, so that chunks short of an always or scored neuron get one more of these.
      const restCount = deal(hand.rest, parts - 1 - part);
      dealt.push({ begin, always: alwaysCount, scored: scoredCount, rest: restCount });
    }
  }
  return { order, chunks: dealt, scoredRows };
}

/** The three kinds of a plan's neurons, each hot to cold; of the scored ones their rows. */
function hotFirstLists(
  nFf: number,
  plan: LayerPlan,
): { always: number[]; rows: number[]; rest: number[]; scored: Uint32Array } {
  const { scored } = plan;
  const heat = (id: number): number => plan.frequency?.[id] ?? 0;
  const hotFirst = (a: number, b: number): number => heat(b) - heat(a) || a - b;
  const always = Array.from(plan.always).sort(hotFirst);
  const rows = Array.from(scored, (_, row) => row).sort((a, b) => hotFirst(scored[a], scored[b]));
  const taken = new Uint8Array(nFf);
  for (const id of always) taken[id] = 1;
  for (const id of scored) taken[id] = 1;
  const rest = Array.from({ length: nFf }, (_, id) => id)
    .filter((id) => taken[id] === 0)
    .sort(hotFirst);
  return { always, rows, rest, scored };
}
