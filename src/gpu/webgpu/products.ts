/** Matrix products of a step (slow form). */
import type { GpuDevice } from './device.js';
import { rowValue } from './kernels/text.js';
import { piece, type Piece, type StepSize } from './piece.js';
import { vectorStride, type GpuRows } from './rows.js';
import type { WeightFormat } from '../../kernels/layout.js';

export class Products {
  constructor(private readonly gpu: GpuDevice) {}

  async product(
    w: GpuRows,
    x: GPUBuffer,
    out: GPUBuffer,
    outStride: number,
    rows: (size: StepSize) => number = (size) => size.rows,
    offset = 0,
  ): Promise<Piece> {
    const pieces: Piece[] = [];
    for (const part of w.parts) {
      const code = `${rowValue('w', w.format as WeightFormat, w.cols)}
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) g: vec3u) {
  if (g.x >= ROWS) { return; }
  var sum = 0.0;
  for (var c = 0u; c < COLS; c++) { sum += value(g.x * STRIDE + OFFSET, c) * x[g.y * XS + c]; }
  out[g.y * OS + FIRST + g.x] = sum;
}`;
      const text = {
        name: 'slow dot',
        constants: {
          ROWS: part.rows,
          FIRST: part.first,
          COLS: w.cols,
          STRIDE: w.stride / 4,
          XS: vectorStride(w.cols),
          OS: outStride,
          OFFSET: offset / 4,
        },
        bindings: [
          { name: 'w', access: 'read', type: 'array<u32>' },
          { name: 'x', access: 'read', type: 'array<f32>' },
          { name: 'out', access: 'write', type: 'array<f32>' },
        ] as const,
        code,
      };
      pieces.push(
        await piece(this.gpu, text, [part.buffer, x, out], (size) => [Math.ceil(part.rows / 64), rows(size)]),
      );
    }
    return (size) => pieces.flatMap((p) => p(size));
  }

  /** dense relu-like FFN of one part */
  async ffn(
    gate: GpuRows,
    ffn: GpuRows,
    downOffset: number,
    gated: boolean,
    x: GPUBuffer,
    gates: GPUBuffer,
    ups: GPUBuffer,
    out: GPUBuffer,
    outStride: number,
    threshold: number,
  ): Promise<Piece[]> {
    const n = gate.rows;
    const list = [await this.product(gate, x, gates, n)];
    if (gated) list.push(await this.product(ffn, x, ups, n, undefined, 0));
    const part = ffn.parts[0];
    const text = {
      name: 'slow down',
      constants: {
        N: n,
        COLS: ffn.cols,
        STRIDE: ffn.stride / 4,
        OS: outStride,
        OFFSET: downOffset / 4,
        T: `${threshold}f`,
      },
      bindings: [
        { name: 'w', access: 'read', type: 'array<u32>' },
        { name: 'gates', access: 'read', type: 'array<f32>' },
        { name: 'ups', access: 'read', type: 'array<f32>' },
        { name: 'out', access: 'write', type: 'array<f32>' },
      ] as const,
      code: `${rowValue('w', ffn.format as WeightFormat, ffn.cols)}
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) g: vec3u) {
  if (g.x >= COLS) { return; }
  var sum = 0.0;
  for (var n = 0u; n < N; n++) {
    let a = gates[g.y * N + n];
    if (a > T) { sum += a * ${gated ? 'ups[g.y * N + n]' : '1.0'} * value(n * STRIDE + OFFSET, g.x); }
  }
  out[g.y * OS + g.x] = sum;
}`,
    };
    list.push(
      await piece(this.gpu, text, [part.buffer, gates, ups, out], (size) => [
        Math.ceil(ffn.cols / 64),
        size.rows,
      ]),
    );
    return list;
  }
}
