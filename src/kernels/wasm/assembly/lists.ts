// Tokens' lists of rows, compressed by token: token t's rows are ids[k] for k in offsets[t] .. offsets[t + 1] - 1,
// ascending. Many tokens go through them in ranges of rows.

/** The first row that any token lists; 2^32 - 1 where there is none. */
export function firstRow(offsets: u32, ids: u32, nTokens: u32): u32 {
  let row: u32 = u32.MAX_VALUE;
  for (let t: u32 = 0; t < nTokens; t++) {
    const begin = load<u32>(offsets + t * 4);
    if (begin < load<u32>(offsets + t * 4, 4)) row = min(row, load<u32>(ids + begin * 4));
  }
  return row;
}

/** One past the last row that any token lists. */
export function lastRow(offsets: u32, ids: u32, nTokens: u32): u32 {
  let row: u32 = 0;
  for (let t: u32 = 0; t < nTokens; t++) {
    const end = load<u32>(offsets + t * 4, 4);
    if (load<u32>(offsets + t * 4) < end) row = max(row, load<u32>(ids + (end - 1) * 4) + 1);
  }
  return row;
}

/**
 * Of a token's list (`offset`: where its offset stands) the first block that begins at or behind row `id`: blocks
 * are `block` entries, counted from the beginning of the list.
 */
export function blockAt(offset: u32, ids: u32, id: u32, block: u32): u32 {
  const begin = load<u32>(offset);
  const end = load<u32>(offset, 4);
  let low = begin;
  let high = end;
  while (low < high) {
    const middle = low + (high - low) / 2;
    if (load<u32>(ids + middle * 4) < id) low = middle + 1;
    else high = middle;
  }
  return min(begin + ((low - begin + block - 1) / block) * block, end);
}
