/** IEEE half precision in and out of Uint16Array, as onnxruntime's float16 tensors hold it. */

const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

/** Largest finite half. Larger magnitudes become infinity, as in hardware conversions. */
export const FLOAT16_MAX = 65504;

/** One number to its nearest half (ties to even). */
export function toFloat16(value: number): number {
  f32[0] = value;
  const bits = u32[0];
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00; // NaN
  if (magnitude >= 0x477ff000) return sign | 0x7c00; // rounds past 65504
  if (magnitude < 0x33000001) return sign; // rounds to zero: at most half of the smallest subnormal
  const exponent = magnitude >>> 23;
  if (exponent < 113) {
    // Subnormal half: the mantissa with its hidden bit, shifted down to units of 2^-24.
    return sign | roundShift((magnitude & 0x7fffff) | 0x800000, 126 - exponent);
  }
  // A carry out of the mantissa runs into the exponent, which is the right result.
  return sign | roundShift(magnitude - 0x38000000, 13);
}

/** value >> shift, rounded to nearest, ties to even. */
function roundShift(value: number, shift: number): number {
  const kept = value >>> shift;
  const rest = value - kept * 2 ** shift;
  const half = 2 ** (shift - 1);
  return rest > half || (rest === half && kept & 1) ? kept + 1 : kept;
}

/** One half to a number, exactly. */
export function fromFloat16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 31;
  const mantissa = bits & 1023;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  return sign * (1024 + mantissa) * 2 ** (exponent - 25);
}

/** A whole array to halves. */
export function float16Array(values: ArrayLike<number>, into = new Uint16Array(values.length)): Uint16Array {
  if (!(values instanceof Float32Array)) {
    for (let i = 0; i < values.length; i++) into[i] = toFloat16(values[i]);
    return into;
  }
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < bits.length; i++) {
    const word = bits[i];
    const magnitude = word & 0x7fffffff;
    // Normal halves, nearly all there are: add half a unit (less one where the last bit is even), then cut.
    into[i] =
      magnitude >= 0x38800000 && magnitude < 0x477ff000
        ? ((word >>> 16) & 0x8000) | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13)
        : toFloat16(values[i]);
  }
  return into;
}

/** Halves back to floats. */
export function fromFloat16Array(values: Uint16Array, into = new Float32Array(values.length)): Float32Array {
  table ??= Float32Array.from({ length: 65536 }, (_, bits) => fromFloat16(bits));
  for (let i = 0; i < values.length; i++) into[i] = table[values[i]];
  return into;
}

/** Every half there is, 256 KiB: made when first needed. */
let table: Float32Array | undefined;
