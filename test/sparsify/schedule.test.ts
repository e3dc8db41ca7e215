import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { UsageError } from '../../src/errors.js';
import {
  controlLambda,
  lambdaAt,
  learningRateAt,
  parseStages,
  stagesFor,
  startControl,
  wantedSparsity,
} from '../../src/sparsify/schedule.js';

/** The 7B model's stages on its card. */
const CARD = '0:5000, 5e-3:6000, 5e-2:10000, 5e-2:12000, 5e-1:16000, 5e-1:16500';

describe('lambda', () => {
  const stages = parseStages(CARD);

  it('is zero, then flat, then rises along a sine from one stage to the next', () => {
    expect(lambdaAt(stages, 4999)).toBe(0);
    expect(lambdaAt(stages, 5000)).toBe(5e-3);
    expect(lambdaAt(stages, 5999)).toBe(5e-3);
    expect(lambdaAt(stages, 6000)).toBeCloseTo(5e-3, 12);
    expect(lambdaAt(stages, 8000)).toBeCloseTo((5e-3 + 5e-2) / 2, 12);
    expect(lambdaAt(stages, 7000)).toBeCloseTo(5e-3 + 0.5 * (Math.sin(-Math.PI / 4) + 1) * 45e-3, 12);
    expect(lambdaAt(stages, 11_000)).toBeCloseTo(5e-2, 12);
    expect(lambdaAt(stages, 20_000)).toBe(5e-1);
  });

  it('never falls where the stages do not, over any number of steps', () => {
    fc.assert(
      fc.property(fc.integer({ min: 20, max: 5000 }), (steps) => {
        const proportional = stagesFor(steps);
        let before = 0;
        for (let step = 0; step < steps; step++) {
          const now = lambdaAt(proportional, step);
          if (now < before - 1e-12) throw new Error(`falls at step ${step}`);
          before = now;
        }
        expect(before).toBeCloseTo(2e-2, 5);
      }),
      { numRuns: 20 },
    );
  });

  it('is nothing without stages', () => {
    expect(lambdaAt([], 3)).toBe(0);
  });
});

describe('a list of stages', () => {
  it('that goes backwards, or stands still, is refused with the stage', () => {
    expect(() => parseStages('0:100, 1e-3:90')).toThrow(/stage 1 ends at step 90, expected more than 100/);
    expect(() => parseStages('0:0')).toThrow(UsageError);
    expect(() => parseStages('0:5,1:5')).toThrow(/stage 1/);
  });

  it('of anything but numbers is refused', () => {
    for (const bad of ['', 'x:3', '1e-3', '1e-3:', '-1:5', '1:2.5', 'NaN:3', '1e999999:3', '1:1e3']) {
      expect(() => parseStages(bad), bad).toThrow(UsageError);
    }
  });
});

describe('the learning rate', () => {
  const rates = { peak: 5e-4, warmup: 50, lowest: 0.05 };
  it('rises to its peak and falls along half a cosine', () => {
    expect(learningRateAt(rates, 0, 400)).toBeCloseTo(1e-5, 12);
    expect(learningRateAt(rates, 49, 400)).toBeCloseTo(5e-4, 12);
    expect(learningRateAt(rates, 225, 400)).toBeCloseTo(5e-4 * (0.05 + 0.95 / 2), 12);
    expect(learningRateAt(rates, 400, 400)).toBeCloseTo(2.5e-5, 12);
  });
});

describe('lambda that follows a sparsity', () => {
  it('stays zero while the model is sparser than wanted', () => {
    expect(controlLambda(startControl(), 0.9, 0.8, 10, 100)).toEqual({ lambda: 0, from: 0.9 });
  });

  it('rises until the target, and what it aims at goes from the start to the target', () => {
    let control = startControl();
    for (let step = 0; step < 100; step++) control = controlLambda(control, 0.6, 0.9, step, 100);
    expect(control.from).toBe(0.6);
    expect(control.lambda).toBeGreaterThan(1e-4);
    expect(wantedSparsity(0.6, 0.9, 0, 100)).toBe(0.6);
    expect(wantedSparsity(0.6, 0.9, 100, 100)).toBeCloseTo(0.9, 12);
  });
});
