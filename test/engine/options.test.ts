import { describe, expect, it } from 'vitest';
import type { FfnMode, FfnPlan, PredictorWeights } from '../../src/engine/ffn-plan.js';
import { resolveOptions } from '../../src/engine/options.js';
import type { EngineOptions } from '../../src/engine/requests.js';
import type { PackHeader } from '../../src/pack/types.js';

const PACK = {
  config: { maxContext: 64, activation: { kind: 'relu' } },
  quant: 'q8',
} as unknown as PackHeader;
const NONE = new Uint32Array(0);
const PREDICTOR = { rank: 1 } as PredictorWeights; // only looked at for being there

const plan = (...modes: FfnMode[]): FfnPlan => ({
  layers: modes.map((mode) => ({
    mode,
    always: NONE,
    scored: NONE,
    predictor: mode === 'predicted' ? PREDICTOR : null,
    frequency: null,
  })),
});
const chosen = (options: EngineOptions): FfnMode => resolveOptions(PACK, options).ffn;

describe('the FFN mode', () => {
  it('is an error where predicted is asked for and no layer has a predictor, with a profile or without', () => {
    for (const of of [null, plan('exact', 'exact')])
      expect(() => chosen({ ffn: 'predicted', plan: of })).toThrow(/needs a profile and predictor/);
  });

  it('is predicted where one layer has a predictor', () => {
    expect(chosen({ ffn: 'predicted', plan: plan('exact', 'predicted') })).toBe('predicted');
    expect(chosen({ plan: plan('exact', 'predicted') })).toBe('predicted');
  });

  it('is called what it is where a plan only orders the neurons', () => {
    expect(chosen({ plan: plan('exact', 'exact') })).toBe('exact');
    expect(chosen({})).toBe('exact');
  });
});
