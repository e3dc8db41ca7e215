/**
 * Rows of a table as numbers: the embedding of each row's token, or its position's row added to what stands there.
 * A table that is larger than a binding lies in parts; each writes the rows it has.
 */
import type { WeightFormat } from '../../../kernels/layout.js';
import type { KernelText } from '../kernel.js';
import { float, rowValue } from './text.js';

export interface EmbedShape {
  format: WeightFormat;
  cols: number;
  /** Bytes from row to row. */
  stride: number;
  /** Floats between rows of x. */
  outStride: number;
  /** The part's rows in the table. */
  firstRow: number;
  rows: number;
  /** Offset in the step of the numbers of the rows, and what is added to them. */
  source: number;
  shift: number;
  scale: number;
  /** Add to what stands in x. */
  add: boolean;
}

const WORKGROUP = 64;
export const embedGroups = (cols: number): number => Math.ceil(cols / WORKGROUP);

/** Bindings: step, table, x. Dispatch: embedGroups(cols), rows. */
export function embedKernel(shape: EmbedShape): KernelText {
  const code = /* wgsl */ `
${rowValue('table', shape.format, shape.cols)}
@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let number = step[SOURCE + id.y] + SHIFT;
  if (id.x >= COLS || number < FIRST || number >= FIRST + ROWS) { return; }
  x[id.y * OUT_STRIDE + id.x] ${shape.add ? '+=' : '='} SCALE * value((number - FIRST) * STRIDE, id.x);
}`;
  return {
    name: 'embed',
    constants: {
      COLS: shape.cols,
      STRIDE: shape.stride / 4,
      OUT_STRIDE: shape.outStride,
      FIRST: shape.firstRow,
      ROWS: shape.rows,
      SOURCE: shape.source,
      SHIFT: shape.shift,
      SCALE: float(shape.scale),
      WG: WORKGROUP,
    },
    bindings: [
      { name: 'step', access: 'read', type: 'array<u32>' },
      { name: 'table', access: 'read', type: 'array<u32>' },
      { name: 'x', access: 'write', type: 'array<f32>' },
    ],
    code,
  };
}
