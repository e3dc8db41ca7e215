/** Requests as token ids, cut the way lm-eval's Hugging Face models cut them. */
import { UsageError } from '../errors.js';
import type { Tokenizer } from '../model/tokenizer.js';
import { stripEnd } from './python.js';
import type { GenerateSettings, Request } from './samples.js';

export interface EncodeOptions {
  tokenizer: Tokenizer;
  /** Begin token in front of every context. lm-eval's `add_bos_token`. */
  beginToken: boolean;
  /** Stands before an empty context, and before a text that is scored from its first token. */
  prefixId: number | null;
  /** lm-eval's `max_length`: positions of the model that are used. */
  maxLength: number;
  /** `max_new_tokens` of the model's generation_config.json: transformers prefers it to a task's max_gen_toks. */
  maxNewTokens: number | null;
}

/** Tokens to score: `scored` of them, the last ones, each given all before it. */
export interface ScoredPart {
  /** Input and the final token that is only predicted. */
  tokens: number[];
  scored: number;
  /** Token whose logits the first scored one is compared with. Its own, but for `readLikeLmEval`. */
  begin: number;
}

export type Encoded =
  { type: 'score'; parts: ScoredPart[] } | { type: 'generate'; prompt: number[]; settings: GenerateSettings };

/** @throws UsageError when it does not fit into the context */
export function encodeRequest(request: Request, options: EncodeOptions, where: string): Encoded {
  if (request.type === 'generate') return encodePrompt(request, options, where);
  if (request.type === 'rolling') return { type: 'score', parts: rollingParts(request.text, options) };
  const { context, continuation } = encodePair(request.context, request.continuation, options);
  const { maxLength } = options;
  if (continuation.length > maxLength) {
    throw new UsageError(
      `${where}: a continuation of ${continuation.length} tokens, the context holds ${maxLength}`,
      'Raise --context, if the model allows it.',
    );
  }
  const tokens = [...context, ...continuation].slice(-(maxLength + 1));
  const scored = continuation.length;
  return { type: 'score', parts: scored === 0 ? [] : [{ tokens, scored, begin: tokens.length - scored }] };
}

/**
 * The continuation's ids are those of context + continuation after as many as the context has; spaces at the end
 * of the context go to the continuation first, because tokenizers join them with the word that follows.
 */
export function encodePair(
  context: string,
  continuation: string,
  options: EncodeOptions,
): { context: number[]; continuation: number[] } {
  const encode = (text: string): number[] =>
    options.tokenizer.encode(text, { addSpecial: options.beginToken });
  const head = stripEnd(context);
  const rest = context.slice(head.length) + continuation;
  if (head === '') {
    const ids = options.tokenizer.encode(rest, { addSpecial: false });
    const prefix = prefixOf(options);
    return ids[0] === prefix
      ? { context: ids.slice(0, 1), continuation: ids.slice(1) }
      : { context: [prefix], continuation: ids };
  }
  const before = encode(head);
  return { context: before, continuation: encode(head + rest).slice(before.length) };
}

/** Windows of at most `maxLength`, every token scored once, each window after one token of the one before. */
function rollingParts(text: string, options: EncodeOptions): ScoredPart[] {
  const ids = options.tokenizer.encode(text, { addSpecial: options.beginToken });
  const { maxLength } = options;
  const parts: ScoredPart[] = [];
  for (let begin = 0; begin < ids.length; begin += maxLength) {
    const window = ids.slice(begin, begin + maxLength);
    const before = begin === 0 ? prefixOf(options) : ids[begin - 1];
    parts.push({ tokens: [before, ...window], scored: window.length, begin: 1 });
  }
  return parts;
}

function encodePrompt(
  { context, settings }: Extract<Request, { type: 'generate' }>,
  options: EncodeOptions,
  where: string,
): Encoded {
  const room = options.maxLength - settings.maxTokens;
  if (room < 1) {
    throw new UsageError(
      `${where}: max_gen_toks ${settings.maxTokens} leaves no room for a prompt in a context of ${options.maxLength}`,
      'Raise --context, if the model allows it.',
    );
  }
  const ids = options.tokenizer.encode(context, { addSpecial: options.beginToken });
  return {
    type: 'generate',
    prompt: ids.length > 0 ? ids.slice(-room) : [prefixOf(options)],
    settings: { ...settings, maxTokens: options.maxNewTokens ?? settings.maxTokens },
  };
}

/**
 * lm-eval (0.4.13) runs requests once that have the same tokens but for the last one, even where they are cut at
 * different places into context and continuation, and then compares the shorter continuations with the logits at
 * the beginning of the longest one. Its figures contain that, so figures that are to be compared with them must.
 * @returns how many requests are read that way
 */
export function readLikeLmEval(requests: readonly Encoded[]): number {
  const groups = new Map<string, ScoredPart[]>();
  for (const request of requests) {
    if (request.type !== 'score' || request.parts.length !== 1) continue;
    const [part] = request.parts;
    const key = part.tokens.slice(0, -1).join();
    const group = groups.get(key);
    if (group) group.push(part);
    else groups.set(key, [part]);
  }
  let moved = 0;
  for (const group of groups.values()) {
    const begin = Math.min(...group.map((part) => part.begin));
    for (const part of group) {
      if (part.begin === begin) continue;
      part.begin = begin;
      moved++;
    }
  }
  return moved;
}

function prefixOf({ prefixId }: EncodeOptions): number {
  if (prefixId !== null) return prefixId;
  throw new UsageError('an empty context needs a begin or end token, and the model has neither');
}
