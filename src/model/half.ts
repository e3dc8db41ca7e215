/** IEEE half precision as numbers. */

/** Bits -> f32 value for every half: 256 KiB once, about twice as fast as computing it each time. */
export const halfValues = (() => {
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const exponent = (bits >>> 10) & 31;
    const mantissa = bits & 1023;
    const size =
      exponent === 31
        ? mantissa
          ? NaN
          : Infinity
        : exponent === 0
          ? mantissa * 2 ** -24
          : (1 + mantissa / 1024) * 2 ** (exponent - 15);
    table[bits] = bits & 0x8000 ? -size : size;
  }
  return table;
})();

export const halfToNumber = (bits: number): number => halfValues[bits];
