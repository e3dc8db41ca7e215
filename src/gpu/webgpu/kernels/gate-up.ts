/**
 * S2: x1 of some neurons, the gate first and its up row only where the gate passed.
 *
 *     g = gate[id] . x + bias;  a = sigma(g);  x1 = a * (up[id] . x + bias)   (drelu: a * relu(...))
 *
 * over all neurons (range: x1[t * outStride + id]) or each token's list of candidates (x1[t * outStride + k]). What
 * did not pass is 0, and its up row is not read. The gate may be known already (`given`: raw gates; what select kept
 * are `act`s, sigma of them): then only up rows are read. Without a gate in the model x1 = sigma(fc1 x + b).
 * `dense` reads every up row: for comparison, and where nothing can be skipped.
 *
 * With `score` the up rows are sketches that choose candidates (engine/ffn-plan.ts, `reach`): a sketch is read where
 * |a| bound > 1, and what is written is a where |a (up . x + bias)| weight >= 1. Elsewhere it is zero: -0 where a
 * sketch was read, which count.ts knows from 0 by its bits.
 *
 * A unit computes the gates of some entries side by side, and so their up rows: which of them passed is the same for
 * all of its lanes, so what is skipped costs no memory traffic. Over a range a unit takes several tokens too: an up
 * row is read where one of them passed, and a token's sums are those it has alone.
 */
import type { ActivationKind } from '../../../kernels/kernels.js';
import type { GpuDevice } from '../device.js';
import type { BufferPart, Dispatch, KernelBinding, KernelText } from '../kernel.js';
import {
  bytesOfRow,
  floatBits,
  operation,
  partUniforms,
  PART_TYPE,
  type Operation,
  type TokenLoad,
} from '../operation.js';
import { vectorStride, type GpuRows, type RowShape } from '../rows.js';
import type { Tile, Tuning } from '../tuning.js';
import { activationText } from './activation.js';
import { rowFormatText } from './row-formats.js';
import { LIST_BINDINGS } from './text.js';
import { addLanes, laneExtensions, laneMemory, laneProducts, LANES } from './unit.js';

export interface GateUpShape {
  kind: ActivationKind;
  cols: number;
  /** Where the gate comes from: rows, raw gates in a buffer, or sigma of them. */
  gate: Pick<RowShape, 'format' | 'stride'> | 'raw' | 'act';
  /** Up rows at the beginning of the records; null: the model has no gate, fc1 takes its place. */
  up: Pick<RowShape, 'format' | 'stride'> | null;
  /** Entries of a list from one token to the next; not given: all neurons. */
  listStride?: number;
  /** Floats from one token's x1 (and given gates) to the next. */
  outStride: number;
  xStride?: number;
  gateBias?: boolean;
  upBias?: boolean;
  /** What weighs less than a least contribution is left out: norms of down columns are given. @default false */
  weighed?: boolean;
  /** Up rows are sketches, and sigma of the gates that they let through is written. @default false */
  score?: boolean;
  dense?: boolean;
}

/** The kernel for `tokens` vectors side by side (lists: 1). */
export function gateUpText(
  shape: GateUpShape,
  { units, rows }: Tile,
  tokens: number,
  shuffleLanes: number,
): KernelText {
  const { gate, up, listStride, gateBias, upBias, weighed, score, dense, kind } = shape;
  const listed = listStride !== undefined;
  const computed = typeof gate !== 'string';
  const all = (n: number, text: (i: number) => string, separator = '\n  '): string =>
    Array.from({ length: n }, (_, i) => text(i)).join(separator);
  const each = (text: (r: number) => string): string => all(rows, text);
  const eachToken = (text: (t: number) => string): string => all(tokens, text);
  /** For every row r and token t. */
  const cross = (text: (r: number, t: number) => string): string =>
    all(rows * tokens, (i) => text(Math.floor(i / tokens), i % tokens));
  const sums = Array.from({ length: rows * tokens }, (_, i) => `sum_${Math.floor(i / tokens)}_${i % tokens}`);
  const floats = (name: string): KernelBinding => ({ name, access: 'read', type: 'array<f32>' });
  const bindings: KernelBinding[] = [
    ...(computed
      ? [
          {
            name: 'gates',
            access: 'read',
            type: `array<${rowFormatText(gate.format, shape.cols).element}>`,
          } as const,
        ]
      : [floats('given')]),
    ...(up
      ? [
          {
            name: 'ups',
            access: 'read',
            type: `array<${rowFormatText(up.format, shape.cols).element}>`,
          } as const,
        ]
      : []),
    { name: 'x', access: 'read', type: 'array<vec4<f32>>' },
    // first neuron, neurons, bits of threshold and least contribution
    { name: 'part', access: 'uniform', type: PART_TYPE },
    ...(tokens > 1 ? [{ name: 'step', access: 'uniform', type: 'vec4<u32>' } as const] : []),
    ...(listed ? LIST_BINDINGS : []),
    ...(gateBias ? [floats('gate_bias')] : []),
    ...(upBias ? [floats('up_bias')] : []),
    ...(weighed ? [floats('norms')] : []),
    ...(score ? [floats('bounds'), floats('weights')] : []),
    { name: 'x1', access: 'write', type: `array<${score ? 'u32' : 'f32'}>` },
  ];
  // Both products have the names of row-formats.ts: each stands in a function of its own over its own binding.
  const products = (name: string, binding: string, of: Pick<RowShape, 'format' | 'stride'>): string => {
    const format = rowFormatText(of.format, shape.cols);
    const names = ['CHUNKS', 'Chunk', 'chunk_scale', 'chunk_x', 'load_chunk', 'group_length'];
    const own = (text: string): string =>
      names
        .reduce((t, n) => t.replace(new RegExp(`\\b${n}\\b`, 'g'), `${name}_${n}`), text)
        .replace(/\bw\[/g, `${binding}[`);
    const vectors = all(tokens, (t) => `x_${t}: u32`, ', ');
    const args = all(rows, (r) => `row_${r}: u32, pass_${r}: bool`, ', ');
    return `${own(format.code)}
fn ${name}_sums(lane: u32, ${vectors}, ${args}) -> array<f32, ${sums.length}> {
  ${own(laneProducts({ format, rows, tokens, guard: (r) => `pass_${r}` }))}
  return array<f32, ${sums.length}>(${sums.join(', ')});
}`;
  };
  const call = (
    name: string,
    of: Pick<RowShape, 'format' | 'stride'>,
    pass: (r: number) => string,
  ): string => {
    const { elementBytes } = rowFormatText(of.format, shape.cols);
    const vectors = all(tokens, (t) => `x_${t}`, ', ');
    const args = all(rows, (r) => `local_${r} * ${of.stride / elementBytes}u, ${pass(r)}`, ', ');
    return `{ let sums = ${name}_sums(lane, ${vectors}, ${args}); ${all(sums.length, (i) => `${sums[i]} = sums[${i}];`)} }
  ${addLanes(sums, shuffleLanes)}`;
  };
  const gateOf = (r: number, t: number): string =>
    computed ? `sum_${r}_${t}${gateBias ? ` + gate_bias[id_${r}]` : ''}` : `given[entry_${r}_${t}]`;
  const actOf = (r: number, t: number): string =>
    gate === 'act' ? gateOf(r, t) : `sigma(${gateOf(r, t)}, threshold)`;
  const passOf = (act: string, r: number): string => {
    if (dense) return 'true';
    if (score) return `(is_nan(${act}) || abs(${act}) * bounds[id_${r}] > 1.0)`;
    return gate === 'act' ? `(${act} != 0.0 || is_nan(${act}))` : `passes(${act}, threshold)`;
  };
  const upOf = (r: number, t: number): string => `sum_${r}_${t}${upBias ? ` + up_bias[id_${r}]` : ''}`;
  const rectified = (r: number, t: number): string =>
    kind === 'drelu' ? `select(${upOf(r, t)}, 0.0, ${upOf(r, t)} <= 0.0)` : upOf(r, t);
  const product = (r: number, t: number): string =>
    up ? `act_${r}_${t} * (${rectified(r, t)})` : `act_${r}_${t}`;
  const plain = weighed
    ? (r: number) => `select(value, 0.0, abs(value) * norms[id_${r}] < least)`
    : () => 'value';
  /** What a neuron that passed leaves in x1. */
  const written = (r: number, t: number): string =>
    score
      ? `select(0x80000000u, bitcast<u32>(act_${r}_${t}), is_nan(value) || abs(value) * weights[id_${r}] >= 1.0)`
      : plain(r);
  return {
    name: `gate-up ${kind}${listed ? ' list' : ''}${dense ? ' dense' : ''}`,
    constants: {
      X_STRIDE: (shape.xStride ?? vectorStride(shape.cols)) / 4,
      OUT_STRIDE: shape.outStride,
      ...(listed ? { LIST_STRIDE: listStride } : {}),
    },
    bindings,
    code: `
${activationText(kind)}
${computed ? products('gate', 'gates', gate) : ''}
${up ? products('up', 'ups', up) : ''}
${computed || up ? laneMemory(units, sums.length, shuffleLanes) : ''}
@compute @workgroup_size(${units * LANES})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
  let lane = index % ${LANES}u;
  let unit = index / ${LANES}u;
  let count = ${listed ? 'counts[group.y]' : 'part.y'};
  if (group.x * ${units * rows}u >= count) { return; }
  let base = group.x * ${units * rows}u + unit * ${rows}u;
  let threshold = bitcast<f32>(part.z);
  ${weighed ? 'let least = bitcast<f32>(part.w);' : ''}
  let first_token = group.y * ${tokens}u;
  ${eachToken((t) => `let token_${t} = ${tokens > 1 ? `min(first_token + ${t}u, step.x - 1u)` : 'first_token'};`)}
  ${eachToken((t) => `let x_${t} = token_${t} * X_STRIDE;`)}
  ${each((r) => `let last_${r} = min(base + ${r}u, count - 1u);`)}
  ${each((r) => `let id_${r} = ${listed ? `ids[first_token * LIST_STRIDE + last_${r}]` : `part.x + last_${r}`};`)}
  ${each((r) => `let local_${r} = id_${r} - part.x;`)}
  ${each((r) => `let here_${r} = base + ${r}u < count && local_${r} < part.y;`)}
  ${cross((r, t) => `let entry_${r}_${t} = token_${t} * OUT_STRIDE + ${listed ? `last_${r}` : `id_${r}`};`)}
  ${all(sums.length, (i) => `var ${sums[i]} = 0.0;`)}
  ${computed ? call('gate', gate, (r) => `here_${r}`) : ''}
  ${cross((r, t) => `let act_${r}_${t} = ${actOf(r, t)};`)}
  ${cross((r, t) => `let pass_${r}_${t} = here_${r} && ${passOf(`act_${r}_${t}`, r)};`)}
  ${up ? call('up', up, (r) => all(tokens, (t) => `pass_${r}_${t}`, ' || ')) : ''}
  ${cross((r, t) => {
    const inside = `lane == ${(r * tokens + t) % LANES}u && here_${r}${tokens > 1 ? ` && first_token + ${t}u < step.x` : ''}`;
    return `if (${inside}) {
    let value = ${product(r, t)};
    x1[entry_${r}_${t}] = select(${score ? '0u' : '0.0'}, ${written(r, t)}, pass_${r}_${t});
  }`;
  })}
}`,
    enable: computed || up ? laneExtensions(shuffleLanes) : [],
  };
}

export interface GateUpBuffers {
  x: BufferPart;
  /** f32 [tokens][outStride]: raw gates, or sigma of them, where they are known. */
  given?: BufferPart;
  ids?: BufferPart;
  counts?: BufferPart;
  gateBias?: BufferPart;
  upBias?: BufferPart;
  /** f32 [neurons]: lengths of the down columns, where contributions are weighed. */
  norms?: BufferPart;
  /** `score`: f32 [neurons] each. */
  bounds?: BufferPart;
  weights?: BufferPart;
  /** Uniform; its first word is the number of tokens. Without it tokens are computed one by one. */
  step?: BufferPart;
  /** f32 [tokens][outStride]; another buffer than `given` */
  x1: BufferPart;
}

/** Its cuts can be changed between two steps. */
export interface GateUp extends Operation {
  setCut(threshold: number, least: number): void;
}

/**
 * Prepares S2. @param gate rows of the gate, null where it is given; @param records of up and down rows (or sketches
 * of up), null without a gate in the model. Both are cut at the same rows, or not at all.
 */
export async function gateUp(
  gpu: GpuDevice,
  tuning: Tuning,
  gate: GpuRows | null,
  records: GpuRows | null,
  shape: Omit<GateUpShape, 'gate' | 'up' | 'gateBias' | 'upBias' | 'weighed' | 'cols'> & {
    given?: 'raw' | 'act';
  },
  buffers: GateUpBuffers,
  numbers: { threshold?: number; least?: number } = {},
): Promise<GateUp> {
  const rows = (gate ?? records)!;
  const listed = shape.listStride !== undefined;
  const { x, given, ids, counts, gateBias, upBias, norms, bounds, weights, step, x1 } = buffers;
  const whole = {
    ...shape,
    cols: rows.cols,
    gate: gate ?? shape.given!,
    up: records,
    gateBias: gateBias !== undefined,
    upBias: upBias !== undefined,
    weighed: norms !== undefined,
  };
  let cut = Uint32Array.of(floatBits(numbers.threshold ?? 0), floatBits(numbers.least ?? 0));
  const uniforms = await partUniforms(gpu, 'gate-up', rows, [cut[0], cut[1]]);
  const optional = [gateBias, upBias, norms, bounds, weights].filter((buffer) => buffer !== undefined);
  const variant = async (tile: Tile, tokens: number) => {
    const kernel = await gpu.kernel(gateUpText(whole, tile, tokens, tuning.shuffleLanes));
    const parts = uniforms.map(({ part, uniform }, p) => ({
      entries: listed ? Math.min(rows.rows, shape.listStride!) : part.rows,
      bindings: kernel.bind(
        gate ? gate.parts[p].buffer : given!,
        ...(records ? [records.parts[p].buffer] : []),
        x,
        uniform,
        ...(tokens > 1 ? [step!] : []),
        ...(listed ? [ids!, counts!] : []),
        ...optional,
        x1,
      ),
    }));
    return (count: number): Dispatch[] =>
      parts.map(({ entries, bindings }) => ({
        kernel,
        bindings,
        workgroups: [Math.ceil(entries / (tile.units * tile.rows)), Math.ceil(count / tokens)],
      }));
  };
  const single = await variant(listed ? tuning.list : tuning.single, 1);
  const batch = listed || !step ? single : await variant(tuning.batch, tuning.batch.tokens);
  const gates = (gate && bytesOfRow(gate)) ?? 0;
  const ups = (records && bytesOfRow(records)) ?? 0;
  const upsOf = ({ scored, candidates, passed }: TokenLoad): number => {
    if (shape.dense) return rows.rows;
    if (shape.score) return scored;
    return shape.given === 'act' ? candidates : passed;
  };
  return {
    ...operation(
      single(1)[0].kernel.name,
      (tokens) => (tokens === 1 ? single : batch)(tokens),
      (load) => (listed ? load.candidates : rows.rows) * gates + upsOf(load) * ups,
    ),
    setCut: (threshold, least) => {
      const words = Uint32Array.of(floatBits(threshold), floatBits(least));
      if (words.every((word, i) => word === cut[i])) return;
      cut = words;
      for (const { uniform } of uniforms) gpu.raw.queue.writeBuffer(uniform, 8, words);
    },
  };
}
