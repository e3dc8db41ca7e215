/** Parts that kernels' texts share. */
import {
  GROUP,
  paddedCols,
  Q4_OFFSET,
  Q8_OFFSET,
  scaleOffset,
  type WeightFormat,
} from '../../../kernels/layout.js';
import type { KernelBinding } from '../kernel.js';

/** Rows' lists of neurons: row t's counts[t] entries begin at its stride. */
export const LIST_BINDINGS = [
  { name: 'ids', access: 'read', type: 'array<u32>' },
  { name: 'counts', access: 'read', type: 'array<u32>' },
] as const satisfies readonly KernelBinding[];

/** A number as a constant of type f32. */
export const float = (value: number): string => `${value}f`;

/**
 * total(value, lane): the sum over a work-group of WG threads (a power of two), the same for each of them. The
 * order of additions is fixed: the same values give the same bits in any company.
 */
export const REDUCTION = /* wgsl */ `
var<workgroup> reduced: array<f32, WG>;
fn total(value: f32, lane: u32) -> f32 {
  reduced[lane] = value;
  workgroupBarrier();
  for (var width = WG / 2u; width > 0u; width /= 2u) {
    if (lane < width) { reduced[lane] += reduced[lane + width]; }
    workgroupBarrier();
  }
  let sum = reduced[0];
  workgroupBarrier();
  return sum;
}
`;

/** largest(value, lane): likewise the largest. */
export const LARGEST = /* wgsl */ `
fn largest(value: f32, lane: u32) -> f32 {
  reduced[lane] = value;
  workgroupBarrier();
  for (var width = WG / 2u; width > 0u; width /= 2u) {
    if (lane < width) { reduced[lane] = max(reduced[lane], reduced[lane + width]); }
    workgroupBarrier();
  }
  let most = reduced[0];
  workgroupBarrier();
  return most;
}
`;

/** value(row, c): column c of the row that begins at word `row` of `buffer`, in a format of kernels/layout.ts. */
export function rowValue(buffer: string, format: WeightFormat, cols: number): string {
  if (format === 'f32') {
    return `fn value(row: u32, c: u32) -> f32 { return bitcast<f32>(${buffer}[row + c]); }`;
  }
  const padded = paddedCols(format, cols);
  const scales = scaleOffset(format, cols) / 4;
  const code =
    format === 'q8'
      ? /* wgsl */ `
  let code = i32((${buffer}[row + c / 4u] >> (8u * (c % 4u))) & 255u) - ${Q8_OFFSET};`
      : /* wgsl */ `
  let begin = c - c % ${GROUP}u;
  let half = min(${GROUP}u, ${padded}u - begin) / 2u;
  let j = c - begin;
  let byte = begin / 2u + j % half;
  let code = i32((${buffer}[row + byte / 4u] >> (8u * (byte % 4u) + select(0u, 4u, j >= half))) & 15u) - ${Q4_OFFSET};`;
  return /* wgsl */ `
fn value(row: u32, c: u32) -> f32 {${code}
  let group = c / ${GROUP}u;
  let scale = (${buffer}[row + ${scales}u + group / 2u] >> (16u * (group % 2u))) << 16u;
  return f32(code) * bitcast<f32>(scale);
}`;
}
