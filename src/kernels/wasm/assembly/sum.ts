// S3: out += sum of coefficient * row, over tokens' lists of rows.
import { F32, load4, padded, Q8 } from './common';
import { blockAt, firstRow, lastRow } from './lists';
import { f32SumBlock } from './sum-f32';
import { q4SumBlock, q8SumBlock } from './sum-quantised';

/** Quantised rows summed as one block of integers (sum-quantised.ts), counted from the beginning of a list. */
const BLOCK: u32 = 16;

/**
 * Many tokens: a tile of columns (a multiple of GROUP) and of rows. Of q4 rows it is 256 KB, and that of 64
 * tokens' outputs 512 KB: both stay in L2 while the tokens take their turns.
 */
const TILE_COLUMNS: u32 = 2048;
const TILE_ROWS: u32 = 256;

/** Entries begin..end of a list, columns c0..cEnd of `out`. */
function sumPart(
  format: i32,
  w: u32,
  stride: u32,
  ids: u32,
  begin: u32,
  end: u32,
  coef: u32,
  out: u32,
  cols: u32,
  c0: u32,
  cEnd: u32,
): void {
  if (format == F32) {
    const last = ids + (end - 1) * 4;
    for (let k = begin; k < end; k += 4) {
      const at = ids + k * 4;
      f32SumBlock(
        w + load<u32>(at) * stride,
        w + load<u32>(min(at + 4, last)) * stride,
        w + load<u32>(min(at + 8, last)) * stride,
        w + load<u32>(min(at + 12, last)) * stride,
        load4(coef, k, end), // 0 for the repeated rows
        out,
        c0,
        cEnd,
      );
    }
    return;
  }
  for (let k = begin; k < end; k += BLOCK) {
    const rows = min(BLOCK, end - k);
    if (format == Q8) q8SumBlock(w, stride, ids + k * 4, rows, coef + k * 4, out, cols, c0, cEnd);
    else q4SumBlock(w, stride, ids + k * 4, rows, coef + k * 4, out, cols, c0, cEnd);
  }
}

export function sumLists(
  format: i32,
  w: u32,
  stride: u32,
  offsets: u32,
  ids: u32,
  nTokens: u32,
  coef: u32,
  out: u32,
  outStride: u32,
  cols: u32,
): void {
  const n = padded(format, cols);
  if (nTokens == 1) {
    sumPart(format, w, stride, ids, load<u32>(offsets), load<u32>(offsets, 4), coef, out, cols, 0, n);
    return;
  }
  const endRow = lastRow(offsets, ids, nTokens);
  for (let c0: u32 = 0; c0 < n; c0 += TILE_COLUMNS) {
    const cEnd = min(c0 + TILE_COLUMNS, n);
    for (let row = firstRow(offsets, ids, nTokens); row < endRow; row += TILE_ROWS) {
      for (let t: u32 = 0; t < nTokens; t++) {
        const begin = blockAt(offsets + t * 4, ids, row, BLOCK);
        const end = blockAt(offsets + t * 4, ids, row + TILE_ROWS, BLOCK);
        sumPart(format, w, stride, ids, begin, end, coef, out + t * outStride * 4, cols, c0, cEnd);
      }
    }
  }
}
