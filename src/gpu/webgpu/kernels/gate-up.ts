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
 * A unit computes the gates of some entries side by side, and so their up rows: which of them passed is the same for
 * all of its lanes, so what is skipped costs no memory traffic.
 */
import type { ActivationKind } from '../../../kernels/kernels.js';
import type { GpuDevice } from '../device.js';
import type { BufferPart, Dispatch, KernelBinding, KernelText } from '../kernel.js';
import { floatBits, operation, partUniforms, PART_TYPE, type Operation } from '../operation.js';
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
  dense?: boolean;
}

export function gateUpText(shape: GateUpShape, { units, rows }: Tile, shuffleLanes: number): KernelText {
  const { gate, up, listStride, gateBias, upBias, weighed, dense, kind } = shape;
  const listed = listStride !== undefined;
  const computed = typeof gate !== 'string';
  const each = (text: (r: number) => string): string =>
    Array.from({ length: rows }, (_, r) => text(r)).join('\n  ');
  const sums = Array.from({ length: rows }, (_, r) => `sum_${r}_0`);
  const bindings: KernelBinding[] = [
    ...(computed
      ? [
          {
            name: 'gates',
            access: 'read',
            type: `array<${rowFormatText(gate.format, shape.cols).element}>`,
          } as const,
        ]
      : [{ name: 'given', access: 'read', type: 'array<f32>' } as const]),
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
    ...(listed ? LIST_BINDINGS : []),
    ...(gateBias ? [{ name: 'gate_bias', access: 'read', type: 'array<f32>' } as const] : []),
    ...(upBias ? [{ name: 'up_bias', access: 'read', type: 'array<f32>' } as const] : []),
    ...(weighed ? [{ name: 'norms', access: 'read', type: 'array<f32>' } as const] : []),
    { name: 'x1', access: 'write', type: 'array<f32>' },
  ];
  // Both products have the names of row-formats.ts: each stands in a function of its own over its own binding.
  const products = (name: string, binding: string, of: Pick<RowShape, 'format' | 'stride'>): string => {
    const format = rowFormatText(of.format, shape.cols);
    const names = ['CHUNKS', 'Chunk', 'chunk_scale', 'chunk_x', 'load_chunk', 'group_length'];
    const own = (text: string): string =>
      names
        .reduce((t, n) => t.replace(new RegExp(`\\b${n}\\b`, 'g'), `${name}_${n}`), text)
        .replace(/\bw\[/g, `${binding}[`);
    const argument = (r: number): string => `row_${r}: u32, pass_${r}: bool`;
    const args = Array.from({ length: rows }, (_, r) => argument(r)).join(', ');
    return `${own(format.code)}
fn ${name}_sums(x_0: u32, lane: u32, ${args}) -> array<f32, ${rows}> {
  ${own(laneProducts({ format, rows, tokens: 1, guard: (r) => `pass_${r}` }))}
  return array<f32, ${rows}>(${sums.join(', ')});
}`;
  };
  const call = (
    name: string,
    of: Pick<RowShape, 'format' | 'stride'>,
    pass: (r: number) => string,
  ): string => {
    const { elementBytes } = rowFormatText(of.format, shape.cols);
    const args = Array.from(
      { length: rows },
      (_, r) => `local_${r} * ${of.stride / elementBytes}u, ${pass(r)}`,
    );
    return `{ let sums = ${name}_sums(x_0, lane, ${args.join(', ')}); ${each((r) => `${sums[r]} = sums[${r}];`)} }
  ${addLanes(sums, shuffleLanes)}`;
  };
  const gateOf = (r: number): string =>
    computed ? `${sums[r]}${gateBias ? ` + gate_bias[id_${r}]` : ''}` : `given[entry_${r}]`;
  const upOf = (r: number): string => `${sums[r]}${upBias ? ` + up_bias[id_${r}]` : ''}`;
  const rectified = (r: number): string =>
    kind === 'drelu' ? `select(${upOf(r)}, 0.0, ${upOf(r)} <= 0.0)` : upOf(r);
  const product = (r: number): string => (up ? `act_${r} * (${rectified(r)})` : `act_${r}`);
  const kept = weighed
    ? (r: number) => `select(${product(r)}, 0.0, abs(${product(r)}) * norms[id_${r}] < least)`
    : product;
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
${computed || up ? laneMemory(units, rows, shuffleLanes) : ''}
@compute @workgroup_size(${units * LANES})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
  let lane = index % ${LANES}u;
  let unit = index / ${LANES}u;
  let count = ${listed ? 'counts[group.y]' : 'part.y'};
  if (group.x * ${units * rows}u >= count) { return; }
  let base = group.x * ${units * rows}u + unit * ${rows}u;
  let threshold = bitcast<f32>(part.z);
  ${weighed ? 'let least = bitcast<f32>(part.w);' : ''}
  let x_0 = group.y * X_STRIDE;
  ${each((r) => `let last_${r} = min(base + ${r}u, count - 1u);`)}
  ${each((r) => `let id_${r} = ${listed ? `ids[group.y * LIST_STRIDE + last_${r}]` : `part.x + last_${r}`};`)}
  ${each((r) => `let local_${r} = id_${r} - part.x;`)}
  ${each((r) => `let here_${r} = base + ${r}u < count && local_${r} < part.y;`)}
  ${each((r) => `let entry_${r} = group.y * OUT_STRIDE + ${listed ? `last_${r}` : `id_${r}`};`)}
  ${each((r) => `var ${sums[r]} = 0.0;`)}
  ${computed ? call('gate', gate, (r) => `here_${r}`) : ''}
  ${each((r) => `let act_${r} = ${gate === 'act' ? gateOf(r) : `sigma(${gateOf(r)}, threshold)`};`)}
  ${each((r) => `let pass_${r} = here_${r} && ${dense ? 'true' : gate === 'act' ? `(act_${r} != 0.0 || is_nan(act_${r}))` : `passes(act_${r}, threshold)`};`)}
  ${up ? call('up', up, (r) => `pass_${r}`) : ''}
  ${each(
    (r) => `if (lane == ${r % LANES}u && here_${r}) {
    var value = 0.0;
    if (pass_${r}) { value = ${kept(r)}; }
    x1[entry_${r}] = value;
  }`,
  )}
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
  /** f32 [tokens][outStride]; another buffer than `given` */
  x1: BufferPart;
}

/**
 * Prepares S2. @param gate rows of the gate, null where it is given; @param records of up and down rows, null without
 * a gate in the model. Both are cut at the same rows, or not at all.
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
): Promise<Operation> {
  const rows = (gate ?? records)!;
  const listed = shape.listStride !== undefined;
  const tile = listed ? tuning.list : tuning.single;
  const { x, given, ids, counts, gateBias, upBias, norms, x1 } = buffers;
  const text = gateUpText(
    {
      ...shape,
      cols: rows.cols,
      gate: gate ?? shape.given!,
      up: records,
      gateBias: gateBias !== undefined,
      upBias: upBias !== undefined,
      weighed: norms !== undefined,
    },
    tile,
    tuning.shuffleLanes,
  );
  const kernel = await gpu.kernel(text);
  const own = [floatBits(numbers.threshold ?? 0), floatBits(numbers.least ?? 0)] as const;
  const optional = [gateBias, upBias, norms].filter((buffer) => buffer !== undefined);
  const parts = (await partUniforms(gpu, kernel.name, rows, own)).map(({ part, uniform }, p) => ({
    part,
    bindings: kernel.bind(
      gate ? gate.parts[p].buffer : given!,
      ...(records ? [records.parts[p].buffer] : []),
      x,
      uniform,
      ...(listed ? [ids!, counts!] : []),
      ...optional,
      x1,
    ),
  }));
  const perGroup = tile.units * tile.rows;
  return operation(kernel.name, (tokens) =>
    parts.map(({ part, bindings }): Dispatch => {
      const entries = listed ? Math.min(rows.rows, shape.listStride!) : part.rows;
      return { kernel, bindings, workgroups: [Math.ceil(entries / perGroup), tokens] };
    }),
  );
}
