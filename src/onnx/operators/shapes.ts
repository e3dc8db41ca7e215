/** What shapes become: broadcasting, and the errors of operators whose inputs do not fit. */
import { HybridError } from '../../errors.js';

export type Sizes = readonly number[];

export const elements = (shape: Sizes): number => shape.reduce((product, n) => product * n, 1);
export const sameShape = (a: Sizes, b: Sizes): boolean =>
  a.length === b.length && a.every((n, i) => n === b[i]);

/** Shape of an elementwise result: sizes are aligned at the end, 1 stretches. */
export function broadcast(operator: string, a: Sizes, b: Sizes): number[] {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, i) => {
    const x = a[i - rank + a.length] ?? 1;
    const y = b[i - rank + b.length] ?? 1;
    if (x !== y && x !== 1 && y !== 1) throw misfit(operator, a, b);
    return Math.max(x, y);
  });
}

/** Axis counted from the front; negative ones count from the end. */
export const axisOf = (axis: number, rank: number): number => (axis < 0 ? axis + rank : axis);

export const misfit = (operator: string, ...shapes: Sizes[]): HybridError =>
  new HybridError(
    'ONNX_FAILED',
    `${operator}: shapes ${shapes.map((shape) => `[${shape.join(', ')}]`).join(' and ')} do not fit together`,
    { hint: 'This is a defect of hybrid-infer: please report it.' },
  );
