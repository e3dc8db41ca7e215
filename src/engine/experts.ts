/**
 * Mixtures of experts: each token meets the neurons of a few experts only, their x1 times the weight that the
 * router gives the expert. Every lane chooses for itself from the same logits: the choice costs less than waiting
 * for another's.
 */
import { rowShare } from './control.js';
import { chunkSize } from './ffn-plan.js';
import type { LaneContext } from './lane-context.js';
import type { LayerPlacement, PredictorPlacement } from './layout.js';
import { productRows } from './products.js';
import type { Rows, Vectors } from './rows.js';
import { score } from './score.js';
import { counters, Stat } from './stats.js';
import type { Step } from './step.js';

/** What one lane knows of the layer under way. Row t's experts stand at t * activeExperts, ascending. */
export interface Routing {
  experts: Uint16Array; // [T * activeExperts]
  weights: Float32Array; // [T * activeExperts]
  /** Of one row, while it is chosen for. */
  scores: Float64Array; // [experts]
  picked: Uint8Array; // [experts]
}

export const makeRouting = (batchTokens: number, experts: number, active: number): Routing => ({
  experts: new Uint16Array(batchTokens * active),
  weights: new Float32Array(batchTokens * active),
  scores: new Float64Array(experts),
  picked: new Uint8Array(experts),
});

/** The router's logits of all rows, this lane's share of them; readable after a barrier. */
export function routerLogits(context: LaneContext, layer: LayerPlacement, input: Vectors, n: number): void {
  const { lane, layout, shared } = context;
  const router = layer.router!;
  const first = rowShare(router.rows, lane, layout.laneCount);
  const end = rowShare(router.rows, lane + 1, layout.laneCount);
  productRows(context, layer.arena, router, 0, first, end, input, n, shared.router, shared.rowRouter);
}

/** The experts with the largest logits of every row (the first of equal ones), and their weights. */
export function chooseExperts(context: LaneContext, layer: LayerPlacement, n: number): void {
  const { layout, shared, routing } = context;
  const { f32 } = context.arenas[layer.arena];
  const { experts: count, activeExperts: active } = layout.block;
  const { scoring, normalized } = layout.config.block.ffn.experts!;
  const { experts, weights, scores, picked } = routing;
  for (let t = 0; t < n; t++) {
    const logits = (shared.router + t * shared.rowRouter) >>> 2;
    let top = -Infinity;
    for (let e = 0; e < count; e++) top = Math.max(top, f32[logits + e]);
    let sum = 0;
    for (let e = 0; e < count; e++) {
      const logit = f32[logits + e];
      scores[e] = scoring === 'softmax' ? Math.exp(logit - top) : 1 / (1 + Math.exp(-logit));
      sum += scores[e];
    }
    if (scoring === 'softmax') for (let e = 0; e < count; e++) scores[e] /= sum;

    // Logits that are no numbers are never larger: some experts are chosen, and the next norm finds the row out.
    picked.fill(0);
    for (let j = 0; j < active; j++) {
      let best = -1;
      for (let e = 0; e < count; e++) {
        if (picked[e] === 0 && (best < 0 || f32[logits + e] > f32[logits + best])) best = e;
      }
      picked[best] = 1;
    }
    let at = t * active;
    let total = 0;
    for (let e = 0; e < count; e++) {
      if (picked[e] === 0) continue;
      experts[at] = e;
      weights[at++] = scores[e];
      total += scores[e];
    }
    if (!normalized) continue;
    for (let j = t * active; j < at; j++) weights[j] /= total;
  }
}

// ---- candidates ------------------------------------------------------------------------------------------

/** All neurons of a chunk that belong to the chosen experts, as every row's candidates. */
export function listChosen(context: LaneContext, layer: LayerPlacement, chunk: number, n: number): void {
  const { experts: count, activeExperts: active } = context.layout.block;
  const { u32 } = context.arenas[layer.arena];
  const { offsets, ids } = context.scratch.candidates;
  let at = ids >>> 2;
  for (let t = 0; t < n; t++) {
    u32[(offsets >>> 2) + t] = at - (ids >>> 2);
    for (let j = t * active; j < (t + 1) * active; j++) {
      const part = layer.chunks[chunk * count + context.routing.experts[j]];
      const end = part.begin + chunkSize(part);
      for (let id = part.begin; id < end; id++) u32[at++] = id;
    }
  }
  u32[(offsets >>> 2) + n] = at - (ids >>> 2);
}

/** The predictor's candidates among them: only rows of chosen experts are scored. */
export function chooseInExperts(
  context: LaneContext,
  layer: LayerPlacement,
  l: number,
  chunk: number,
  predictor: PredictorPlacement,
  rows: Rows,
  step: Step,
): void {
  const { scratch, routing, stats } = context;
  const { experts: count, activeExperts: active } = context.layout.block;
  const { kernels, u32 } = context.arenas[layer.arena];
  const { offsets, ids } = scratch.candidates;
  let at = 0;
  for (let t = 0; t < rows.count; t++) {
    u32[(offsets >>> 2) + t] = at;
    for (let j = t * active; j < (t + 1) * active; j++) {
      const index = chunk * count + routing.experts[j];
      const { begin, always, scored } = layer.chunks[index];
      const { firstRow, cut } = predictor.chunks[index];
      for (let i = 0; i < always; i++) u32[(ids >>> 2) + at++] = begin + i;
      if (scored === 0) continue;
      stats[counters(context, step, t, l) + Stat.SCORED] += scored;
      score(context, layer, predictor, rows, t, 1, firstRow, begin + always, scored, 0, scored);
      at += kernels.selectAbove(scratch.scored, cut, scored, begin + always, ids + at * 4);
    }
  }
  u32[(offsets >>> 2) + rows.count] = at;
}

/** x1 of the chunk's active neurons times the weights of their experts. */
export function weighExperts(context: LaneContext, layer: LayerPlacement, chunk: number, n: number): void {
  const { experts: count, activeExperts: active } = context.layout.block;
  const { experts, weights } = context.routing;
  const { u32, f32 } = context.arenas[layer.arena];
  const { offsets, ids, act } = context.scratch.active;
  for (let t = 0; t < n; t++) {
    let k = u32[(offsets >>> 2) + t];
    const last = u32[(offsets >>> 2) + t + 1];
    for (let j = t * active; j < (t + 1) * active; j++) {
      const part = layer.chunks[chunk * count + experts[j]];
      const end = part.begin + chunkSize(part);
      for (; k < last && u32[(ids >>> 2) + k] < end; k++) f32[(act >>> 2) + k] *= weights[j];
    }
  }
}
