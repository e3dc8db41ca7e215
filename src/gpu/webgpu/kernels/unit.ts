/**
 * The unit of all products: 32 lanes that compute some rows with some vectors. The order in which a product is
 * added up is fixed here, for every device, tile and company:
 *
 *     lane l takes the row's chunks l, l + 32, ...
 *     in a chunk four sums, of the columns 0, 1, 2, 3 mod 4, by fused multiply-add in ascending order
 *     times the chunk's scale, added to the lane's four sums; at the end (s0 + s1) + (s2 + s3)
 *     lanes are added pairwise: l and l ^ 16, then ^ 8, ^ 4, ^ 2, ^ 1 (every lane then has the sum)
 *
 * Pairs are exchanged inside a subgroup where its lanes are known to follow each other, else in work-group memory.
 */
import type { FormatText } from './row-formats.js';

export const LANES = 32;

/** sums_R_T += row `row_R` times vector T: loops over the chunks of one lane. */
export interface ProductText {
  format: FormatText;
  rows: number;
  tokens: number;
  /** WGSL condition under which row r is read at all. @default always */
  guard?: (r: number) => string;
}

const each = (n: number, text: (i: number) => string, separator = '\n'): string =>
  Array.from({ length: n }, (_, i) => text(i)).join(separator);

/**
 * Declares `sum_R_T: f32` for every row and token, the sums of this lane alone. Before it there must be `lane`,
 * `row_R` (where row R begins, in elements of w) and `x_T` (where vector T begins, in vec4s of x).
 */
export function laneProducts({ format, rows, tokens, guard }: ProductText): string {
  const { vectors } = format;
  const xs = (t: number): string =>
    each(vectors, (i) => `let x_${t}_${i} = x[x_${t} + chunk_x(c, ${i}u)];`, '\n      ');
  const row = (r: number): string => `{
      let k = load_chunk(row_${r}, c);
      let scale = vec4<f32>(chunk_scale(row_${r}, c));
      ${each(
        tokens,
        (t) => `{
        ${tokens > 1 ? xs(t) : ''}
        var part = k.w0 * x_${t}_0;
        ${each(vectors - 1, (i) => `part = fma(k.w${i + 1}, x_${t}_${i + 1}, part);`, '\n        ')}
        part_${r}_${t} = fma(scale, part, part_${r}_${t});
      }`,
      )}
    }`;
  return `
  ${each(rows * tokens, (i) => `var part_${Math.floor(i / tokens)}_${i % tokens} = vec4<f32>();`, '\n  ')}
  for (var c = lane; c < CHUNKS; c += ${LANES}u) {
    ${tokens === 1 ? xs(0) : ''}
    ${each(rows, (r) => (guard ? `if (${guard(r)}) ${row(r)}` : row(r)))}
  }
  ${each(
    rows * tokens,
    (i) => {
      const name = `${Math.floor(i / tokens)}_${i % tokens}`;
      return `var sum_${name} = (part_${name}.x + part_${name}.y) + (part_${name}.z + part_${name}.w);`;
    },
    '\n  ',
  )}`;
}

/** Work-group memory for `addLanes` of so many sums at once; empty where subgroups do it all. */
export const laneMemory = (units: number, sums: number, shuffleLanes: number): string =>
  shuffleLanes >= LANES ? '' : `var<workgroup> exchange: array<f32, ${units * sums * LANES}>;`;

/**
 * Adds the named sums over the lanes of every unit, in place: all lanes then have them. In uniform control flow
 * only. Before it there must be `lane` and `unit`.
 */
export function addLanes(names: readonly string[], shuffleLanes: number): string {
  const at = (i: number, lane: string): string =>
    `exchange[(unit * ${names.length}u + ${i}u) * ${LANES}u + ${lane}]`;
  const memory = `
  workgroupBarrier();
  ${each(names.length, (i) => `${at(i, 'lane')} = ${names[i]};`, '\n  ')}
  for (var step = ${LANES / 2}u; step >= ${shuffleLanes}u; step /= 2u) {
    workgroupBarrier();
    if (lane < step) {
      ${each(names.length, (i) => `${at(i, 'lane')} += ${at(i, '(lane + step)')};`, '\n      ')}
    }
  }
  workgroupBarrier();
  ${each(names.length, (i) => `${names[i]} = ${at(i, `lane % ${shuffleLanes}u`)};`, '\n  ')}`;
  const shuffles: string[] = [];
  for (let step = Math.min(shuffleLanes, LANES) / 2; step >= 1; step /= 2) {
    shuffles.push(
      each(names.length, (i) => `${names[i]} += subgroupShuffleXor(${names[i]}, ${step}u);`, '\n  '),
    );
  }
  return `${shuffleLanes < LANES ? memory : ''}
  ${shuffles.join('\n  ')}`;
}

/** Extensions that `addLanes` needs. */
export const laneExtensions = (shuffleLanes: number): string[] => (shuffleLanes > 1 ? ['subgroups'] : []);
