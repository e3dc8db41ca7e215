/** Log probabilities in the two forms of OpenAI's APIs. */
import type { TokenLogprob } from './backend.js';
import type { ServedModel } from './served-model.js';

/** JSON has no -Infinity; OpenAI's own servers write this. */
const finite = (logprob: number): number => Math.max(logprob, -9999);

const textOf = (model: ServedModel, id: number): string => new TextDecoder().decode(model.tokenBytes(id));

export function chatLogprobs(model: ServedModel, tokens: readonly TokenLogprob[]): object {
  const describe = ({ id, logprob }: { id: number; logprob: number }) => ({
    token: textOf(model, id),
    logprob: finite(logprob),
    bytes: [...model.tokenBytes(id)],
  });
  return {
    content: tokens.map((token) => ({ ...describe(token), top_logprobs: token.top.map(describe) })),
    refusal: null,
  };
}

/** @param offset of the first token's text in the completion */
export function completionLogprobs(
  model: ServedModel,
  tokens: readonly TokenLogprob[],
  offset: number,
): object {
  const texts = tokens.map(({ id }) => textOf(model, id));
  let at = offset;
  return {
    tokens: texts,
    token_logprobs: tokens.map(({ logprob }) => finite(logprob)),
    top_logprobs: tokens.map(({ top }) =>
      Object.fromEntries(top.map((t) => [textOf(model, t.id), finite(t.logprob)])),
    ),
    text_offset: texts.map((text) => (at += text.length) - text.length),
  };
}
