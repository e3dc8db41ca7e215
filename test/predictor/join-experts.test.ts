/** Predictors of experts as one of their layer, and what few tokens of an expert lean on. */
import { describe, expect, it } from 'vitest';
import { allCandidates, joinAttempts, joinPredictors } from '../../src/predictor/join-experts.js';
import { createMatrices } from '../../src/predictor/matrix.js';
import { inputMoments, leaningMoments } from '../../src/predictor/moments.js';
import { predictorRowBytes, unpackRows } from '../../src/predictor/rows.js';
import type { Attempt } from '../../src/predictor/screen.js';
import { roundingBasis, sketchRows } from '../../src/predictor/sketch.js';
import type { LayerPredictor } from '../../src/predictor/types.js';
import { syntheticLayer } from './synthetic-layer.js';

const D = 32;
const SIZE = 4;

/** Scores two neurons and always has one. */
const expert = (fill: number): LayerPredictor => {
  const stride = predictorRowBytes('q2', D);
  return {
    ...allCandidates(5, 0, 'q2', D),
    fc2: { format: 'q2', rows: 2, cols: D, stride, data: new Uint8Array(2 * stride).fill(fill) },
    scoredIds: Uint32Array.of(0, 3),
    cut: Float32Array.of(fill, fill + 0.5),
    cutScale: Float32Array.of(1, 2),
    always: Uint32Array.of(1),
  };
};

describe('predictors of experts', () => {
  it('are one, with every expert’s rows at its own neurons', () => {
    const joined = joinPredictors([expert(7), allCandidates(5, SIZE, 'q2', D), expert(9)], SIZE);
    expect([...joined.scoredIds]).toEqual([0, 3, 8, 11]);
    expect([...joined.always]).toEqual([1, 4, 5, 6, 7, 9]);
    expect([...joined.cut]).toEqual([7, 7.5, 9, 9.5]);
    expect(joined.fc2.rows).toBe(4);
    expect([...new Set(joined.fc2.data)]).toEqual([7, 9]);
    expect(joined.layer).toBe(5);
  });

  it('of one expert are left as they are', () => {
    const only = expert(3);
    expect(joinPredictors([only], SIZE)).toBe(only);
  });
});

describe('what was tried for experts', () => {
  const attempt = (format: 'q1' | 'q2', cost: number, predictedSparsity = 0.8): Attempt => ({
    kind: 'sketch',
    format,
    rank: D,
    bits: 2,
    recall: 0.9,
    weightedRecall: 0.9,
    predictedSparsity,
    cost,
    from: 'all',
    over: 0,
    overError: 0,
  });

  it('is weighed by the tokens that met them: the cheapest format for all comes first', () => {
    const tried = [
      [attempt('q1', 100), attempt('q2', 120)],
      [attempt('q1', 300), attempt('q2', 200)],
    ];
    const shape = { count: 2, active: 1, size: SIZE };
    expect(joinAttempts(tried, [90, 10], shape).map(({ format }) => format)).toEqual(['q1', 'q2']);
    // Of an expert that was not fitted nothing is known; a format that was tried again counts once.
    const again = [[], tried[0], [...tried[1], attempt('q2', 200)]];
    const [best, other] = joinAttempts(again, [7, 50, 50], shape);
    expect([best.format, best.cost, best.over]).toEqual(['q2', 160, 0]);
    expect(other.over).toBeCloseTo(200 / 160 - 1);
  });

  it('counts neurons that a token does not meet as no candidates', () => {
    const [of] = joinAttempts([[attempt('q1', 1, 0.6)], [attempt('q1', 1, 0.8)]], [1, 1], { count: 8, active: 2, size: SIZE }); // prettier-ignore
    expect(of.predictedSparsity).toBeCloseTo(1 - 0.25 * 0.3);
  });
});

describe('an expert that few tokens met', () => {
  it('has better rows when it leans on the inputs of all tokens', async () => {
    const { samples, gateRows } = syntheticLayer(2000, 64, 32, 40);
    const few = { begin: 0, end: 64 };
    const matrices = await createMatrices();
    try {
      const prior = await inputMoments(samples, { begin: 64, end: 1500 }, matrices);
      const heldOut = samples.inputs(1500, 2000);
      const errorOf = async (lean: boolean): Promise<number> => {
        const moments = await leaningMoments(samples, few, lean ? prior : null, matrices);
        const { matrix } = await sketchRows('q2', gateRows, await roundingBasis(moments, matrices), matrices);
        const lost = unpackRows(matrix).map((v, i) => v - gateRows[i]);
        const errors = await matrices.timesTransposed(heldOut, lost, 64);
        // A cut takes off what is lost on average.
        let variance = 0;
        for (let i = 0; i < 32; i++) {
          const own = errors.filter((_, at) => at % 32 === i);
          const mean = own.reduce((a, b) => a + b, 0) / own.length;
          variance += own.reduce((sum, v) => sum + (v - mean) ** 2, 0);
        }
        return variance;
      };
      expect(await errorOf(true)).toBeLessThan(0.7 * (await errorOf(false)));
    } finally {
      await matrices.release();
    }
  });
});
