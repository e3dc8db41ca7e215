/**
 * The next token of every output, a work-group each, as sampler.ts chooses it from plain logits: the likeliest, or
 *
 *     top-k ─► top-p ─► min-p ─► temperature ─► draw
 *
 * The k largest logits are found by their bits: four passes over the vocabulary count how many have which byte, the
 * highest first, until the least of them is known; among equal ones the lowest ids are found likewise. Then they are
 * put in order, and one thread draws as the CPU would, in f32.
 */
import { MOST_DRAWN } from '../../../engine/gpu-step.js';
import { DRAW_FLOATS, NOT_CHOSEN, NOT_FINITE, Wanted } from '../../../engine/step.js';
import type { KernelText } from '../kernel.js';
import { float } from './text.js';

export interface ChooseShape {
  vocabSize: number;
  /** What every logit is multiplied by. */
  logitScale: number;
  /** Word offsets in the step. */
  wanted: number;
  topK: number;
  draws: number;
}

/** Bindings: step, logits, chosen. Dispatch: outputs. */
export function chooseKernel(shape: ChooseShape): KernelText {
  const code = /* wgsl */ `
var<workgroup> bestKey: array<u32, WG>;
var<workgroup> bestId: array<u32, WG>;
var<workgroup> bad: atomic<u32>;
var<workgroup> isBad: u32;
var<workgroup> counts: array<atomic<u32>, 256>;
var<workgroup> prefix: u32;
var<workgroup> remaining: u32;
var<workgroup> found: atomic<u32>;
var<workgroup> ids: array<u32, MOST>;
var<workgroup> sorted: array<f32, MOST>;
var<workgroup> sortedIds: array<u32, MOST>;

/** Bits of a logit in an order in which unsigned numbers compare as the logits do. */
fn key(base: u32, id: u32) -> u32 {
  let bits = bitcast<u32>(logits[base + id] * LOGIT_SCALE);
  if (bits == 0x80000000u) { return 0x80000000u; } // -0 is 0
  return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}
const LEAST_KEY = 0x007fffffu; // of -Infinity
/** NaN or +Infinity: looked for in the bits, which no fast arithmetic assumes away. */
fn isWrong(base: u32, id: u32) -> bool {
  let bits = bitcast<u32>(logits[base + id]);
  return (bits & 0x7f800000u) == 0x7f800000u && bits != 0xff800000u;
}

/** Id of the largest logit, the first of equals; -2 where one is no number or all are -Infinity. */
fn likeliest(base: u32, lane: u32) -> i32 {
  var most = 0u;
  var id = 0u;
  if (lane == 0u) { atomicStore(&bad, 0u); }
  workgroupBarrier();
  for (var i = lane; i < VOCAB; i += WG) {
    if (isWrong(base, i)) { atomicStore(&bad, 1u); }
    let k = key(base, i);
    if (k > most) { most = k; id = i; }
  }
  bestKey[lane] = most;
  bestId[lane] = id;
  workgroupBarrier();
  for (var width = WG / 2u; width > 0u; width /= 2u) {
    if (lane < width) {
      let other = bestKey[lane + width];
      let otherId = bestId[lane + width];
      if (other > bestKey[lane] || (other == bestKey[lane] && otherId < bestId[lane])) {
        bestKey[lane] = other;
        bestId[lane] = otherId;
      }
    }
    workgroupBarrier();
  }
  if (lane == 0u) { isBad = atomicLoad(&bad); }
  workgroupBarrier();
  if (isBad == 1u || bestKey[0] <= LEAST_KEY) { return NOT_FINITE; }
  return i32(bestId[0]);
}

/**
 * One pass of the search: of the numbers whose higher bytes are \`prefix\`, how many have which byte at \`shift\`; then
 * one byte longer is the prefix of the number that is the \`remaining\`-th largest.
 * @param ties 1: the numbers are ~id of the ids whose key is \`least\`, so that the lowest ids are the largest
 */
fn narrow(base: u32, lane: u32, shift: u32, ties: u32, least: u32) {
  atomicStore(&counts[lane], 0u);
  workgroupBarrier();
  let above = workgroupUniformLoad(&prefix);
  for (var i = lane; i < VOCAB; i += WG) {
    var number = key(base, i);
    if (ties == 1u) {
      if (number != least) { continue; }
      number = ~i;
    }
    if (shift < 24u && (number >> (shift + 8u)) != above) { continue; }
    atomicAdd(&counts[(number >> shift) & 255u], 1u);
  }
  workgroupBarrier();
  if (lane == 0u) {
    var left = remaining;
    var byte = 255u;
    loop {
      let here = atomicLoad(&counts[byte]);
      if (here >= left || byte == 0u) { break; }
      left -= here;
      byte -= 1u;
    }
    remaining = left;
    prefix = (above << 8u) | byte;
  }
  workgroupBarrier();
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = group.x;
  let wanted = step[WANTED + i];
  if ((wanted & (GREEDY | DRAW)) == 0u) {
    if (lane == 0u) { chosen[i] = NOT_CHOSEN; }
    return;
  }
  let base = i * VOCAB;
  let best = likeliest(base, lane);
  if ((wanted & GREEDY) != 0u) {
    if (lane == 0u) { chosen[i] = best; }
    return;
  }
  let k = min(step[TOP_K + i], VOCAB);
  if (lane == 0u) {
    prefix = 0u;
    remaining = k;
    atomicStore(&found, 0u);
  }
  workgroupBarrier();
  for (var turn = 0u; turn < 4u; turn++) { narrow(base, lane, 24u - 8u * turn, 0u, 0u); }
  let least = workgroupUniformLoad(&prefix);
  // Of those that are exactly the least one, the lowest ids: all ids whose complement is at least \`lowest\`.
  if (lane == 0u) { prefix = 0u; }
  workgroupBarrier();
  for (var turn = 0u; turn < 4u; turn++) { narrow(base, lane, 24u - 8u * turn, 1u, least); }
  let lowest = workgroupUniformLoad(&prefix);
  for (var id = lane; id < VOCAB; id += WG) {
    let number = key(base, id);
    if (number > least || (number == least && ~id >= lowest)) {
      let at = atomicAdd(&found, 1u);
      if (at < MOST) { ids[at] = id; }
    }
  }
  workgroupBarrier();
  for (var a = lane; a < k; a += WG) {
    let mine = key(base, ids[a]);
    var rank = 0u;
    for (var b = 0u; b < k; b++) {
      let other = key(base, ids[b]);
      if (other > mine || (other == mine && ids[b] < ids[a])) { rank += 1u; }
    }
    sorted[rank] = logits[base + ids[a]] * LOGIT_SCALE;
    sortedIds[rank] = ids[a];
  }
  workgroupBarrier();
  if (lane == 0u) { chosen[i] = select(draw(i, k), NOT_FINITE, best == NOT_FINITE); }
}

/** As sampler.ts draws, from the k likeliest in their order. */
fn draw(i: u32, k: u32) -> i32 {
  let temperature = bitcast<f32>(step[DRAWS + i * DRAW_FLOATS]);
  let topP = bitcast<f32>(step[DRAWS + i * DRAW_FLOATS + 1u]);
  let minP = bitcast<f32>(step[DRAWS + i * DRAW_FLOATS + 2u]);
  let random = bitcast<f32>(step[DRAWS + i * DRAW_FLOATS + 3u]);
  let most = sorted[0];
  var kept = k;
  var sum = 0.0;
  if (topP < 1.0) {
    for (var j = 0u; j < k; j++) { sum += exp(sorted[j] - most); }
  }
  if (minP > 0.0) {
    let floor = most + log(minP);
    kept = 0u;
    while (kept < k && sorted[kept] >= floor) { kept += 1u; }
  }
  if (topP < 1.0) {
    var reached = 0.0;
    for (var j = 0u; j < kept; j++) {
      reached += exp(sorted[j] - most);
      if (reached >= topP * sum) { kept = j + 1u; }
    }
  }
  var weights = 0.0;
  for (var j = 0u; j < kept; j++) { weights += exp((sorted[j] - most) / temperature); }
  var point = random * weights;
  var last = sortedIds[0];
  for (var j = 0u; j < kept; j++) {
    let weight = exp((sorted[j] - most) / temperature);
    point -= weight;
    if (weight > 0.0) { last = sortedIds[j]; }
    if (point < 0.0) { break; }
  }
  return i32(last);
}`;
  return {
    name: 'choose',
    constants: {
      VOCAB: shape.vocabSize,
      LOGIT_SCALE: float(shape.logitScale),
      WANTED: shape.wanted,
      TOP_K: shape.topK,
      DRAWS: shape.draws,
      DRAW_FLOATS,
      MOST: MOST_DRAWN,
      GREEDY: Wanted.GREEDY,
      DRAW: Wanted.DRAW,
      NOT_CHOSEN: `i32(${NOT_CHOSEN})`,
      NOT_FINITE: `i32(${NOT_FINITE})`,
      WG: 256,
    },
    bindings: [
      { name: 'step', access: 'read', type: 'array<u32>' },
      { name: 'logits', access: 'read', type: 'array<f32>' },
      { name: 'chosen', access: 'write', type: 'array<i32>' },
    ],
    code,
  };
}
