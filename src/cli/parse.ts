/** Option values: what is not exactly what an option takes is refused by name, never rounded or guessed. */
import { UsageError } from '../errors.js';

type Parser<T> = (text: string) => T;

const refuse = (option: string, text: string, expected: string): UsageError =>
  new UsageError(`${option} is ${JSON.stringify(text)}, expected ${expected}`);

/** `12`; not `1e3`, `12.0` or ` 12`. */
export function wholeNumber(option: string, min: number, max: number): Parser<number> {
  return (text) => {
    const value = /^-?\d{1,15}$/.test(text) ? Number(text) : NaN;
    if (value >= min && value <= max) return value;
    throw refuse(option, text, `a whole number from ${min} to ${max}`);
  };
}

/** `0.8`, `.5`, `2`, `-1.5`; not `NaN`, `Infinity` or `0x10`. */
export function decimal(option: string, min: number, max: number): Parser<number> {
  return (text) => {
    const value = parseDecimal(text);
    if (value >= min && value <= max) return value;
    throw refuse(option, text, `a number from ${min} to ${max}`);
  };
}

/** A share as a fraction or in percent: `0.99`, `99%`. */
export function share(option: string, min = 0, max = 1): Parser<number> {
  return (text) => {
    const value = text.endsWith('%') ? parseDecimal(text.slice(0, -1)) / 100 : parseDecimal(text);
    if (value >= min && value <= max) return value;
    throw refuse(
      option,
      text,
      `a fraction from ${min} to ${max}, or a percentage from ${min * 100}% to ${max * 100}%`,
    );
  };
}

/** Bytes: `4GiB`, `512MiB`, `1.5G` (binary), `4GB` (decimal), `1048576`. */
export function byteSize(option: string): Parser<number> {
  return (text) => {
    const match = /^(\d+(?:\.\d+)?|\.\d+)\s*([kmgt]?)(i?b|)$/i.exec(text);
    const expected = 'a size such as 4GiB, 512MiB or 1048576';
    if (!match) throw refuse(option, text, expected);
    const [, amount, prefix, suffix] = match;
    const base = suffix.toLowerCase() === 'b' ? 1000 : 1024;
    const bytes = Math.floor(Number(amount) * base ** ' kmgt'.indexOf(prefix.toLowerCase() || ' '));
    if (Number.isSafeInteger(bytes)) return bytes;
    throw refuse(option, text, expected);
  };
}

/** One of the words an option knows. */
export function oneOf<T extends string>(option: string, choices: readonly T[]): Parser<T> {
  return (text) => {
    const found = choices.find((choice) => choice === text);
    if (found !== undefined) return found;
    throw refuse(option, text, `one of ${choices.join(', ')}`);
  };
}

/** Several values with commas between them: `1,2,4`. */
export const list =
  <T>(parse: Parser<T>): Parser<T[]> =>
  (text) =>
    text.split(',').map((part) => parse(part.trim()));

/** For options that may be given several times. */
export const collect = (value: string, before: string[] | undefined): string[] => [...(before ?? []), value];

function parseDecimal(text: string): number {
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?$/i.test(text) ? Number(text) : NaN;
}
