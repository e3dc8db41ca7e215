/** `--chat-template`: `plain`, or a file of Jinja source. */
import { Option } from 'commander';
import { HybridError } from '../errors.js';
import { readSmallText } from '../io/regular-file.js';
import { MAX_TEMPLATE_BYTES } from '../model/limits.js';

export const chatTemplateOption = (): Option =>
  new Option('--chat-template <file>', 'Jinja template; plain: a simple dialogue (default: the model’s own)');

/** @returns `plain`, Jinja source, or undefined for the model's own */
export function templateOf(choice: string | undefined): string | undefined {
  if (choice === undefined || choice === 'plain') return choice;
  return readSmallText(choice, MAX_TEMPLATE_BYTES, (message) => new HybridError('FILE_INVALID', message));
}
