/** How answers are made in `chat`: settings by the names that `/set` takes. */
import type { GenerateOptions } from '../api/hybrid-model.js';
import { UsageError } from '../errors.js';
import { decimal, wholeNumber } from './parse.js';

interface Setting {
  option: keyof GenerateOptions;
  parse: (value: string) => number;
}

const SETTINGS: Readonly<Record<string, Setting>> = {
  temperature: { option: 'temperature', parse: decimal('temperature', 0, 100) },
  top_p: { option: 'topP', parse: decimal('top_p', 1e-6, 1) },
  top_k: { option: 'topK', parse: wholeNumber('top_k', 0, 2 ** 31 - 1) },
  min_p: { option: 'minP', parse: decimal('min_p', 0, 1) },
  repetition_penalty: { option: 'repetitionPenalty', parse: decimal('repetition_penalty', 0.01, 100) },
  max_tokens: { option: 'maxTokens', parse: wholeNumber('max_tokens', 1, 2 ** 24) },
  seed: { option: 'seed', parse: wholeNumber('seed', 0, 2 ** 32 - 1) },
  measure_recall: { option: 'measureRecall', parse: wholeNumber('measure_recall', 0, 1) },
};
export const SETTING_NAMES = Object.keys(SETTINGS).join(', ');

/**
 * @param value `default` takes the setting back
 * @throws UsageError naming the settings there are, or what the value should be
 */
export function changeSetting(options: GenerateOptions, name: string, value: string): void {
  if (!Object.hasOwn(SETTINGS, name))
    throw new UsageError(`no setting ${JSON.stringify(name)}; there are ${SETTING_NAMES}`);
  const { option, parse } = SETTINGS[name];
  const number = value === 'default' ? undefined : parse(value);
  Object.assign(options, { [option]: option === 'measureRecall' ? number === 1 : number });
}
