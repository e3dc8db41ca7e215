// S3 for f32 rows: out += sum of coef * row, four rows a pass so that `out` is loaded and stored a quarter as often.
// Columns begin..end, begin a multiple of 4.
import { madd } from './common';

export function f32SumBlock(w0: u32, w1: u32, w2: u32, w3: u32, coefs: v128, out: u32, begin: u32, end: u32): void {
  const c0 = v128.shuffle<f32>(coefs, coefs, 0, 0, 0, 0);
  const c1 = v128.shuffle<f32>(coefs, coefs, 1, 1, 1, 1);
  const c2 = v128.shuffle<f32>(coefs, coefs, 2, 2, 2, 2);
  const c3 = v128.shuffle<f32>(coefs, coefs, 3, 3, 3, 3);
  const wide = (end & ~3) * 4;
  let at = begin * 4;
  for (; at < wide; at += 16) {
    let sum = v128.load(out + at);
    sum = madd(c0, v128.load(w0 + at), sum);
    sum = madd(c1, v128.load(w1 + at), sum);
    sum = madd(c2, v128.load(w2 + at), sum);
    sum = madd(c3, v128.load(w3 + at), sum);
    v128.store(out + at, sum);
  }
  for (; at < end * 4; at += 4) {
    let sum = v128.load32_zero(out + at);
    sum = madd(c0, v128.load32_zero(w0 + at), sum);
    sum = madd(c1, v128.load32_zero(w1 + at), sum);
    sum = madd(c2, v128.load32_zero(w2 + at), sum);
    sum = madd(c3, v128.load32_zero(w3 + at), sum);
    f32.store(out + at, f32x4.extract_lane(sum, 0));
  }
}
