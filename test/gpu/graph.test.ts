/** Every GPU graph against the plain formulas over the dequantised weights of the reference kernels. */
import { describe, expect, it } from 'vitest';

import { buildUnit, planUnits, type GpuPlacement, type GpuUnit } from '../../src/gpu/hot-ffn.js';
import type { ActivationKind } from '../../src/kernels/kernels.js';
import { WEIGHT_FORMATS, type WeightFormat } from '../../src/kernels/layout.js';
import { f32Tensor, OnnxSession } from '../../src/onnx/session.js';
import type { OnnxWeights } from '../../src/profiler/gpu-bytes.js';
import { testProviders } from './adapter.js';
import { memoryPack, randomFloats, type MemoryPack } from './memory-pack.js';

const providers = await testProviders();

/** Largest difference allowed, relative to the largest output: rounding of the weights in their GPU form. */
const TOLERANCE: Record<OnnxWeights, number> = { packed: 1e-2, f16: 5e-3, f32: 1e-5 };
/** QKV, O and lm_head keep the pack's codes exactly: only the order of sums differs. */
const EXACT_TOLERANCE = 2e-5;

const TOKENS = 3;

/** GELU is refused (unsupportedFfn). */
const sigma: Record<Exclude<ActivationKind, `gelu${string}`>, (g: number, t: number) => number> = {
  relu: (g) => Math.max(g, 0),
  drelu: (g) => Math.max(g, 0),
  fatrelu: (g, t) => (g > t ? g : 0),
  relu2: (g) => Math.max(g, 0) ** 2,
  silu: (g) => g / (1 + Math.exp(-g)),
};

function multiply(x: Float32Array, w: Float32Array, outputs: number, inputs: number): Float64Array {
  const y = new Float64Array(TOKENS * outputs);
  for (let t = 0; t < TOKENS; t++)
    for (let r = 0; r < outputs; r++)
      for (let c = 0; c < inputs; c++) y[t * outputs + r] += w[r * inputs + c] * x[t * inputs + c];
  return y;
}

function expectedFfn(pack: MemoryPack, x: Float32Array, hot: Uint32Array): Float64Array {
  const { hiddenSize: d, intermediateSize: nFf, activation } = pack.header.config;
  const gate = multiply(x, pack.floats.gate, nFf, d);
  const up = multiply(x, pack.floats.up, nFf, d);
  const y = new Float64Array(TOKENS * d);
  for (let t = 0; t < TOKENS; t++) {
    for (const n of hot) {
      const u = up[t * nFf + n];
      const x1 =
        sigma[activation.kind as keyof typeof sigma](gate[t * nFf + n], activation.threshold) *
        (activation.kind === 'drelu' ? Math.max(u, 0) : u);
      for (let c = 0; c < d; c++) y[t * d + c] += x1 * pack.floats.down[n * d + c];
    }
  }
  return y;
}

async function run(pack: MemoryPack, unit: GpuUnit, weights: OnnxWeights, provider: string, x: Float32Array) {
  const { graph, inputs, outputs } = buildUnit(pack.read, pack.header, unit, weights);
  expect(graph.initializerBytes, 'bytes as planned').toBe(unit.bytes + biasBytes(pack, unit));
  const session = await OnnxSession.create(graph.build(), { provider, deviceOnly: true });
  const { y } = await session.run({ x: f32Tensor(x, [TOKENS, inputs]) });
  await session.release();
  const rows = new Float32Array(TOKENS * unit.outputs);
  for (let t = 0; t < TOKENS; t++) {
    rows.set((y.data as Float32Array).subarray(t * outputs, t * outputs + unit.outputs), t * unit.outputs);
  }
  return rows;
}

/** Biases are not counted in a plan: a few KB. */
const biasBytes = (pack: MemoryPack, unit: GpuUnit) => (unit.kind === 'qkv' ? pack.qkvBias.byteLength : 0);

function largestDifference(actual: Float32Array, expected: Float64Array): number {
  let [difference, scale] = [0, 0];
  actual.forEach((value, i) => {
    difference = Math.max(difference, Math.abs(value - expected[i]));
    scale = Math.max(scale, Math.abs(expected[i]));
  });
  return difference / scale;
}

const HOT = Uint32Array.from({ length: 64 }, (_, i) => 3 * i);
const placement = (weights: OnnxWeights): GpuPlacement => ({
  weights,
  lmHead: true,
  layers: [{ qkv: true, o: true, hotNeurons: HOT }],
});

describe.each(providers)('$provider', ({ provider, reason }) => {
  if (reason !== null) {
    it.skip(`skipped: ${reason}`, () => {});
    return;
  }

  describe.each(WEIGHT_FORMATS)('%s pack', (quant) => {
    const pack = memoryPack(quant, { kind: 'relu', threshold: 0 });
    const x = randomFloats(TOKENS * pack.header.config.hiddenSize, 99);
    const units = planUnits(pack.header, placement('packed'));

    it('projects q, k, v with bias', async () => {
      const { hiddenSize: d } = pack.header.config;
      const expected = multiply(x, pack.floats.qkv, 3 * d, d);
      expected.forEach((_, i) => (expected[i] += pack.qkvBias[i % (3 * d)]));
      const y = await run(pack, units[0], 'packed', provider, x);
      expect(largestDifference(y, expected)).toBeLessThan(EXACT_TOLERANCE);
    });

    it('projects the attention output', async () => {
      const { hiddenSize: d } = pack.header.config;
      const y = await run(pack, units[1], 'packed', provider, x);
      expect(largestDifference(y, multiply(x, pack.floats.o, d, d))).toBeLessThan(EXACT_TOLERANCE);
    });

    it('computes logits for a vocabulary that is not a multiple of anything', async () => {
      const { hiddenSize: d, vocabSize } = pack.header.config;
      const y = await run(pack, units[3], 'packed', provider, x);
      expect(largestDifference(y, multiply(x, pack.floats.lmHead, vocabSize, d))).toBeLessThan(
        EXACT_TOLERANCE,
      );
    });
  });

  const cases: { kind: ActivationKind; threshold: number }[] = [
    { kind: 'relu', threshold: 0 },
    { kind: 'fatrelu', threshold: 1.5 },
    { kind: 'drelu', threshold: 0 },
    { kind: 'relu2', threshold: 0 },
    { kind: 'silu', threshold: 0 },
  ];
  it.each(cases)('runs the hot FFN with $kind', async (activation) => {
    const pack = memoryPack('q4', activation);
    const x = randomFloats(TOKENS * pack.header.config.hiddenSize, 99);
    const unit = planUnits(pack.header, placement('packed'))[2];
    const y = await run(pack, unit, 'packed', provider, x);
    expect(largestDifference(y, expectedFfn(pack, x, HOT))).toBeLessThan(TOLERANCE.packed);
  });

  const forms: { quant: WeightFormat; weights: OnnxWeights; d: number }[] = [
    { quant: 'q8', weights: 'packed', d: 128 },
    { quant: 'f32', weights: 'f32', d: 128 },
    { quant: 'q4', weights: 'f32', d: 128 },
    { quant: 'q4', weights: 'f16', d: 128 },
    { quant: 'q4', weights: 'packed', d: 192 },
    { quant: 'q4', weights: 'packed', d: 224 },
  ];
  it.for(forms)('keeps a $quant pack of width $d as $weights', async ({ quant, weights, d }, { skip }) => {
    const pack = memoryPack(quant, { kind: 'relu', threshold: 0 }, { d });
    const x = randomFloats(TOKENS * d, 5);
    const unit = planUnits(pack.header, placement(weights))[2];
    const y = await run(pack, unit, weights, provider, x).catch((error: Error) => {
      if (/does not support it/.test(error.message))
        skip(`this adapter has no half precision: ${error.message}`);
      throw error;
    });
    expect(largestDifference(y, expectedFfn(pack, x, HOT))).toBeLessThan(TOLERANCE[weights]);
  });
});
