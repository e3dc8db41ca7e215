/**
 * Rounding with error feedback, for many rows at once. Rows stand side by side: every array here is
 * [column][row], so that the rows of one column are neighbours.
 *
 * With covariance C = L L^T the expected squared error of a row's score is |e L|^2 for the rounding errors e;
 * its j-th term is e_j L_jj + sum_{i>j} e_i L_ij. Going from the last column to the first, each column is
 * rounded from the value that would make its own term zero. What the columns of later blocks ask of a block
 * is one product; inside the block columns follow one another.
 */
import { belowOf, BLOCK, widthOf, type Triangle } from './cholesky.js';
import type { Matrices } from './matrix.js';

export interface Rounded {
  /** Odd levels -max..max, [d][rows], columns in processing order. */
  levels: Int8Array;
  /** Expected squared error of each row's score, [rows]. */
  loss: Float64Array;
}

/**
 * @param w f32 [d][rows], columns in processing order
 * @param scale f32 [groups][rows]: half the distance of two levels
 * @param groupOf [d] group of each column
 * @param max largest level
 */
export async function roundRows(
  w: Float32Array,
  scale: Float32Array,
  groupOf: Uint16Array,
  max: number,
  triangle: Triangle,
  matrices: Matrices,
): Promise<Rounded> {
  const d = triangle.n;
  const rows = w.length / d;
  const levels = new Int8Array(d * rows);
  const loss = new Float64Array(rows);
  const error = new Float32Array(d * rows);
  const halves = scale.map((s) => (s === 0 ? 0 : 0.5 / s));
  for (let p = triangle.panels.length - 1; p >= 0; p--) {
    const first = p * BLOCK;
    const width = widthOf(d, p);
    const end = first + width;
    const carried =
      end < d
        ? await matrices.transposedTimes(belowOf(triangle, p), error.subarray(end * rows), d - end)
        : new Float32Array(width * rows);
    const panel = triangle.panels[p];
    for (let j = width - 1; j >= 0; j--) {
      const pivot = panel[j * width + j];
      const at = j * rows;
      addBlockErrors(carried, at, error, first * rows, panel, width, j, rows);
      const column = (first + j) * rows;
      const group = groupOf[first + j] * rows;
      const back = 1 / pivot;
      for (let r = 0; r < rows; r++) {
        const wanted = w[column + r] - carried[at + r] * back;
        const odd = 2 * Math.floor(wanted * halves[group + r]) + 1;
        const level = odd > max ? max : odd < -max ? -max : odd;
        const value = level * scale[group + r];
        const own = (value - wanted) * pivot;
        levels[column + r] = level;
        error[column + r] = value - w[column + r];
        loss[r] += own * own;
      }
    }
  }
  return { levels, loss };
}

/** carried[j] += sum of L_ij e_i over the block's columns i > j. Four at a time: a quarter of the stores. */
function addBlockErrors(
  carried: Float32Array,
  at: number,
  error: Float32Array,
  first: number,
  panel: Float32Array,
  width: number,
  j: number,
  rows: number,
): void {
  let i = j + 1;
  for (; i + 3 < width; i += 4) {
    const [f0, f1] = [panel[i * width + j], panel[(i + 1) * width + j]];
    const [f2, f3] = [panel[(i + 2) * width + j], panel[(i + 3) * width + j]];
    const e0 = first + i * rows;
    const [e1, e2, e3] = [e0 + rows, e0 + 2 * rows, e0 + 3 * rows];
    for (let r = 0; r < rows; r++) {
      carried[at + r] += f0 * error[e0 + r] + f1 * error[e1 + r] + f2 * error[e2 + r] + f3 * error[e3 + r];
    }
  }
  for (; i < width; i++) {
    const f = panel[i * width + j];
    const e = first + i * rows;
    for (let r = 0; r < rows; r++) carried[at + r] += f * error[e + r];
  }
}
