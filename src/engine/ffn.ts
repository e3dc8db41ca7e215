/**
 * A layer's FFN over the rows of a step (vocabulary in docs/architecture.md):
 *
 *     dense      gate, up and down of every neuron
 *     exact      gate of every neuron; up and down where the gate passed (S2, S3)
 *     predicted  the predictor's candidates; their gates; up and down where the gate passed. Or the gate of every
 *                neuron, and up and down of the candidates that a sketch of up makes of those (`AfterGate`)
 *
 * Without a gate (plain FFNs) fc1 takes the gate's place, and x1 = sigma(fc1 x + b) is known before up.
 *
 * Neurons come in chunks, each with its own sum over down columns: who computed a chunk (work.ts) makes no
 * difference to its sum. Lists of neurons are kept by row, compressed: those of row t stand at offsets[t] ..
 * offsets[t + 1]. Neurons that the GPU computes are left out of the lists, and in a mixture those of experts that
 * a row has not chosen.
 */
import { isSmooth } from '../kernels/kernels.js';
import { chooseExperts, chooseInExperts, listChosen, weighExperts } from './experts.js';
import { chunkSize } from './ffn-plan.js';
import { addRows, gpuUnits, postRows } from './gpu-link.js';
import type { LaneContext } from './lane-context.js';
import type { AfterGate, LayerPlacement, PredictorPlacement } from './layout.js';
import { operand, operandRow, product } from './products.js';
import { countRecall } from './recall.js';
import { publish, type Rows } from './rows.js';
import { score } from './score.js';
import { counters, Stat } from './stats.js';
import { RowFlag, type Step } from './step.js';
import { endSpan, nowUs } from './timeline.js';

/** Fills all chunks' sums for all rows; ends with a barrier, after which they are complete. */
export function ffn(context: LaneContext, layer: LayerPlacement, l: number, rows: Rows, step: Step): void {
  const { lane, layout, shared, barrier, work } = context;
  const { normed, count } = rows;
  const d = layout.config.hiddenSize;
  const unit = gpuUnits(context, l).ffn;
  if (unit >= 0 && lane === 0) postRows(context, unit, layer.arena, normed.f32, normed.f32Row, count, d);
  if (layer.router) {
    chooseExperts(context, layer, count);
    if (lane === 0) context.trace?.recordExperts(context, l, count, step);
  }
  const predictor = layer.mode === 'predicted' ? layer.predictor : null;
  if (predictor) hiddenLayer(context, layer, predictor, rows);

  let began = context.timeline ? nowUs() : 0;
  work.begin(layout.chunkCount, (layer.gate.rows * layer.gate.stride) / layout.chunkCount);
  while (work.take()) {
    for (let chunk = work.first; chunk < work.end; chunk++)
      ffnChunk(context, layer, l, chunk, predictor, rows, step);
  }
  if (lane === 0) {
    for (let t = 0; t < count; t++) context.stats[counters(context, step, t, l) + Stat.TOKENS] += 1;
  }
  began = endSpan(context, 'ffn', began);
  barrier.wait();
  if (unit >= 0) {
    if (lane === 0) addRows(context, layer.arena, partialSum(context, 0), shared.rowPartial, count, d);
    barrier.wait();
  }
  endSpan(context, 'wait', began);
}

/** Where a chunk's sums over down columns stand: [T] rows of rowPartial bytes. */
export const partialSum = ({ shared, layout }: LaneContext, chunk: number): number =>
  shared.partials + chunk * layout.batchTokens * shared.rowPartial;

/** h = relu(fc1 x + b1), shared out by row of fc1, then in the form that fc2 wants. */
function hiddenLayer(
  context: LaneContext,
  layer: LayerPlacement,
  predictor: PredictorPlacement,
  rows: Rows,
): void {
  const { barrier } = context;
  const { kernels } = context.arenas[layer.arena];
  const { fc1, fc2, b1, rank } = predictor;
  if (!fc1) return;
  const { hidden } = rows;
  const done = (first: number, end: number): void => {
    for (let t = 0; b1 && t < rows.count; t++) {
      kernels.biasRelu(hidden.f32 + t * hidden.f32Row + first * 4, b1 + first * 4, end - first);
    }
  };
  product(context, layer.arena, -1, fc1, 0, rows.normed, rows.count, hidden.f32, hidden.f32Row, { done });
  barrier.wait();
  if (fc2.format === 'f32') return;
  for (let t = rows.begin; t < rows.end; t++) {
    kernels.quantize(hidden.f32 + t * hidden.f32Row, hidden.q8a + t * hidden.q8aRow, rank);
  }
  publish(context, rows);
}

function ffnChunk(
  context: LaneContext,
  layer: LayerPlacement,
  l: number,
  chunk: number,
  predictor: PredictorPlacement | null,
  rows: Rows,
  step: Step,
): void {
  const { layout, scratch, shared, stats } = context;
  const { kernels, u32, f32 } = context.arenas[layer.arena];
  const kind = layout.activation;
  const { gated, normsX1 } = layout.block;
  const { ffn } = layer;
  const { normed, count: n } = rows;
  const d = layout.config.hiddenSize;
  let began = context.timeline ? nowUs() : 0;

  const skip = context.gpu && layer.gpu;
  const mixture = layer.router !== null;
  const before = predictor?.afterGate ? null : predictor;
  if (before && mixture) chooseInExperts(context, layer, l, chunk, before, rows, step);
  else if (before) chooseCandidates(context, layer, chunk, before, rows);
  else if (mixture) listChosen(context, layer, chunk, n);
  else if (skip) listCold(context, layer, chunk, n);
  const listed = before !== null || mixture || skip !== null;
  let nnz = listed ? activeOfList(context, layer, l, rows, step) : activeOfAll(context, layer, l, chunk, rows, step); // prettier-ignore
  if (predictor?.afterGate) nnz = keepScored(context, layer, l, predictor, listed, rows, step);
  if (predictor) {
    const found = before ? scratch.candidates : scratch.active;
    for (let t = 0; t < n; t++) {
      if (step.flags[t] & RowFlag.MEASURE) countRecall(context, layer, l, chunk, found, rows, step, t);
    }
  }
  began = endSpan(context, 'gate', began);

  const { offsets, ids, act, up } = scratch.active;
  if (gated) {
    const [x, xRow] = [operand(ffn.format, normed), operandRow(ffn.format, normed)];
    kernels.dotLists(ffn.format, ffn.ptr, ffn.stride, offsets, ids, n, x, xRow, up, d);
    if (layer.upBias) kernels.addListed(up, layer.upBias, ids, nnz);
  }
  for (let t = 0; t < n; t++) {
    const begin = u32[(offsets >>> 2) + t];
    const size = u32[(offsets >>> 2) + t + 1] - begin;
    const at = counters(context, step, t, l);
    stats[at + Stat.GATED] += size;
    const active = gated
      ? kernels.gateUp(kind, act + begin * 4, up + begin * 4, size)
      : countActive(f32, act + begin * 4, size);
    if (layer.cut.contribution === 0) stats[at + Stat.ACTIVE] += active; // otherwise what the cut leaves
  }
  if (layer.cut.contribution > 0) {
    nnz = keepListed(context, layer, l, n, layer.downNorms, layer.cut.contribution, 0, step, Stat.ACTIVE);
  }
  context.trace?.recordActivations(context, layer, l, n, step);
  if (mixture) weighExperts(context, layer, chunk, n);
  if (normsX1) sumSquares(context, layer, chunk, n);
  began = endSpan(context, 'up', began);

  const sums = partialSum(context, chunk);
  f32.fill(0, sums >>> 2, (sums + n * shared.rowPartial) >>> 2);
  const down = ffn.ptr + layer.downOffset;
  if (nnz > 0) {
    kernels.sumLists(ffn.format, down, ffn.stride, offsets, ids, n, act, sums, shared.rowPartial / 4, d);
  }
  endSpan(context, 'down', began);
}

/**
 * Candidates among the neurons whose gate was computed: those whose bound allows it are scored by the sketch of up.
 * @param listed the gates' bounds are still to be applied
 * @returns entries that stay in scratch.active
 */
function keepScored(
  context: LaneContext,
  layer: LayerPlacement,
  l: number,
  { fc2, afterGate }: PredictorPlacement,
  listed: boolean,
  rows: Rows,
  step: Step,
): number {
  const { kernels, u32 } = context.arenas[layer.arena];
  const { offsets, ids, up } = context.scratch.active;
  const { weights, bounds } = afterGate!;
  const { normed, count: n } = rows;
  if (listed) keepListed(context, layer, l, n, bounds, 1, 0, step, Stat.SCORED);
  else countEntries(context, l, n, step, Stat.SCORED, u32);
  const [x, xRow] = [operand(fc2.format, normed), operandRow(fc2.format, normed)];
  kernels.dotLists(fc2.format, fc2.ptr, fc2.stride, offsets, ids, n, x, xRow, up, fc2.cols);
  if (layer.upBias) kernels.addListed(up, layer.upBias, ids, u32[(offsets >>> 2) + n]);
  return keepListed(context, layer, l, n, weights, 1, up, step, Stat.CANDIDATES);
}

function countEntries(
  context: LaneContext,
  l: number,
  n: number,
  step: Step,
  stat: number,
  u32: Uint32Array,
): void {
  const at = context.scratch.active.offsets >>> 2;
  for (let t = 0; t < n; t++)
    context.stats[counters(context, step, t, l) + stat] += u32[at + t + 1] - u32[at + t];
}

/**
 * What is too small leaves scratch.active: |act times| weight below `least` (Kernels.keepLarge).
 * @param times beside act; 0: all ones
 * @param stat counts what stays
 * @returns entries that stay
 */
function keepListed(
  context: LaneContext,
  layer: LayerPlacement,
  l: number,
  n: number,
  weight: number,
  least: number,
  times: number,
  step: Step,
  stat: number,
): number {
  const { kernels, u32 } = context.arenas[layer.arena];
  const { offsets, ids, act } = context.scratch.active;
  let at = 0;
  for (let t = 0; t < n; t++) {
    const begin = u32[(offsets >>> 2) + t];
    const size = u32[(offsets >>> 2) + t + 1] - begin;
    u32[(offsets >>> 2) + t] = at;
    const [values, from, factors] = [act + begin * 4, ids + begin * 4, times && times + begin * 4];
    const kept = kernels.keepLarge(values, factors, from, size, weight, least, ids + at * 4, act + at * 4);
    context.stats[counters(context, step, t, l) + stat] += kept;
    at += kept;
  }
  u32[(offsets >>> 2) + n] = at;
  return at;
}

const countActive = (f32: Float32Array, act: number, size: number): number => {
  let active = 0;
  for (let k = act >>> 2; k < (act >>> 2) + size; k++) if (f32[k] !== 0) active++;
  return active;
};

/** Where the sum of a chunk's x1 squared stands, [T] f32. */
export const squaresOf = ({ shared, layout }: LaneContext, chunk: number): number =>
  shared.squares + chunk * layout.batchTokens * 4;

function sumSquares(context: LaneContext, layer: LayerPlacement, chunk: number, n: number): void {
  const { u32, f32 } = context.arenas[layer.arena];
  const { offsets, act } = context.scratch.active;
  const out = squaresOf(context, chunk) >>> 2;
  for (let t = 0; t < n; t++) {
    let sum = 0;
    const end = u32[(offsets >>> 2) + t + 1];
    for (let k = u32[(offsets >>> 2) + t]; k < end; k++) sum += f32[(act >>> 2) + k] ** 2;
    f32[out + t] = sum;
  }
}

/** All gates of the chunk, then per row the neurons that pass (`dense`: all) with sigma(gate). @returns entries */
function activeOfAll(
  context: LaneContext,
  layer: LayerPlacement,
  l: number,
  chunk: number,
  rows: Rows,
  step: Step,
): number {
  const { layout, scratch } = context;
  const { kernels, u32 } = context.arenas[layer.arena];
  const { begin } = layer.chunks[chunk];
  const size = chunkSize(layer.chunks[chunk]);
  const { gate } = layer;
  const kind = layout.activation;
  const after = afterGate(layer);
  const threshold = after ? 1 : layer.cut.gate;
  const weight = after ? after.bounds + begin * 4 : 0;
  const { offsets, ids, act } = scratch.active;
  const { normed, count: n } = rows;
  const w = gate.ptr + begin * gate.stride;
  const [x, xRow] = [operand(gate.format, normed), operandRow(gate.format, normed)];
  kernels.dot(gate.format, w, gate.stride, size, x, xRow, n, scratch.gate, size, gate.cols);
  if (layer.gateBias) {
    const bias = layer.gateBias + begin * 4;
    for (let t = 0; t < n; t++) kernels.addScaled(scratch.gate + t * size * 4, bias, 1, size);
  }
  context.trace?.recordGates(context, layer, l, chunk, n, step);
  let at = 0;
  for (let t = 0; t < n; t++) {
    u32[(offsets >>> 2) + t] = at;
    const gates = scratch.gate + t * size * 4;
    at +=
      layer.mode === 'dense'
        ? activateAll(context, layer, gates, size, begin, ids + at * 4, act + at * 4)
        : kernels.activate(kind, threshold, gates, size, 0, begin, weight, ids + at * 4, act + at * 4);
    countGates(context, layer, l, t, size, step);
  }
  u32[(offsets >>> 2) + n] = at;
  return at;
}

/** The scores of a layer whose candidates are chosen after the gate. */
const afterGate = ({ mode, predictor }: LayerPlacement): AfterGate | null =>
  mode === 'predicted' && predictor ? predictor.afterGate : null;

function countGates(
  { stats, layout }: LaneContext,
  layer: LayerPlacement,
  l: number,
  t: number,
  size: number,
  step: Step,
): void {
  const at = counters({ layout }, step, t, l);
  stats[at + Stat.GATES] += size;
  if (!afterGate(layer)) stats[at + Stat.CANDIDATES] += size;
}

/** Gates of the listed candidates (scratch.candidates), then per row those that pass. @returns entries */
function activeOfList(
  context: LaneContext,
  layer: LayerPlacement,
  l: number,
  rows: Rows,
  step: Step,
): number {
  const { layout, scratch } = context;
  const { kernels, u32 } = context.arenas[layer.arena];
  const { gate } = layer;
  const kind = layout.activation;
  const threshold = layer.cut.gate;
  const { candidates, active } = scratch;
  const { normed, count: n } = rows;
  const [x, xRow] = [operand(gate.format, normed), operandRow(gate.format, normed)];
  kernels.dotLists(gate.format, gate.ptr, gate.stride, candidates.offsets, candidates.ids, n, x, xRow, scratch.gate, gate.cols); // prettier-ignore
  if (layer.gateBias) {
    kernels.addListed(scratch.gate, layer.gateBias, candidates.ids, u32[(candidates.offsets >>> 2) + n]);
  }
  context.trace?.recordListedGates(context, layer, l, n, step);
  let at = 0;
  for (let t = 0; t < n; t++) {
    const from = u32[(candidates.offsets >>> 2) + t];
    const size = u32[(candidates.offsets >>> 2) + t + 1] - from;
    u32[(active.offsets >>> 2) + t] = at;
    const [gates, ids] = [scratch.gate + from * 4, candidates.ids + from * 4];
    const [outIds, outAct] = [active.ids + at * 4, active.act + at * 4];
    at +=
      layer.mode === 'dense'
        ? activateAll(context, layer, gates, size, -1, outIds, outAct, ids)
        : kernels.activate(kind, threshold, gates, size, ids, 0, 0, outIds, outAct);
    countGates(context, layer, l, t, size, step);
  }
  u32[(active.offsets >>> 2) + n] = at;
  return at;
}

/** `dense`: sigma(gate) of every neuron, also where it is 0. @returns count */
function activateAll(
  context: LaneContext,
  layer: LayerPlacement,
  gates: number,
  count: number,
  begin: number,
  outIds: number,
  outAct: number,
  ids = 0,
): number {
  const kind = context.layout.activation;
  const { gate: threshold } = layer.cut;
  const { kernels, f32, u32 } = context.arenas[layer.arena];
  if (isSmooth(kind))
    return kernels.activate(kind, threshold, gates, count, ids, Math.max(0, begin), 0, outIds, outAct);
  const [g, i, a] = [gates >>> 2, outIds >>> 2, outAct >>> 2];
  const cut = kind === 'fatrelu' ? Math.fround(threshold) : 0;
  for (let k = 0; k < count; k++) {
    const value = f32[g + k];
    u32[i + k] = ids ? u32[(ids >>> 2) + k] : begin + k;
    f32[a + k] = !(value <= cut) ? (kind === 'relu2' ? value * value : value) : 0; // NaN stays NaN
  }
  return count;
}

/** Every row's candidates of a chunk into scratch.candidates: storage ids, ascending. */
function chooseCandidates(
  context: LaneContext,
  layer: LayerPlacement,
  chunk: number,
  predictor: PredictorPlacement,
  rows: Rows,
): void {
  const { scratch } = context;
  const { kernels, u32 } = context.arenas[layer.arena];
  const { begin, always, scored } = layer.chunks[chunk];
  const part = predictor.chunks[chunk];
  const skip = context.gpu && layer.gpu;
  // Neurons are stored hot first: those of the GPU are mostly the first ones, which need no scores then.
  const from = skip ? skip.chunks[chunk].firstScored : 0;
  const n = rows.count;
  const scoreRow = (scored + 3) & ~3;
  if (scored > from) {
    const first = begin + always + from;
    score(
      context,
      layer,
      predictor,
      rows,
      0,
      n,
      part.firstRow + from,
      first,
      scored - from,
      from * 4,
      scoreRow,
    );
  }
  const { offsets, ids } = scratch.candidates;
  let at = 0;
  for (let t = 0; t < n; t++) {
    u32[(offsets >>> 2) + t] = at;
    let next = at;
    for (let i = 0; i < always; i++) u32[(ids >>> 2) + next++] = begin + i;
    if (scored > from) {
      const scores = scratch.scored + (t * scoreRow + from) * 4;
      const cut = part.cut + from * 4;
      next += kernels.selectAbove(scores, cut, scored - from, begin + always + from, ids + next * 4);
    }
    if (skip) {
      let kept = at;
      for (let i = at; i < next; i++) {
        const id = u32[(ids >>> 2) + i];
        if (skip.has[id] === 0) u32[(ids >>> 2) + kept++] = id;
      }
      next = kept;
    }
    at = next;
  }
  u32[(offsets >>> 2) + n] = at;
}

/** The neurons of a chunk that the GPU does not compute, as every row's candidates. */
function listCold(context: LaneContext, layer: LayerPlacement, chunk: number, n: number): void {
  const { u32 } = context.arenas[layer.arena];
  const { offsets, ids } = context.scratch.candidates;
  const { begin } = layer.chunks[chunk];
  const size = chunkSize(layer.chunks[chunk]);
  const { has } = layer.gpu!;
  let at = 0;
  for (let t = 0; t < n; t++) {
    u32[(offsets >>> 2) + t] = at;
    for (let id = begin; id < begin + size; id++) if (has[id] === 0) u32[(ids >>> 2) + at++] = id;
  }
  u32[(offsets >>> 2) + n] = at;
}
