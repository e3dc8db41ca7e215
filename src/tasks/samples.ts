/**
 * lm-eval's `--log_samples` files: one JSON object a line, one line per document and filter. Two spellings are in
 * use: `arguments` as lists (simple_evaluate), and, from its command line, as `{gen_args_0: {arg_0, arg_1}}` with
 * every number and flag of `resps` written by Python's `str`.
 */
import { readSync } from 'node:fs';
import { basename } from 'node:path';
import { HybridError } from '../errors.js';
import { openRegularFile } from '../io/regular-file.js';
import { isObject, parseStrictJson } from '../io/strict-json.js';
import { toBoolean, toNumber } from './python.js';

export interface GenerateSettings {
  until: string[];
  maxTokens: number;
  /** 0: the most likely token. */
  temperature: number;
  topP: number | null;
}

export type Request =
  | { type: 'loglikelihood'; context: string; continuation: string }
  | { type: 'rolling'; text: string }
  | { type: 'generate'; context: string; settings: GenerateSettings };

/** What a model says to a request. `greedy`: the continuation is what it would have written itself. */
export type Answer = { logLikelihood: number; greedy: boolean | null } | { text: string };

export interface Sample {
  /** For messages: file and line. */
  where: string;
  docId: string;
  doc: Readonly<Record<string, unknown>>;
  target: unknown;
  requests: Request[];
  /** lm-eval's own, one per request; null where the file has none. */
  answers: (Answer | null)[];
  /** What lm-eval's filter made of them; null where the file does not say. */
  filtered: unknown[] | null;
  /** lm-eval's own scores of this document, by metric. */
  scores: Readonly<Record<string, unknown>>;
}

/** A task's documents as one filter sees them. */
export interface Task {
  task: string;
  filter: string;
  metrics: string[];
  samples: Sample[];
}

/** A line holds one document with its shots and answers: the longest in use are below a megabyte. */
const MAX_LINE_BYTES = 64 * 2 ** 20;
const MAX_LINES = 2_000_000;
const DEFAULT_MAX_TOKENS = 256;
const CHUNK_BYTES = 1 << 20;

const fail = (message: string, hint = 'Files come from lm_eval --log_samples.'): HybridError =>
  new HybridError('FILE_INVALID', message, { hint });

/** @throws HybridError FILE_NOT_FOUND or FILE_INVALID, naming file and line */
export function readTasks(paths: readonly string[]): Task[] {
  const tasks = new Map<string, Task>();
  for (const path of paths) {
    const name = taskName(path);
    let lines = 0;
    for (const { text, number } of linesOf(path)) {
      if (text.trim() === '') continue;
      if (++lines > MAX_LINES) throw fail(`${path}: more than ${MAX_LINES} lines`);
      const where = `${path}, line ${number}`;
      const row = parseStrictJson(text, where, fail);
      if (!isObject(row)) throw fail(`${where}: expected an object`);
      const filter = typeof row.filter === 'string' ? row.filter : 'none';
      const key = JSON.stringify([name, filter]);
      const task = tasks.get(key) ?? { task: name, filter, metrics: metricsOf(row), samples: [] };
      tasks.set(key, task);
      task.samples.push(readSample(row, where, task.metrics));
    }
    if (lines === 0) throw fail(`${path}: no samples in it`);
  }
  return [...tasks.values()];
}

/** `samples_gsm8k_2024-05-13T12-00-00.123456.jsonl` -> `gsm8k` */
export const taskName = (path: string): string =>
  basename(path)
    .replace(/\.jsonl?$/, '')
    .replace(/^samples_/, '')
    .replace(/_\d{4}-\d\d-\d\dT[\d.:-]+$/, '') || basename(path);

const KNOWN_FIELDS = new Set(
  'doc_id doc target arguments resps filtered_resps filter metrics doc_hash prompt_hash target_hash'.split(
    ' ',
  ),
);

/** Older files have no list of metrics: every other field with a score in it is one. */
function metricsOf(row: Record<string, unknown>): string[] {
  if (Array.isArray(row.metrics)) return row.metrics.filter((name) => typeof name === 'string');
  return Object.keys(row).filter((name) => !KNOWN_FIELDS.has(name));
}

function readSample(row: Record<string, unknown>, where: string, metrics: string[]): Sample {
  const requests = argumentsOf(row.arguments, where).map((list) => readRequest(list, where));
  if (requests.length === 0) throw fail(`${where}: arguments: no request`);
  if (new Set(requests.map(({ type }) => type)).size > 1) {
    throw fail(`${where}: arguments: requests of several kinds in one document`);
  }
  const resps = Array.isArray(row.resps) ? row.resps : [];
  if (resps.length > 0 && resps.length !== requests.length) {
    throw fail(`${where}: resps: ${resps.length} answers to ${requests.length} requests`);
  }
  const scores: Record<string, unknown> = {};
  for (const name of metrics) if (Object.hasOwn(row, name)) scores[name] = row[name];
  return {
    where,
    docId: String(row.doc_id ?? ''),
    doc: isObject(row.doc) ? row.doc : {},
    target: row.target,
    requests,
    answers: requests.map(({ type }, i) => (resps.length > 0 ? readAnswer(resps[i], type, where) : null)),
    filtered: Array.isArray(row.filtered_resps) ? row.filtered_resps : null,
    scores,
  };
}

/** @returns one list of arguments per request */
function argumentsOf(value: unknown, where: string): unknown[][] {
  const inOrder = (object: Record<string, unknown>, prefix: string): unknown[] => {
    const list: unknown[] = [];
    for (let i = 0; Object.hasOwn(object, `${prefix}${i}`); i++) list.push(object[`${prefix}${i}`]);
    if (list.length === Object.keys(object).length) return list;
    throw fail(`${where}: arguments: expected the keys ${prefix}0, ${prefix}1, ...`);
  };
  const lists: unknown[] | null = Array.isArray(value)
    ? value
    : isObject(value)
      ? inOrder(value, 'gen_args_')
      : null;
  if (lists === null) throw fail(`${where}: arguments: expected a list of requests`);
  return lists.map((one) => {
    if (Array.isArray(one)) return one;
    if (isObject(one)) return inOrder(one, 'arg_');
    throw fail(`${where}: arguments: expected a list for every request`);
  });
}

function readRequest(list: unknown[], where: string): Request {
  const [first, second] = list;
  if (typeof first !== 'string') throw fail(`${where}: arguments: expected a text first`);
  if (list.length === 1) return { type: 'rolling', text: first };
  if (list.length > 2)
    throw fail(`${where}: arguments: ${list.length} values in one request (images are not supported)`);
  if (typeof second === 'string') return { type: 'loglikelihood', context: first, continuation: second };
  if (isObject(second)) return { type: 'generate', context: first, settings: readSettings(second, where) };
  throw fail(`${where}: arguments: expected a continuation or generation settings after the context`);
}

function readSettings(value: Record<string, unknown>, where: string): GenerateSettings {
  const number = (name: string, least: number, most: number): number | null => {
    if (value[name] === undefined || value[name] === null) return null;
    const found = toNumber(value[name]);
    if (found !== null && found >= least && found <= most) return found;
    throw fail(
      `${where}: ${name} is ${JSON.stringify(value[name])}, expected a number from ${least} to ${most}`,
    );
  };
  const given = value.until ?? [];
  const until = typeof given === 'string' ? [given] : given;
  if (!Array.isArray(until) || !until.every((text) => typeof text === 'string')) {
    throw fail(`${where}: until: expected a text or a list of texts`);
  }
  const maxTokens = number('max_gen_toks', 1, 2 ** 24) ?? number('max_new_tokens', 1, 2 ** 24);
  const temperature = number('temperature', 0, 100);
  const samples = toBoolean(value.do_sample) ?? (temperature !== null && temperature > 0);
  return {
    until: until.filter((text) => text !== ''),
    maxTokens: Math.floor(maxTokens ?? DEFAULT_MAX_TOKENS),
    temperature: samples ? (temperature ?? 1) : 0,
    topP: number('top_p', 0, 1),
  };
}

/** Repeats of a request give several answers: the first one counts, as with lm-eval's `take_first`. */
function readAnswer(value: unknown, type: Request['type'], where: string): Answer {
  const first: unknown = Array.isArray(value) ? value[0] : value;
  if (type === 'generate') {
    if (typeof first === 'string') return { text: first };
  } else if (type === 'rolling') {
    const logLikelihood = toNumber(Array.isArray(first) ? first[0] : first);
    if (logLikelihood !== null) return { logLikelihood, greedy: null };
  } else if (Array.isArray(first)) {
    const [logLikelihood, greedy] = [toNumber(first[0]), toBoolean(first[1])];
    if (logLikelihood !== null && greedy !== null) return { logLikelihood, greedy };
  }
  throw fail(`${where}: resps: ${JSON.stringify(first)?.slice(0, 80)} is no answer to a ${type} request`);
}

/** Lines of a UTF-8 file, read in pieces: sample files of large suites have gigabytes. */
function* linesOf(path: string): Generator<{ text: string; number: number }> {
  const file = openRegularFile(path);
  const decoder = new TextDecoder('utf-8', { fatal: true });
  const chunk = Buffer.alloc(CHUNK_BYTES);
  let rest: Buffer[] = [];
  let restBytes = 0;
  let number = 0;
  const take = (piece: Buffer): string => {
    const line = Buffer.concat([...rest, piece]);
    rest = [];
    restBytes = 0;
    try {
      return decoder.decode(line);
    } catch {
      throw fail(`${path}, line ${number}: not UTF-8 text`);
    }
  };
  try {
    for (let at = 0; ;) {
      const bytes = readSync(file.fd, chunk, 0, chunk.length, at);
      if (bytes === 0) break;
      at += bytes;
      let begin = 0;
      for (let end = chunk.indexOf(10); end >= 0 && end < bytes; end = chunk.indexOf(10, begin)) {
        number++;
        yield { text: take(chunk.subarray(begin, end)), number };
        begin = end + 1;
      }
      restBytes += bytes - begin;
      if (restBytes > MAX_LINE_BYTES)
        throw fail(`${path}, line ${number + 1}: longer than ${MAX_LINE_BYTES} bytes`);
      rest.push(Buffer.from(chunk.subarray(begin, bytes)));
    }
    number++;
    if (restBytes > 0) yield { text: take(Buffer.alloc(0)), number };
  } finally {
    file.close();
  }
}
