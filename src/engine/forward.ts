/**
 * The forward pass over the rows of a step, as every lane runs it: prompts, answers, drafts, evaluation and
 * recording are all rows. Lanes share out heads, matrix rows and neurons and meet at barriers. What differs between
 * architectures (model/block.ts) is decided by `layout.block` and by which parts a layer has; norms:
 *
 *     before (Llama)      x += f(norm(x))
 *     outputs (OLMo 2)    x += norm(f(x))
 *     sums (OPT-350m)     x = norm(x + f(x))
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
import type { Ptr } from '../kernels/kernels.js';
import { KV_PAGE } from '../kernels/layout.js';
import { RuntimeFault } from '../errors.js';
import { shareBegin, Word } from './control.js';
import { routerLogits } from './experts.js';
import { ffn, partialSum, squaresOf } from './ffn.js';
import { gpuUnits } from './gpu-link.js';
import { carry, type ArenaView, type LaneContext } from './lane-context.js';
import type { LayerPlacement, Matrix, NormPlacement } from './layout.js';
import { product } from './products.js';
import { publish, rowsOf, type Rows, type Vectors } from './rows.js';
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
    if (!layout.block.parallel) addAttention(context, layer, rows);
    feedForward(context, layer, l, rows, step);
  }
  carryRows(context, rows, arena, layout.globalsArena);
  if (step.outputs > 0) head(context, rows, step);
  context.barrier.wait();
}

/** x = Win embedding row * embeddingScale + position row */
function embed(context: LaneContext, rows: Rows, step: Step): void {
  const { kernels, f32 } = context.arenas[context.layout.globalsArena];
  const { embed, positions, positionOffset, projectIn, config } = context.layout;
  const { normed } = rows;
  for (let t = rows.begin; t < rows.end; t++) {
    const x = projectIn ? normed.f32 + t * normed.f32Row : rows.x + t * rows.xRow;
    kernels.dequantizeRow(embed.format, embed.ptr + step.token[t] * embed.stride, x, embed.cols);
    if (config.embeddingScale !== 1) {
      for (let i = x >>> 2; i < (x >>> 2) + embed.cols; i++) f32[i] *= config.embeddingScale;
    }
    if (projectIn && projectIn.format !== 'f32') {
      kernels.quantize(x, normed.q8a + t * normed.q8aRow, embed.cols);
    }
  }
  if (projectIn) {
    project(context, projectIn, rows, normed, rows.count);
    for (let t = rows.begin; t < rows.end; t++) {
      const from = (rows.projected.f32 + t * rows.projected.f32Row) >>> 2;
      f32.copyWithin((rows.x + t * rows.xRow) >>> 2, from, from + config.hiddenSize);
    }
  }
  if (!positions) return;
  for (let t = rows.begin; t < rows.end; t++) {
    const row = positions.ptr + (step.position[t] + positionOffset) * positions.stride;
    const position = normed.f32 + t * normed.f32Row;
    kernels.dequantizeRow(positions.format, row, position, positions.cols);
    kernels.addScaled(rows.x + t * rows.xRow, position, 1, positions.cols);
  }
}

/** rows.projected = W input for `n` rows, in f32; afterwards every lane may read it. */
function project(context: LaneContext, w: Matrix, rows: Rows, input: Vectors, n: number): void {
  publish(context, rows);
  const { projected } = rows;
  product(context, context.layout.globalsArena, -1, w, 0, input, n, projected.f32, projected.f32Row);
  context.barrier.wait();
}

function carryRows(context: LaneContext, rows: Rows, from: number, to: number): void {
  for (let t = rows.begin; t < rows.end; t++) {
    carry(context, from, to, rows.x + t * rows.xRow, context.layout.config.hiddenSize);
  }
}

/** out = norm(x), rows of d. @returns mean(x^2) */
function applyNorm(context: LaneContext, arena: number, norm: NormPlacement, x: Ptr, out: Ptr): number {
  const { kernels } = context.arenas[arena];
  const { block, config } = context.layout;
  const { hiddenSize: d, rmsEpsilon: epsilon } = config;
  if (block.layerNorm) return kernels.layerNorm(x, norm.weight, norm.bias, out, d, epsilon);
  const square = kernels.rmsNorm(x, norm.weight, out, d, epsilon);
  if (norm.bias) kernels.addScaled(out, norm.bias, 1, d);
  return square;
}

/** out = x. @returns mean(x^2) */
function copyRow({ f32 }: ArenaView, x: Ptr, out: Ptr, d: number): number {
  let sum = 0;
  for (let i = 0; i < d; i++) sum += (f32[(out >>> 2) + i] = f32[(x >>> 2) + i]) ** 2;
  return sum / d;
}

/**
 * What a sublayer reads of one row, norm(x) or x itself, quantised, into row `to` of rows.normed; checks that x
 * is finite.
 */
function enter(
  context: LaneContext,
  arena: number,
  norm: NormPlacement | null,
  rows: Rows,
  t: number,
  to: number,
  where: number,
): void {
  const { config, needsQ8a } = context.layout;
  const { normed } = rows;
  const d = config.hiddenSize;
  const [x, xn] = [rows.x + t * rows.xRow, normed.f32 + to * normed.f32Row];
  const square = norm ? applyNorm(context, arena, norm, x, xn) : copyRow(context.arenas[arena], x, xn, d);
  if (!Number.isFinite(square)) {
    Atomics.store(context.control, Word.FAILED_ROW, t + 1);
    throw notFinite(where, config.layers);
  }
  if (needsQ8a) context.arenas[arena].kernels.quantize(xn, normed.q8a + to * normed.q8aRow, d);
}

/** @param where 2 l: attention of layer l, 2 l + 1: its FFN, past the layers: the head */
const notFinite = (where: number, layers: number): RuntimeFault => {
  const name =
    where >= 2 * layers ? 'the output head' : `layer ${where >> 1}, ${where & 1 ? 'FFN' : 'attention'}`;
  return new RuntimeFault('NUMERIC', `activations are no longer finite numbers before ${name}`, {
    hint: 'The weights are damaged or overflow; convert the model again or check it with `hybrid-infer inspect`.',
  });
};

/** shared.proj = Wo attention(rope(Wq n), rope(Wk n), Wv n), n what `enter` makes of x */
function attention(context: LaneContext, layer: LayerPlacement, l: number, rows: Rows, step: Step): void {
  const { lane, layout, shared, barrier } = context;
  const { arena } = layer;
  const { kernels } = context.arenas[arena];
  const { heads, kvHeads, headDim, rmsEpsilon } = layout.config;
  const { block } = layout;
  const gpu = gpuUnits(context, l);
  const n = rows.count;
  let began = context.timeline ? nowUs() : 0;

  const norm = block.normsInputs ? layer.attnNorm : null;
  for (let t = rows.begin; t < rows.end; t++) enter(context, arena, norm, rows, t, t, 2 * l);
  publish(context, rows);
  began = endSpan(context, 'norm', began);

  // q, k and v heads
  const units = heads + 2 * kvHeads;
  const finish = (first: number, end: number): void => {
    for (let t = 0; t < n; t++) finishHeads(context, layer, t, first, end, step);
  };
  const done = block.normsAllHeads ? undefined : (a: number, b: number) => finish(a / headDim, b / headDim);
  product(context, arena, gpu.qkv, layer.qkv, layer.qkvBias, rows.normed, n, shared.qkv, shared.rowQkv, { unitRows: headDim, done }); // prettier-ignore
  if (block.routesBeforeAttention) routerLogits(context, layer, rows.residual, n);
  if (block.normsAllHeads) {
    normAllHeads(context, layer, n);
    finish(shareBegin(units, lane, layout.laneCount), shareBegin(units, lane + 1, layout.laneCount));
  }
  began = endSpan(context, 'projection', began);
  barrier.wait();
  began = endSpan(context, 'wait', began);

  attend(context, layer, rows, step);
  began = endSpan(context, 'attention', began);
  barrier.wait();
  began = endSpan(context, 'wait', began);

  // output projection
  const { o, oNorm } = layer;
  const attended = oNorm ? rows.attendedNormed : rows.attended;
  const quantised = o.format !== 'f32' && gpu.o < 0;
  for (let t = rows.begin; t < rows.end; t++) {
    const row = attended.f32 + t * attended.f32Row;
    if (oNorm) kernels.rmsNorm(shared.attn + t * shared.rowAttn, oNorm, row, o.cols, rmsEpsilon);
    if (quantised) kernels.quantize(row, attended.q8a + t * attended.q8aRow, o.cols);
  }
  if (oNorm || quantised) publish(context, rows);
  product(context, arena, gpu.o, o, layer.oBias, attended, n, shared.proj, shared.rowX);
  began = endSpan(context, 'projection', began);
  barrier.wait();
  endSpan(context, 'wait', began);
}

function addAttention(context: LaneContext, layer: LayerPlacement, rows: Rows): void {
  const { shared } = context;
  for (let t = rows.begin; t < rows.end; t++) {
    addBranch(context, layer.arena, layer.attnNorm, rows, t, shared.proj + t * shared.rowX);
  }
}

/** x += residualScale * f, with the norm that stands behind: x += residualScale * norm(f); x = norm(x + ...) */
function addBranch(
  context: LaneContext,
  arena: number,
  norm: NormPlacement,
  rows: Rows,
  t: number,
  f: Ptr,
): void {
  const { block, config } = context.layout;
  const { kernels } = context.arenas[arena];
  const x = rows.x + t * rows.xRow;
  let branch = f;
  if (block.normsOutputs) {
    branch = rows.normed.f32 + t * rows.normed.f32Row;
    applyNorm(context, arena, norm, f, branch);
  }
  kernels.addScaled(x, branch, config.residualScale, config.hiddenSize);
  if (block.normsSums) applyNorm(context, arena, norm, x, x);
}

/** RMS norms over all query heads and over all key heads of a row: rows are shared out. */
function normAllHeads(context: LaneContext, layer: LayerPlacement, n: number): void {
  const { lane, layout, shared, barrier } = context;
  const { kernels } = context.arenas[layer.arena];
  const { heads, kvHeads, headDim, rmsEpsilon } = layout.config;
  const [qWidth, kWidth] = [heads * headDim, kvHeads * headDim];
  barrier.wait();
  const end = shareBegin(n, lane + 1, layout.laneCount);
  for (let t = shareBegin(n, lane, layout.laneCount); t < end; t++) {
    const q = shared.qkv + t * shared.rowQkv;
    const k = q + qWidth * 4;
    kernels.rmsNorm(q, layer.qNorm, q, qWidth, rmsEpsilon);
    kernels.rmsNorm(k, layer.kNorm, k, kWidth, rmsEpsilon);
  }
  barrier.wait();
}

/** Norm, RoPE and cache for heads [first, end) of row t: query heads first, then key heads, then value heads. */
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
  const { heads, kvHeads, headDim, rmsEpsilon } = layout.config;
  const { normsHeads, rotaryDims } = layout.block;
  const position = step.position[t];
  const angles = position * (rotaryDims / 2) * 4;
  const page = u32[(pageTable(context, step, t) >>> 2) + Math.floor(position / KV_PAGE)];
  const at = page * KV_PAGE + (position % KV_PAGE);
  for (let u = first; u < end; u++) {
    const head = shared.qkv + t * shared.rowQkv + u * headDim * 4;
    if (u < heads + kvHeads) {
      const norm = u < heads ? layer.qNorm : layer.kNorm;
      if (normsHeads) kernels.rmsNorm(head, norm, head, headDim, rmsEpsilon);
      if (layer.rotates) kernels.rope(head, shared.cos + angles, shared.sin + angles, rotaryDims);
    }
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
  const scale = layout.block.attentionScale;
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
      Math.max(0, step.position[t] + 1 - layer.window),
      step.position[t] + 1,
      headDim,
      scale,
    );
    u += run;
  }
}

/** x += residualScale * FFN(n), n what `enter` makes of x: the chunks' sums in order, and the bias once */
function feedForward(context: LaneContext, layer: LayerPlacement, l: number, rows: Rows, step: Step): void {
  const { layout, shared } = context;
  const { arena } = layer;
  const { kernels, f32 } = context.arenas[arena];
  const { block } = layout;
  const { hiddenSize: d, residualScale } = layout.config;
  const norm = block.normsInputs ? layer.ffnNorm : null;
  for (let t = rows.begin; t < rows.end; t++) enter(context, arena, norm, rows, t, t, 2 * l + 1);
  if (block.parallel) addAttention(context, layer, rows);
  context.trace?.recordInputs(context, l, rows, step);
  publish(context, rows);
  if (layer.router && !block.routesBeforeAttention) {
    routerLogits(context, layer, rows.normed, rows.count);
    context.barrier.wait();
  }
  ffn(context, layer, l, rows, step);
  for (let t = rows.begin; t < rows.end; t++) {
    // Where a norm comes before the addition, the sums are gathered beside x first.
    const into = block.normsOutputs ? rows.normed.f32 + t * rows.normed.f32Row : rows.x + t * rows.xRow;
    if (block.normsOutputs) f32.fill(0, into >>> 2, (into >>> 2) + d);
    const scale = block.normsOutputs ? 1 : residualScale;
    const chunkScale = block.normsX1 ? scale * x1Factor(context, layer, t) : scale;
    for (let chunk = 0; chunk < layout.chunkCount; chunk++) {
      kernels.addScaled(into, partialSum(context, chunk) + t * shared.rowPartial, chunkScale, d);
    }
    if (layer.downBias) kernels.addScaled(into, layer.downBias, scale, d);
    if (block.normsOutputs) addBranch(context, arena, layer.ffnNorm, rows, t, into);
    if (block.normsSums) applyNorm(context, arena, layer.ffnNorm, into, into);
  }
}

/** 1 / sqrt(mean(x1^2) + epsilon): what an RMS norm multiplies x1 by, its weight being part of down. */
function x1Factor(context: LaneContext, layer: LayerPlacement, t: number): number {
  const { chunkCount, config } = context.layout;
  const { f32 } = context.arenas[layer.arena];
  let sum = 0;
  for (let chunk = 0; chunk < chunkCount; chunk++) sum += f32[(squaresOf(context, chunk) >>> 2) + t];
  return 1 / Math.sqrt(sum / config.intermediateSize + config.rmsEpsilon);
}

/** logits = Whead Wout norm(x) * logitScale for the rows that want them */
function head(context: LaneContext, rows: Rows, step: Step): void {
  const { layout, shared } = context;
  const { lmHead, projectOut, config, globalsArena } = layout;
  const { kernels, f32 } = context.arenas[globalsArena];
  const began = context.timeline ? nowUs() : 0;
  const outputs = step.outputs;
  for (let i = 0; i < outputs; i++) {
    const t = step.output[i];
    if (t < rows.begin || t >= rows.end) continue;
    // Row i <= t was normed for the FFN, whose readers are past their barrier.
    enter(context, globalsArena, layout.outNorm, rows, t, i, 2 * config.layers);
  }
  let input = rows.normed;
  if (projectOut) {
    project(context, projectOut, rows, input, outputs);
    input = rows.projected;
    for (let i = rows.begin; lmHead.format !== 'f32' && i < Math.min(rows.end, outputs); i++) {
      kernels.quantize(input.f32 + i * input.f32Row, input.q8a + i * input.q8aRow, lmHead.cols);
    }
  }
  publish(context, rows);
  const unit = context.gpu?.units.lmHead ?? -1;
  const done = (first: number, end: number): void => {
    for (let i = 0; config.logitScale !== 1 && i < outputs; i++) {
      const row = (shared.logits + i * shared.rowLogits) >>> 2;
      for (let r = row + first; r < row + end; r++) f32[r] *= config.logitScale;
    }
  };
  product(context, globalsArena, unit, lmHead, 0, input, outputs, shared.logits, shared.rowLogits, { done });
  endSpan(context, 'head', began);
}
