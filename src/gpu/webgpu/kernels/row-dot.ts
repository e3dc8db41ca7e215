/**
 * Row dot: out[t * outStride + r] = W[r] . X[t], of every row of a matrix (range) or of each token's list of rows,
 * out[t * outStride + k] = W[ids[t * listStride + k]] . X[t] for k < counts[t]. Bias, rectifier and a sum that
 * is already in `out` can follow. Sums are added in the order of unit.ts.
 *
 * A list's length stays on the GPU: as many work-groups are dispatched as the longest list would need, and those
 * past the end return at once. (A work-group count from a buffer would cost more: Dawn checks each one with a
 * dispatch of its own.)
 */
import type { BufferPart, Dispatch, KernelBinding, KernelText } from '../kernel.js';
import type { GpuDevice } from '../device.js';
import { bytesOfRow, operation, partUniforms, PART_TYPE, type Operation } from '../operation.js';
import { vectorStride, type GpuRows, type RowShape } from '../rows.js';
import type { Tile, Tuning } from '../tuning.js';
import { rowFormatText } from './row-formats.js';
import { LIST_BINDINGS } from './text.js';
import { addLanes, laneExtensions, laneMemory, laneProducts, LANES } from './unit.js';

export interface RowDotShape extends Omit<RowShape, 'rows'> {
  /** Bytes from the beginning of a record to the row. @default 0 */
  offset?: number;
  /** Floats from one vector of `out` to the next. */
  outStride: number;
  /** Floats from one vector of x to the next, a multiple of 4. @default vectorStride(cols) */
  xStride?: number;
  /** Entries from one token's list to the next; not given: all rows. */
  listStride?: number;
  /** The matrix is cut: a list may name rows of other parts, which are left alone. @default false */
  cut?: boolean;
  bias?: boolean;
  /** max(0, value). @default false */
  relu?: boolean;
  /** out += value, instead of out = value. @default false */
  add?: boolean;
}

/** The kernel for `tokens` vectors side by side (lists: 1). */
export function rowDotText(shape: RowDotShape, tile: Tile, tokens: number, shuffleLanes: number): KernelText {
  const { units, rows } = tile;
  const { listStride, relu, add, bias, cut = false } = shape;
  const listed = listStride !== undefined;
  const format = rowFormatText(shape.format, shape.cols);
  const sums = rows * tokens;
  const names = Array.from({ length: sums }, (_, i) => `sum_${Math.floor(i / tokens)}_${i % tokens}`);
  const each = (n: number, text: (i: number) => string): string =>
    Array.from({ length: n }, (_, i) => text(i)).join('\n  ');
  const bindings: KernelBinding[] = [
    { name: 'w', access: 'read', type: `array<${format.element}>` },
    { name: 'x', access: 'read', type: 'array<vec4<f32>>' },
    { name: 'part', access: 'uniform', type: PART_TYPE },
    { name: 'step', access: 'uniform', type: 'vec4<u32>' },
    ...(listed ? LIST_BINDINGS : []),
    ...(bias ? [{ name: 'bias', access: 'read', type: 'array<f32>' } as const] : []),
    { name: 'out', access: 'write', type: 'array<f32>' },
  ];
  // Entry k of a list, or of the part's rows; past the end the last one again, which is not written.
  const rowOf = listed
    ? `ids[first_token * LIST_STRIDE + min(base + RU, count - 1u)]`
    : `part.x + min(base + RU, count - 1u)`;
  const value = (r: number, t: number): string => {
    const plain = `sum_${r}_${t}${bias ? ` + bias[id_${r}]` : ''}`;
    return relu ? `select(${plain}, 0.0, ${plain} <= 0.0)` : plain;
  };
  const code = `
${format.code}
${laneMemory(units, sums, shuffleLanes)}
@compute @workgroup_size(${units * LANES})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
  let lane = index % ${LANES}u;
  let unit = index / ${LANES}u;
  let first_token = group.y * ${tokens}u;
  let count = ${listed ? 'counts[first_token]' : 'part.y'};
  if (group.x * ${units * rows}u >= count) { return; }
  let base = group.x * ${units * rows}u + unit * ${rows}u;
  ${each(rows, (r) => `let id_${r} = ${rowOf.replace('RU', `${r}u`)};`)}
  ${each(rows, (r) => `let here_${r} = base + ${r}u < count${listed && cut ? ` && id_${r} - part.x < part.y` : ''};`)}
  ${each(rows, (r) => `let row_${r} = (id_${r} - part.x) * STRIDE + OFFSET;`)}
  ${each(tokens, (t) => `let x_${t} = min(first_token + ${t}u, step.x - 1u) * X_STRIDE;`)}
  ${laneProducts({ format, rows, tokens, guard: listed && cut ? (r) => `here_${r}` : undefined })}
  ${addLanes(names, shuffleLanes)}
  ${each(sums, (i) => {
    const [r, t] = [Math.floor(i / tokens), i % tokens];
    const at = `(first_token + ${t}u) * OUT_STRIDE + ${listed ? `base + ${r}u` : `id_${r}`}`;
    const inside = `lane == ${i % LANES}u && here_${r}${tokens > 1 ? ` && first_token + ${t}u < step.x` : ''}`;
    return `if (${inside}) { let at = ${at}; out[at] = ${add ? 'out[at] + ' : ''}${value(r, t)}; }`;
  })}
}`;
  return {
    name: `row-dot ${shape.format}${listed ? ' list' : ''}`,
    constants: {
      STRIDE: shape.stride / format.elementBytes,
      OFFSET: (shape.offset ?? 0) / format.elementBytes,
      X_STRIDE: (shape.xStride ?? vectorStride(shape.cols)) / 4,
      OUT_STRIDE: shape.outStride,
      ...(listed ? { LIST_STRIDE: listStride } : {}),
    },
    bindings,
    code,
    enable: laneExtensions(shuffleLanes),
  };
}

export interface RowDotBuffers {
  x: BufferPart;
  /** Uniform; its first word is the number of tokens of the step. */
  step: BufferPart;
  out: BufferPart;
  bias?: BufferPart;
  /** u32 [tokens][listStride], ascending in each token */
  ids?: BufferPart;
  /** u32 [tokens] */
  counts?: BufferPart;
}

/**
 * Prepares a row dot. @param shape of what is not in `rows`
 * @throws HybridError GPU_FAILED when a kernel does not compile
 */
export async function rowDot(
  gpu: GpuDevice,
  tuning: Tuning,
  rows: GpuRows,
  shape: Omit<RowDotShape, keyof RowShape | 'bias' | 'cut'>,
  buffers: RowDotBuffers,
): Promise<Operation> {
  const { x, step, out, bias, ids, counts } = buffers;
  const { format, cols, stride } = rows;
  const listed = shape.listStride !== undefined;
  const whole = { ...shape, format, cols, stride, bias: bias !== undefined, cut: rows.parts.length > 1 };
  const lists = listed ? [ids!, counts!] : [];
  const variant = async (tile: Tile, tokens: number) => {
    const kernel = await gpu.kernel(rowDotText(whole, tile, tokens, tuning.shuffleLanes));
    const parts = (await partUniforms(gpu, kernel.name, rows)).map(({ part, uniform }) => ({
      part,
      bindings: kernel.bind(part.buffer, x, uniform, step, ...lists, ...(bias ? [bias] : []), out),
    }));
    return (count: number): Dispatch[] =>
      parts.map(({ part, bindings }) => ({
        kernel,
        bindings,
        // A list may have as many entries as the whole matrix has rows, whichever part they are in.
        workgroups: [
          Math.ceil((listed ? Math.min(rows.rows, shape.listStride!) : part.rows) / (tile.units * tile.rows)),
          Math.ceil(count / tokens),
        ],
      }));
  };
  const single = await variant(listed ? tuning.list : tuning.single, 1);
  const batch = listed ? single : await variant(tuning.batch, tuning.batch.tokens);
  return operation(
    single(1)[0].kernel.name,
    (tokens) => (tokens === 1 ? single : batch)(tokens),
    ({ candidates }) => (listed ? candidates : rows.rows) * bytesOfRow(rows),
  );
}
