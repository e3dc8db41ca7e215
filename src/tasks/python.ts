/** What lm-eval's Python does with strings, where JavaScript does something else. */

/** What `str.isspace` is true of: with the separators U+001C to U+001F and U+0085, without U+FEFF. */
const SPACE = '\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000';
const TRAILING = new RegExp(`[${SPACE}]+$`, 'u');
const LEADING = new RegExp(`^[${SPACE}]+`, 'u');
const RUNS = new RegExp(`[${SPACE}]+`, 'u');

export const stripEnd = (text: string): string => text.replace(TRAILING, '');
export const stripStart = (text: string): string => text.replace(LEADING, '');
export const strip = (text: string): string => stripStart(stripEnd(text));

/** `len(text)`: characters, not UTF-16 units. */
export const length = (text: string): number => [...text].length;

/** `len(re.split(r"\s+", text))` */
export const wordCount = (text: string): number => text.split(RUNS).length;

export const utf8Length = (text: string): number => Buffer.byteLength(text, 'utf8');

/** A number as JSON has it, or as `str()` wrote it. */
export function toNumber(value: unknown): number | null {
  if (typeof value === 'number') return value;
  if (typeof value !== 'string') return null;
  if (value === '-inf') return -Infinity;
  return /^\s*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\s*$/i.test(value) ? Number(value) : null;
}

/** A truth value as JSON has it, or as `str()` wrote it. */
export function toBoolean(value: unknown): boolean | null {
  if (typeof value === 'boolean') return value;
  if (value === 'True' || value === 'true') return true;
  return value === 'False' || value === 'false' ? false : null;
}

/** A list that `str()` wrote, such as `['a', 'b']` or `[0, 2]`; null when it is anything else. */
export function parseList(text: string): (string | number)[] | null {
  const body = /^\s*[[(](.*)[\])]\s*$/s.exec(text)?.[1];
  if (body === undefined) return null;
  const item = /\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([-+]?\d+(?:\.\d+)?))\s*(,|$)/sy;
  const values: (string | number)[] = [];
  while (item.lastIndex < body.length) {
    const match = item.exec(body);
    if (!match) return null;
    const quoted = match[1] ?? match[2];
    values.push(quoted === undefined ? Number(match[3]) : unescape(quoted));
  }
  return values;
}

const ESCAPES: Readonly<Record<string, string>> = { n: '\n', t: '\t', r: '\r' };
const unescape = (text: string): string => text.replace(/\\(.)/gs, (_, c: string) => ESCAPES[c] ?? c);
