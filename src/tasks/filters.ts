/**
 * What lm-eval does to a generated text before it is compared. Sample files name filters and metrics but do not say
 * what they do: of the rules with that name that are known here, the one is taken that makes lm-eval's own
 * `filtered_resps` of its own `resps`. Patterns are those of lm-eval's task files.
 */
import { strip, stripStart } from './python.js';

export type Filter = (text: string) => string;

/** What a regex filter gives where nothing was found. */
const NOTHING_FOUND = '[invalid]';

/** `findall`, the match at `select`, its first group that is not empty. @param select -1: the last */
const regex =
  (pattern: RegExp, select = 0): Filter =>
  (text) => {
    const found = [...text.matchAll(pattern)];
    const match = found.at(select);
    if (!match) return NOTHING_FOUND;
    const groups = match.length > 1 ? match.slice(1) : [match[0]];
    const chosen = groups.length === 1 ? groups[0] : groups.find((group) => group);
    return strip(chosen ?? NOTHING_FOUND);
  };

const asItIs: Filter = (text) => text;
const NUMBER = /(-?[$0-9.,]{2,})|(-?[0-9]+)/g;

const FILTERS: Readonly<Record<string, readonly Filter[]>> = {
  none: [asItIs],
  'strict-match': [
    regex(/#### (-?[0-9.,]+)/g),
    regex(/The answer is (-?[0-9.,]+)\./g),
    regex(/[Tt]he answer is (-?[0-9.,]+)/g),
  ],
  'flexible-extract': [regex(NUMBER, -1), regex(NUMBER)],
  'get-answer': [regex(/(?<=the answer is )(.*)(?=.)/g), regex(/(?<=answer is )(.*)(?=.)/g)],
  'custom-extract': [regex(/answer is \(?([ABCDEFGHIJ])\)?/g)],
  remove_whitespace: [stripStart, strip],
};
const ANY: readonly Filter[] = [asItIs, stripStart, strip];

export const filtersNamed = (name: string): readonly Filter[] =>
  Object.hasOwn(FILTERS, name) ? [...FILTERS[name], ...ANY] : ANY;

// ---- exact match ------------------------------------------------------------------------------------------

/** Both sides go through it before they are compared. */
export type Normaliser = (text: string) => string;

const PUNCTUATION = /[!-/:-@[-`{-~]/g;
/** GSM8K: thousands, currency, all before the answer, and a full stop at the end do not count. */
const gsm8k: Normaliser = (text) =>
  text
    .replaceAll(',', '')
    .replaceAll('$', '')
    .replace(/[\s\S]*#### /g, '')
    .replace(/\.$/g, '')
    .toLowerCase();

export const NORMALISERS: readonly Normaliser[] = [
  (text) => text,
  gsm8k,
  (text) => text.toLowerCase(),
  (text) => text.toLowerCase().replace(PUNCTUATION, ''),
  (text) => text.replace(PUNCTUATION, ''),
  (text) => strip(text).toLowerCase(),
];
