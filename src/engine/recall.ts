/** Recall beside the run: what was truly active in a chunk, and which of it the predictor let through. */
import { chunkSize, type NeuronChunk } from './ffn-plan.js';
import type { LaneContext } from './lane-context.js';
import type { LayerPlacement, RowLists } from './layout.js';
import { operand } from './products.js';
import type { Rows } from './rows.js';
import { counters, Stat } from './stats.js';
import type { Step } from './step.js';

/**
 * What row t's chunk truly holds, compared with the row's candidates. Neurons of the GPU always count as found.
 * Changes nothing that the run itself reads.
 */
export function countRecall(
  context: LaneContext,
  layer: LayerPlacement,
  l: number,
  chunk: number,
  candidates: RowLists,
  rows: Rows,
  step: Step,
  t: number,
): void {
  if (!layer.router) return countPart(context, layer, l, layer.chunks[chunk], 1, candidates, rows, step, t);
  const { experts: count, activeExperts: active } = context.layout.block;
  const { experts, weights } = context.routing;
  for (let j = t * active; j < (t + 1) * active; j++) {
    const part = layer.chunks[chunk * count + experts[j]];
    countPart(context, layer, l, part, weights[j], candidates, rows, step, t);
  }
}

/** The full gate of the part, up where it passes. @param weight of the part's expert */
function countPart(
  context: LaneContext,
  layer: LayerPlacement,
  l: number,
  part: NeuronChunk,
  expertWeight: number,
  candidates: RowLists,
  rows: Rows,
  step: Step,
  t: number,
): void {
  const { scratch, stats, layout } = context;
  const { kernels, u32, f32 } = context.arenas[layer.arena];
  const kind = layout.activation;
  const { begin } = part;
  const size = chunkSize(part);
  const { gate, ffn } = layer;
  const { normed } = rows;
  const { gates, offsets, ids, act, up } = scratch.truth;
  const x = { ...normed, f32: normed.f32 + t * normed.f32Row, q8a: normed.q8a + t * normed.q8aRow };

  const w = gate.ptr + begin * gate.stride;
  kernels.dot(gate.format, w, gate.stride, size, operand(gate.format, x), 0, 1, gates, size, gate.cols);
  if (layer.gateBias) kernels.addScaled(gates, layer.gateBias + begin * 4, 1, size);
  const passed = kernels.activate(kind, layer.cut.gate, gates, size, 0, begin, 0, ids, act);
  u32[offsets >>> 2] = 0;
  u32[(offsets >>> 2) + 1] = passed;
  if (layout.block.gated) {
    kernels.dotLists(ffn.format, ffn.ptr, ffn.stride, offsets, ids, 1, operand(ffn.format, x), 0, up, ffn.cols); // prettier-ignore
    if (layer.upBias) kernels.addListed(up, layer.upBias, ids, passed);
    kernels.gateUp(kind, act, up, passed);
  }

  const end = u32[(candidates.offsets >>> 2) + t + 1];
  let c = u32[(candidates.offsets >>> 2) + t];
  const onGpu = context.gpu && layer.gpu ? layer.gpu.has : null;
  const at = counters(context, step, t, l);
  for (let i = 0; i < passed; i++) {
    const value = f32[(act >>> 2) + i];
    const id = u32[(ids >>> 2) + i];
    const norm = f32[(layer.downNorms >>> 2) + id];
    if (value === 0 || Math.abs(value) * norm < layer.cut.contribution) continue;
    while (c < end && u32[(candidates.ids >>> 2) + c] < id) c++;
    const weight = Math.abs(value) * expertWeight * norm;
    stats[at + Stat.TRUE_ACTIVE] += 1;
    stats[at + Stat.TRUE_WEIGHT] += weight;
    if (onGpu?.[id] || (c < end && u32[(candidates.ids >>> 2) + c] === id)) {
      stats[at + Stat.HIT] += 1;
      stats[at + Stat.HIT_WEIGHT] += weight;
    }
  }
}
