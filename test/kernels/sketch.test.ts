/** Sketch rows: the reference against plain sums, the other backends against the reference. */
import { describe, expect, it } from 'vitest';
import {
  alignUp,
  bf16RoundUp,
  bf16ToNumber,
  GROUP,
  q8aLayout,
  sketchRowBytes,
} from '../../src/kernels/layout.js';
import type { Kernels } from '../../src/kernels/kernels.js';
import { createNativeKernels, nativeStatus } from '../../src/kernels/native/loader.js';
import { createReferenceKernels } from '../../src/kernels/reference.js';
import { encodeSketchRow } from '../../src/kernels/reference/sketch-rows.js';
import { compileWasmModule, createWasmKernels } from '../../src/kernels/wasm/loader.js';
import { random } from '../helpers/tiny-models.js';

const COLS = [32, 64, 96, 128, 160, 256, 288, 1536, 4096];
const X = 64;
const XQ = 32_768;
const W = 65_536;
const OUT = 262_144;
const PAGES = 8;
const ROWS = 7;

const memory = (): WebAssembly.Memory =>
  new WebAssembly.Memory({ initial: PAGES, maximum: PAGES, shared: true });

/** Random codes, scales and activations; returns the dot products computed from their values. */
function fill(m: WebAssembly.Memory, bits: 1 | 2 | 3, cols: number, kernels: Kernels): number[] {
  const next = random(cols * 10 + bits);
  const x = new Float32Array(m.buffer, X, cols).map(() => 2 * next() - 1);
  new Float32Array(m.buffer, X, cols).set(x);
  kernels.quantize(X, XQ, cols);
  const { scales: at } = q8aLayout(cols);
  const codesOfX = new Int8Array(m.buffer, XQ, alignUp(cols, 32));
  const scalesOfX = new Float32Array(m.buffer, XQ + at, Math.ceil(cols / GROUP));
  const stride = sketchRowBytes(bits, cols);
  return Array.from({ length: ROWS }, (_, r) => {
    const codes = Array.from({ length: cols }, () => Math.floor(next() * 2 ** bits));
    const scales = Array.from(scalesOfX, () => bf16RoundUp(0.01 + next()));
    encodeSketchRow(bits, codes, scales, new Uint8Array(m.buffer, W + r * stride, stride));
    return codes.reduce((sum, u, c) => {
      const g = Math.floor(c / GROUP);
      return sum + (2 * u - (2 ** bits - 1)) * bf16ToNumber(scales[g]) * codesOfX[c] * scalesOfX[g];
    }, 0);
  });
}

function check(make: (m: WebAssembly.Memory) => Kernels): void {
  let worst = 0;
  for (const bits of [1, 2, 3] as const) {
    for (const cols of COLS) {
      const m = memory();
      const kernels = make(m);
      const expected = fill(m, bits, cols, kernels);
      const out = new Float32Array(m.buffer, OUT, ROWS + 1).fill(77);
      kernels.dot(`q${bits}`, W, sketchRowBytes(bits, cols), ROWS, XQ, 0, 1, OUT, ROWS, cols);
      expected.forEach((value, r) => {
        worst = Math.max(worst, Math.abs(out[r] - value) / Math.sqrt(cols));
      });
      expect(out[ROWS]).toBe(77);
    }
  }
  // f32 sums over up to 32 groups of products of order 1.
  expect(worst).toBeLessThan(2e-5);
}

const native = nativeStatus();

describe('dot with sketch rows', () => {
  it('equals plain sums in the reference kernels', () => check(createReferenceKernels));
  for (const variant of ['relaxed', 'simd'] as const) {
    it(`equals plain sums in WASM (${variant})`, () => {
      const compiled = compileWasmModule(variant);
      check((m) => createWasmKernels(m, compiled));
    });
  }
  for (const variant of native.variants ?? []) {
    it(`equals plain sums natively (${variant})`, () => check((m) => createNativeKernels(m, variant)));
  }
  if (!native.available) it.skip(`equals plain sums natively (skipped: ${native.reason})`);
});
