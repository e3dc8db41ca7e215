/** Euclidean lengths of rows, for cuts that weigh contributions: one thread a row, when a model is loaded. */
import type { WeightFormat } from '../../../kernels/layout.js';
import type { KernelText } from '../kernel.js';
import { rowValue } from './text.js';

export interface LengthsShape {
  format: WeightFormat;
  cols: number;
  /** Bytes from record to record, and to the row in it. */
  stride: number;
  offset: number;
  firstRow: number;
  rows: number;
}

/** Bindings: records of a part, out: f32 of all rows. Dispatch: rows / 64. */
export function lengthsKernel({ format, cols, stride, offset, firstRow, rows }: LengthsShape): KernelText {
  return {
    name: 'lengths',
    constants: { COLS: cols, STRIDE: stride / 4, OFFSET: offset / 4, FIRST: firstRow, ROWS: rows, WG: 64 },
    bindings: [
      { name: 'records', access: 'read', type: 'array<u32>' },
      { name: 'out', access: 'write', type: 'array<f32>' },
    ],
    code: /* wgsl */ `
${rowValue('records', format, cols)}
@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= ROWS) { return; }
  var sum = 0.0;
  for (var c = 0u; c < COLS; c++) {
    let v = value(id.x * STRIDE + OFFSET, c);
    sum += v * v;
  }
  out[FIRST + id.x] = sqrt(sum);
}`,
  };
}
