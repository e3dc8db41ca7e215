// S1/S2: which rows meet which vectors. Four products are in flight at a time; where fewer are left, the
// last one is computed again in the unused lanes. A product's additions do not depend on its neighbours, nor on
// whether four rows meet a vector or one row meets four: the bits are always the same.
import { F32, padded, Q8, storeLanes } from './common';
import { f32Rows4 } from './dot-f32';
import { q4Rows4, q4Tokens4, readAheadBytes } from './dot-q4';
import { q8Rows4, q8Tokens4 } from './dot-q8';
import { sketchBits, sketchTokens4, sketchRow } from './dot-sketch';
import { blockAt, firstRow, lastRow } from './lists';

/** Rows of W that are reused against all tokens of a batch before the next ones: they stay in L1. */
const BATCH_ROWS: u32 = 8;

/** Many tokens go through listed rows in ranges of this many bytes, which stay in L2 for the next token. */
const TILE_BYTES: u32 = 256 << 10;

// @ts-ignore: decorator
@inline
function rows4(format: i32, w0: u32, w1: u32, w2: u32, w3: u32, x: u32, cols: u32, ahead: u32): v128 {
  if (format == F32) return f32Rows4(w0, w1, w2, w3, x, cols);
  if (format == Q8) return q8Rows4(w0, w1, w2, w3, x, cols);
  if (format > Q8 + 1) return sketchRows4(format, w0, w1, w2, w3, x, cols);
  return q4Rows4(w0, w1, w2, w3, x, cols, ahead);
}

// @ts-ignore: decorator
@inline
function tokens4(format: i32, w: u32, x0: u32, x1: u32, x2: u32, x3: u32, cols: u32): v128 {
  if (format == F32) return f32Rows4(x0, x1, x2, x3, w, cols);
  if (format == Q8) return q8Tokens4(w, x0, x1, x2, x3, cols);
  if (format > Q8 + 1) return sketchTokens4(sketchBits(format), w, x0, x1, x2, x3, cols);
  return q4Tokens4(w, x0, x1, x2, x3, cols);
}

/** A row that repeats the one before it is computed once: the rest of a list that ends. */
function sketchRows4(format: i32, w0: u32, w1: u32, w2: u32, w3: u32, x: u32, cols: u32): v128 {
  const bits = sketchBits(format);
  const r0 = sketchRow(bits, w0, x, cols);
  const r1 = w1 == w0 ? r0 : sketchRow(bits, w1, x, cols);
  const r2 = w2 == w1 ? r1 : sketchRow(bits, w2, x, cols);
  const r3 = w3 == w2 ? r2 : sketchRow(bits, w3, x, cols);
  let v = f32x4.splat(r0);
  v = f32x4.replace_lane(v, 1, r1);
  v = f32x4.replace_lane(v, 2, r2);
  return f32x4.replace_lane(v, 3, r3);
}

/** out[r] = W[r] . x */
function dotToken(format: i32, w: u32, stride: u32, rows: u32, x: u32, out: u32, cols: u32): void {
  const aheadBytes = readAheadBytes(cols);
  for (let r: u32 = 0; r < rows; r += 4) {
    const last = rows - 1 - r;
    const at = w + r * stride;
    // Never past the last row: the arena may end there.
    const ahead = last > 3 && (last - 3) * stride >= aheadBytes ? at + 4 * stride : 0;
    const sums = rows4(
      format,
      at,
      at + min(1, last) * stride,
      at + min(2, last) * stride,
      at + min(3, last) * stride,
      x,
      cols,
      ahead,
    );
    storeLanes(out + r * 4, sums, rows - r);
  }
}

export function dot(
  format: i32,
  w: u32,
  stride: u32,
  rows: u32,
  x: u32,
  xStride: u32,
  nTokens: u32,
  out: u32,
  outStride: u32,
  cols: u32,
): void {
  if (nTokens == 1) {
    dotToken(format, w, stride, rows, x, out, cols);
    return;
  }
  const outBytes = outStride * 4;
  for (let begin: u32 = 0; begin < rows; begin += BATCH_ROWS) {
    const end = min(begin + BATCH_ROWS, rows);
    for (let t: u32 = 0; t < nTokens; t += 4) {
      const last = nTokens - 1 - t;
      const x0 = x + t * xStride;
      const x1 = x0 + min(1, last) * xStride;
      const x2 = x0 + min(2, last) * xStride;
      const x3 = x0 + min(3, last) * xStride;
      for (let r = begin; r < end; r++) {
        const sums = tokens4(format, w + r * stride, x0, x1, x2, x3, cols);
        const to = out + t * outBytes + r * 4;
        f32.store(to, f32x4.extract_lane(sums, 0));
        if (last > 0) f32.store(to + outBytes, f32x4.extract_lane(sums, 1));
        if (last > 1) f32.store(to + outBytes * 2, f32x4.extract_lane(sums, 2));
        if (last > 2) f32.store(to + outBytes * 3, f32x4.extract_lane(sums, 3));
      }
    }
  }
}

/** out[k] = W[ids[k]] . x for k in begin..end. */
function dotList(
  format: i32,
  w: u32,
  stride: u32,
  ids: u32,
  begin: u32,
  end: u32,
  x: u32,
  out: u32,
  cols: u32,
): void {
  for (let k = begin; k < end; k += 4) {
    const last = end - 1 - k;
    const at = ids + k * 4;
    const sums = rows4(
      format,
      w + load<u32>(at) * stride,
      w + load<u32>(at + min(1, last) * 4) * stride,
      w + load<u32>(at + min(2, last) * 4) * stride,
      w + load<u32>(at + min(3, last) * 4) * stride,
      x,
      cols,
      0,
    );
    storeLanes(out + k * 4, sums, end - k);
  }
}

export function dotLists(
  format: i32,
  w: u32,
  stride: u32,
  offsets: u32,
  ids: u32,
  nTokens: u32,
  x: u32,
  xStride: u32,
  out: u32,
  cols: u32,
): void {
  if (nTokens == 1) {
    dotList(format, w, stride, ids, load<u32>(offsets), load<u32>(offsets, 4), x, out, cols);
    return;
  }
  const tileRows = TILE_BYTES / max(1, format == F32 ? cols * 4 : padded(format, cols)) + 1;
  const endRow = lastRow(offsets, ids, nTokens);
  for (let row = firstRow(offsets, ids, nTokens); row < endRow; row += tileRows) {
    for (let t: u32 = 0; t < nTokens; t++) {
      const begin = blockAt(offsets + t * 4, ids, row, 1);
      const end = blockAt(offsets + t * 4, ids, row + tileRows, 1);
      dotList(format, w, stride, ids, begin, end, x + t * xStride, out, cols);
    }
  }
}
