/**
 * The forward pass over the rows of a step, as every lane runs it: prompts, answers, drafts, evaluation and
 * recording are all rows. Lanes share out heads, matrix rows and neurons and meet at barriers.
 *
 *     norm, quantise      every lane all rows when they are few, else its share (rows.ts)
 *     q, k, v heads       shared out; k and v go straight to the cache      | barrier
 *     attention           heads shared out                                 | barrier
 *     output projection   rows shared out                                  | barrier
 *     FFN                 chunks of neurons shared out, one sum a chunk     | barrier
 *
 * What one row becomes depends on nothing but that row and the cache: kernels give the same bits for it in
 * whatever company it is computed, and sums over chunks have one order.
 */
import { KV_PAGE } from '../kernels/layout.js';
import { RuntimeFault } from '../errors.js';
import { chunkCursor, rowShare, shareBegin, Word } from './control.js';
import { ffn, partialSum } from './ffn.js';
import { gpuUnits } from './gpu-link.js';
import { carry, type LaneContext } from './lane-context.js';
import type { LayerPlacement } from './layout.js';
import { product } from './products.js';
import { publish, rowsOf, type Rows } from './rows.js';
import type { Step } from './step.js';
import { endSpan, nowUs } from './timeline.js';

/**
 * Run a step's rows through all layers. Afterwards row i of shared.logits (in the globals' arena) holds the
 * logits of the step's i-th wanted output.
 * @throws RuntimeFault NUMERIC when a residual stream is no longer finite, naming the layer
 */
export function forward(context: LaneContext, step: Step): void {
  const { layout } = context;
  const rows = rowsOf(context, step.rows);
  embed(context, rows, step);
  let arena = layout.globalsArena;
  for (let l = 0; l < layout.layers.length; l++) {
    const layer = layout.layers[l];
    carryRows(context, rows, arena, layer.arena);
    arena = layer.arena;
    attention(context, layer, l, rows, step);
    feedForward(context, layer, l, rows, step);
  }
  carryRows(context, rows, arena, layout.globalsArena);
  if (step.outputs > 0) head(context, rows, step);
  context.barrier.wait();
}

/** x = embedding row * embeddingScale */
function embed(context: LaneContext, rows: Rows, step: Step): void {
  const { kernels, f32 } = context.arenas[context.layout.globalsArena];
  const { embed, config } = context.layout;
  for (let t = rows.begin; t < rows.end; t++) {
    const x = rows.x + t * rows.xRow;
    kernels.dequantizeRow(embed.format, embed.ptr + step.token[t] * embed.stride, x, embed.cols);
    if (config.embeddingScale === 1) continue;
    for (let i = x >>> 2; i < (x >>> 2) + embed.cols; i++) f32[i] *= config.embeddingScale;
  }
}

function carryRows(context: LaneContext, rows: Rows, from: number, to: number): void {
  for (let t = rows.begin; t < rows.end; t++) {
    carry(context, from, to, rows.x + t * rows.xRow, context.layout.config.hiddenSize);
  }
}

/** Norm and quantise x of one row into row `to` of rows.normed; checks that x is finite. */
function normalise(
  context: LaneContext,
  arena: number,
  weight: number,
  rows: Rows,
  t: number,
  to: number,
  where: number,
): void {
  const { kernels } = context.arenas[arena];
  const { config, needsQ8a } = context.layout;
  const { normed } = rows;
  const xn = normed.f32 + to * normed.f32Row;
  const square = kernels.rmsNorm(rows.x + t * rows.xRow, weight, xn, config.hiddenSize, config.rmsEpsilon);
  if (!Number.isFinite(square)) {
    Atomics.store(context.control, Word.FAILED_ROW, t + 1);
    throw notFinite(where, config.layers);
  }
  if (needsQ8a) kernels.quantize(xn, normed.q8a + to * normed.q8aRow, config.hiddenSize);
}

/** @param where 2 l: attention of layer l, 2 l + 1: its FFN, past the layers: the head */
const notFinite = (where: number, layers: number): RuntimeFault => {
  const name =
    where >= 2 * layers ? 'the output head' : `layer ${where >> 1}, ${where & 1 ? 'FFN' : 'attention'}`;
  return new RuntimeFault('NUMERIC', `activations are no longer finite numbers before ${name}`, {
    hint: 'The weights are damaged or overflow; convert the model again or check it with `hybrid-infer inspect`.',
  });
};

/** x += residualScale * Wo attention(rope(Wq xn), rope(Wk xn), Wv xn) */
function attention(context: LaneContext, layer: LayerPlacement, l: number, rows: Rows, step: Step): void {
  const { lane, layout, shared, barrier } = context;
  const { arena } = layer;
  const { kernels } = context.arenas[arena];
  const { heads, kvHeads, headDim, hiddenSize: d, residualScale } = layout.config;
  const gpu = gpuUnits(context, l);
  const n = rows.count;
  let began = context.timeline ? nowUs() : 0;

  for (let t = rows.begin; t < rows.end; t++) normalise(context, arena, layer.attnNorm, rows, t, t, 2 * l);
  publish(context, rows);
  began = endSpan(context, 'norm', began);

  // q, k and v heads
  const units = heads + 2 * kvHeads;
  const first = shareBegin(units, lane, layout.laneCount);
  const end = shareBegin(units, lane + 1, layout.laneCount);
  const [rowFirst, rowEnd] = [first * headDim, end * headDim];
  product(context, arena, gpu.qkv, layer.qkv, layer.qkvBias, rowFirst, rowEnd, rows.normed, n, shared.qkv, shared.rowQkv); // prettier-ignore
  for (let t = 0; t < n; t++) finishHeads(context, layer, t, first, end, step);
  began = endSpan(context, 'projection', began);
  barrier.wait();
  began = endSpan(context, 'wait', began);

  attend(context, layer, rows, step);
  // Nobody takes chunks between these two barriers: every lane puts its own share back.
  Atomics.store(context.control, chunkCursor(lane), shareBegin(layout.chunkCount, lane, layout.laneCount));
  began = endSpan(context, 'attention', began);
  barrier.wait();
  began = endSpan(context, 'wait', began);

  // output projection
  const { o } = layer;
  const { attended } = rows;
  if (o.format !== 'f32' && gpu.o < 0) {
    for (let t = rows.begin; t < rows.end; t++) {
      kernels.quantize(attended.f32 + t * attended.f32Row, attended.q8a + t * attended.q8aRow, o.cols);
    }
    publish(context, rows);
  }
  const [oFirst, oEnd] = [rowShare(d, lane, layout.laneCount), rowShare(d, lane + 1, layout.laneCount)];
  product(context, arena, gpu.o, o, layer.oBias, oFirst, oEnd, attended, n, shared.proj, shared.rowX);
  began = endSpan(context, 'projection', began);
  barrier.wait();
  endSpan(context, 'wait', began);
  for (let t = rows.begin; t < rows.end; t++) {
    kernels.addScaled(rows.x + t * rows.xRow, shared.proj + t * shared.rowX, residualScale, d);
  }
}

/** RoPE and cache for heads [first, end) of row t: query heads first, then key heads, then value heads. */
function finishHeads(
  context: LaneContext,
  layer: LayerPlacement,
  t: number,
  first: number,
  end: number,
  step: Step,
): void {
  const { layout, shared } = context;
  const { kernels, u32 } = context.arenas[layer.arena];
  const { heads, kvHeads, headDim } = layout.config;
  const position = step.position[t];
  const angles = position * (headDim / 2) * 4;
  const page = u32[(pageTable(context, step, t) >>> 2) + Math.floor(position / KV_PAGE)];
  const at = page * KV_PAGE + (position % KV_PAGE);
  for (let u = first; u < end; u++) {
    const head = shared.qkv + t * shared.rowQkv + u * headDim * 4;
    if (u < heads + kvHeads) kernels.rope(head, shared.cos + angles, shared.sin + angles, headDim);
    if (u < heads) continue;
    const kv = u < heads + kvHeads ? layer.keys[u - heads] : layer.values[u - heads - kvHeads];
    kernels.storeKv(layout.kvFormat, head, kv.data, kv.scales, at, headDim);
  }
}

/** Where the page table of row t's sequence stands: u32 page ids. */
const pageTable = ({ shared }: LaneContext, step: Step, t: number): number =>
  shared.tables + step.slot[t] * shared.rowTable;

/**
 * Softmax attention of this lane's (row, query head) pairs over the cache. Pairs are ordered by KV head, row,
 * query head, so that one call serves all query heads of a row that share a KV head.
 */
function attend(context: LaneContext, layer: LayerPlacement, rows: Rows, step: Step): void {
  const { lane, layout, shared, scratch } = context;
  const { kernels } = context.arenas[layer.arena];
  const { heads, kvHeads, headDim } = layout.config;
  const group = heads / kvHeads;
  const n = rows.count;
  const scale = 1 / Math.sqrt(headDim);
  const last = shareBegin(heads * n, lane + 1, layout.laneCount);
  for (let u = shareBegin(heads * n, lane, layout.laneCount); u < last;) {
    const pair = Math.floor(u / group);
    const [kv, t] = [Math.floor(pair / n), pair % n];
    const run = Math.min(last, (pair + 1) * group) - u;
    const at = (kv * group + (u % group)) * headDim * 4;
    const { data: keys, scales: keyScales } = layer.keys[kv];
    const { data: values, scales: valueScales } = layer.values[kv];
    kernels.attention(
      layout.kvFormat,
      shared.qkv + t * shared.rowQkv + at,
      keys,
      keyScales,
      values,
      valueScales,
      pageTable(context, step, t),
      shared.attn + t * shared.rowAttn + at,
      scratch.scores,
      run,
      0,
      step.position[t] + 1,
      headDim,
      scale,
    );
    u += run;
  }
}

/** x += residualScale * FFN(xn), the chunks' sums in order */
function feedForward(context: LaneContext, layer: LayerPlacement, l: number, rows: Rows, step: Step): void {
  const { layout, shared } = context;
  const { kernels } = context.arenas[layer.arena];
  const { hiddenSize: d, residualScale } = layout.config;
  for (let t = rows.begin; t < rows.end; t++) {
    normalise(context, layer.arena, layer.ffnNorm, rows, t, t, 2 * l + 1);
  }
  context.trace?.recordInputs(context, l, rows, step);
  publish(context, rows);
  ffn(context, layer, l, rows, step);
  for (let t = rows.begin; t < rows.end; t++) {
    for (let chunk = 0; chunk < layout.chunkCount; chunk++) {
      const sum = partialSum(context, chunk) + t * shared.rowPartial;
      kernels.addScaled(rows.x + t * rows.xRow, sum, residualScale, d);
    }
  }
}

/** logits = Whead norm(x) * logitScale for the rows that want them */
function head(context: LaneContext, rows: Rows, step: Step): void {
  const { lane, layout, shared } = context;
  const { lmHead, config, globalsArena } = layout;
  const { f32 } = context.arenas[globalsArena];
  const began = context.timeline ? nowUs() : 0;
  const outputs = step.outputs;
  for (let i = 0; i < outputs; i++) {
    const t = step.output[i];
    if (t < rows.begin || t >= rows.end) continue;
    // Row i <= t was normed for the FFN, whose readers are past their barrier.
    normalise(context, globalsArena, layout.outNorm, rows, t, i, 2 * config.layers);
  }
  publish(context, rows);
  const unit = context.gpu?.units.lmHead ?? -1;
  const first = rowShare(lmHead.rows, lane, layout.laneCount);
  const end = rowShare(lmHead.rows, lane + 1, layout.laneCount);
  product(context, globalsArena, unit, lmHead, 0, first, end, rows.normed, outputs, shared.logits, shared.rowLogits); // prettier-ignore
  if (config.logitScale !== 1) {
    for (let i = 0; i < outputs; i++) {
      const row = (shared.logits + i * shared.rowLogits) >>> 2;
      for (let r = row + first; r < row + end; r++) f32[r] *= config.logitScale;
    }
  }
  endSpan(context, 'head', began);
}
