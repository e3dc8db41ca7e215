/** POST /v1/completions: text goes on. */
import { randomUUID } from 'node:crypto';
import { z } from 'zod';
import { detailsOf, layersNow, usageOf } from '../account.js';
import { invalidRequest } from '../api-error.js';
import type { BackendResult, TokenLogprob } from '../backend.js';
import { parseBody, readJson } from '../body.js';
import { harmlessFields, layersField, maybe, samplingFields } from '../fields.js';
import { Job, samplingOf, sequencesOf } from '../job.js';
import * as limits from '../limits.js';
import { completionLogprobs } from '../logprobs.js';
import type { ServedModel } from '../served-model.js';
import type { ServeContext, Service } from '../service.js';
import { eventStream } from '../sse.js';

const tokenIds = z.array(z.number().int().min(0)).min(1);

export const schema = z.strictObject({
  ...samplingFields,
  ...harmlessFields,
  /** Text, several texts, token ids, or several lists of them. */
  prompt: z.union([
    z.string(),
    tokenIds,
    z.array(z.string()).min(1).max(limits.MAX_PROMPTS),
    z.array(tokenIds).min(1).max(limits.MAX_PROMPTS),
  ]),
  max_tokens: maybe(z.number().int().min(0)),
  logprobs: maybe(z.number().int().min(0).max(limits.MAX_TOP_LOGPROBS)),
  echo: maybe(z.boolean()),
  best_of: maybe(z.literal(1, 'best_of is not supported: expected 1')),
  suffix: maybe(z.literal('', 'suffix is not supported: expected ""')),
  hybrid_infer: layersField,
});

export async function completions(c: ServeContext, service: Service): Promise<Response> {
  const body = parseBody(schema, await readJson(c, service.limits.bodyBytes));
  const model = service.model(body.model);
  c.set('about', { model: model.name });
  if (body.echo && body.logprobs !== undefined)
    throw invalidRequest('echo: log probabilities of the prompt are not supported', 'echo');
  const prompts = await encodePrompts(model, body.prompt);
  const n = body.n ?? 1;
  const withLayers = body.hybrid_infer?.layers ?? false;
  if (n * prompts.length > service.limits.choices) {
    throw invalidRequest(
      `n: ${n * prompts.length} choices, at most ${service.limits.choices}`,
      'n',
      'invalid_value',
    );
  }
  const sampling = samplingOf(model, body, { value: body.max_tokens, field: 'max_tokens' });
  const job = await Job.start({
    model,
    sequences: sequencesOf(prompts, n, body.seed),
    sampling: { ...sampling, logprobs: body.logprobs, measureRecall: body.hybrid_infer?.measure_recall },
    client: service.clientSignal(c),
    limits: service.limits,
    metrics: service.metrics,
  });
  const head = {
    id: `cmpl-${randomUUID()}`,
    object: 'text_completion',
    created: Math.floor(Date.now() / 1000),
    model: model.name,
  };
  const echoed = prompts.map((_, i) => (body.echo ? echoOf(body.prompt, i, model, prompts) : ''));
  const usage = (results: BackendResult[]) =>
    usageOf(
      prompts.map((ids) => ids.length),
      results,
    );
  const tokens: TokenLogprob[][] = Array.from({ length: n * prompts.length }, () => []);
  const onToken =
    body.logprobs === undefined
      ? undefined
      : (index: number, token: TokenLogprob) => void tokens[index].push(token);
  const before = (index: number): string => echoed[Math.floor(index / n)];

  if (!body.stream) {
    const results = await job.run({ onToken });
    c.set('about', { model: model.name, usage: usage(results) });
    const choices = results.map((result, index) => ({
      index,
      text: before(index) + result.text,
      logprobs: onToken ? completionLogprobs(model, tokens[index], before(index).length) : null,
      finish_reason: result.stopReason,
    }));
    return c.json({ ...head, choices, usage: usage(results), ...detailsOf(results, withLayers) });
  }

  return eventStream(c, service.limits.stallMs, job.stop, async (events) => {
    const withUsage = body.stream_options?.include_usage ?? false;
    const send = (fields: object): void =>
      events.send({ ...head, ...(withUsage ? { usage: null } : {}), ...fields });
    const offsets = tokens.map((_, index) => before(index).length);
    const takeLogprobs = (index: number): object | null => {
      if (!onToken) return null;
      const offset = offsets[index];
      const part = completionLogprobs(model, tokens[index], offset) as { tokens: string[] };
      offsets[index] += part.tokens.join('').length;
      tokens[index] = [];
      return part;
    };
    const choice = (index: number, text: string, finish: string | null): object => ({
      choices: [{ index, text, logprobs: takeLogprobs(index), finish_reason: finish }],
    });
    tokens.forEach((_, index) => before(index) && send(choice(index, before(index), null)));
    const results = await job.run({
      onToken,
      onText: (index, piece) => send(choice(index, piece, null)),
      onLayers: withLayers
        ? (index, layers, count) => send({ choices: [], ...layersNow(index, layers, count) })
        : undefined,
    });
    results.forEach((result, index) =>
      send({ ...choice(index, '', result.stopReason), ...detailsOf([result], withLayers) }),
    );
    if (withUsage) events.send({ ...head, choices: [], usage: usage(results) });
    events.done();
  });
}

type Prompt = z.infer<typeof schema>['prompt'];

async function encodePrompts(model: ServedModel, prompt: Prompt): Promise<number[][]> {
  const list = typeof prompt === 'string' || typeof prompt[0] === 'number' ? [prompt] : prompt;
  const { bosId, vocabSize } = model.backend;
  return Promise.all(
    (list as (string | number[])[]).map(async (item) => {
      if (typeof item !== 'string') {
        const wrong = item.find((id) => id >= vocabSize);
        if (wrong !== undefined)
          throw invalidRequest(`prompt: ${wrong} is no token, ids end at ${vocabSize - 1}`, 'prompt');
        return item;
      }
      const ids = await model.encode({ kind: 'text', text: item });
      if (ids.length > 0) return ids;
      if (bosId === null)
        throw invalidRequest('prompt: it is empty and the model has no begin token', 'prompt');
      return [bosId];
    }),
  );
}

function echoOf(prompt: Prompt, index: number, model: ServedModel, prompts: readonly number[][]): string {
  const item: unknown = typeof prompt === 'string' ? prompt : prompt[index];
  if (typeof item === 'string') return item;
  return new TextDecoder().decode(Buffer.concat(prompts[index].map((id) => model.tokenBytes(id))));
}
