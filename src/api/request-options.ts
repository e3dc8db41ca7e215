/** What a request may ask for, checked and filled with the model's defaults. */
import { randomInt } from 'node:crypto';
import { SAMPLING_DEFAULTS, type SamplingOptions } from '../engine/sampler.js';
import { wholeNumber } from '../engine/options.js';
import { MAX_DRAFTS } from '../engine/sequence.js';
import { UsageError } from '../errors.js';
import type { GenerationDefaults } from '../model/generation-defaults.js';
import type { GenerateOptions } from './hybrid-model.js';

/** @throws UsageError naming the option, what it is and what was expected */
export function samplingOptions(options: GenerateOptions, defaults: GenerationDefaults): SamplingOptions {
  const sampling: SamplingOptions = {
    temperature:
      options.temperature ??
      (defaults.doSample === false ? 0 : defaults.temperature) ??
      SAMPLING_DEFAULTS.temperature,
    topK: options.topK ?? defaults.topK ?? SAMPLING_DEFAULTS.topK,
    topP: options.topP ?? defaults.topP ?? SAMPLING_DEFAULTS.topP,
    minP: options.minP ?? SAMPLING_DEFAULTS.minP,
    repetitionPenalty: options.repetitionPenalty ?? SAMPLING_DEFAULTS.repetitionPenalty,
    repetitionWindow: options.repetitionWindow ?? SAMPLING_DEFAULTS.repetitionWindow,
    presencePenalty: options.presencePenalty ?? 0,
    frequencyPenalty: options.frequencyPenalty ?? 0,
    seed: options.seed ?? randomInt(2 ** 32),
  };
  const check = (name: keyof SamplingOptions, ok: boolean, expected: string): void => {
    if (!ok) throw new UsageError(`${name} is ${sampling[name]}, expected ${expected}`);
  };
  check(
    'temperature',
    sampling.temperature >= 0 && sampling.temperature < Infinity,
    'a number from 0 (greedy) up',
  );
  check('topK', Number.isInteger(sampling.topK) && sampling.topK >= 0, 'a whole number from 0 (all) up');
  check('topP', sampling.topP > 0 && sampling.topP <= 1, 'a number above 0, at most 1');
  check('minP', sampling.minP >= 0 && sampling.minP <= 1, 'a number from 0 to 1');
  check(
    'repetitionPenalty',
    sampling.repetitionPenalty > 0 && sampling.repetitionPenalty < Infinity,
    'a number above 0',
  );
  check(
    'repetitionWindow',
    Number.isInteger(sampling.repetitionWindow) && sampling.repetitionWindow >= 0,
    'a whole number from 0 up',
  );
  for (const name of ['presencePenalty', 'frequencyPenalty'] as const) {
    check(name, Math.abs(sampling[name]!) <= 2, 'a number from -2 to 2');
  }
  check(
    'seed',
    Number.isInteger(sampling.seed) && sampling.seed >= 0 && sampling.seed < 2 ** 32,
    'a whole number from 0 to 4294967295',
  );
  return sampling;
}

export function stopStrings(stop: GenerateOptions['stop']): string[] {
  const list = stop === undefined ? [] : typeof stop === 'string' ? [stop] : [...stop];
  if (list.some((s) => s === ''))
    throw new UsageError('a stop string is empty', 'Give at least one character.');
  return list;
}

const MAX_LOGPROBS = 100;
const MAX_BIAS = 100;

/** What is not sampling. @throws UsageError naming the option */
export function checkRequest(options: GenerateOptions, vocabSize: number): void {
  const { logprobs, logitBias, mask, speculate } = options;
  if (logprobs !== undefined) wholeNumber('logprobs', logprobs, 0, Math.min(MAX_LOGPROBS, vocabSize));
  for (const [id, bias] of Object.entries(logitBias ?? {})) {
    wholeNumber('a token id in logitBias', Number(id), 0, vocabSize - 1);
    if (!(Math.abs(bias) <= MAX_BIAS)) {
      throw new UsageError(`logitBias of token ${id} is ${bias}, expected a number from -100 to 100`);
    }
  }
  if (mask !== undefined && typeof mask !== 'function') {
    throw new UsageError(`mask is a ${typeof mask}, expected a function`);
  }
  if (speculate === undefined || speculate === false || speculate === 'ngram') return;
  if (typeof speculate !== 'object' || typeof speculate.draft !== 'string') {
    throw new UsageError(`speculate is ${String(speculate)}, expected 'ngram', { draft: path } or false`);
  }
  if (speculate.tokens !== undefined) wholeNumber('speculate.tokens', speculate.tokens, 1, MAX_DRAFTS);
}
