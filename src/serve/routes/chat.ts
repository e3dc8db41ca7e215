/** POST /v1/chat/completions: a conversation goes on. */
import { randomUUID } from 'node:crypto';
import { z } from 'zod';
import { detailsOf, layersNow, usageOf } from '../account.js';
import { invalidRequest, notSupported } from '../api-error.js';
import type { BackendResult, TokenLogprob } from '../backend.js';
import { parseBody, readJson } from '../body.js';
import {
  constraintOf,
  functionFields,
  messageSchema,
  templateTools,
  toTemplateMessages,
  type ResponseFormat,
  type ToolChoice,
} from '../chat-request.js';
import { functionName, harmlessFields, layersField, maybe, samplingFields, schemaObject } from '../fields.js';
import { Job, samplingOf, sequencesOf } from '../job.js';
import * as limits from '../limits.js';
import { chatLogprobs } from '../logprobs.js';
import type { ServeContext, Service } from '../service.js';
import { eventStream } from '../sse.js';
import { ToolStream, type ToolCall } from '../tool-format.js';

export const schema = z.strictObject({
  ...samplingFields,
  ...harmlessFields,
  messages: z.array(messageSchema).min(1).max(limits.MAX_MESSAGES),
  /** The older name of the next. */
  max_tokens: maybe(z.number().int().min(1)),
  max_completion_tokens: maybe(z.number().int().min(1)),
  logprobs: maybe(z.boolean()),
  top_logprobs: maybe(z.number().int().min(0).max(limits.MAX_TOP_LOGPROBS)),
  response_format: maybe(
    z.discriminatedUnion('type', [
      z.strictObject({ type: z.literal('text') }),
      z.strictObject({ type: z.literal('json_object') }),
      z.strictObject({
        type: z.literal('json_schema'),
        json_schema: z.strictObject({
          name: functionName,
          description: maybe(z.string()),
          schema: schemaObject,
          strict: maybe(z.boolean()),
        }),
      }),
    ]),
  ),
  tools: maybe(
    z
      .array(z.strictObject({ type: z.literal('function'), function: z.strictObject(functionFields) }))
      .max(limits.MAX_TOOLS),
  ),
  tool_choice: maybe(
    z.union([
      z.enum(['none', 'auto', 'required']),
      z.strictObject({ type: z.literal('function'), function: z.strictObject({ name: functionName }) }),
    ]),
  ),
  /** At most one call an answer is made, whatever is allowed. */
  parallel_tool_calls: maybe(z.boolean()),
  modalities: maybe(z.array(z.literal('text', 'only text is supported')).max(1)),
  hybrid_infer: layersField,
});

type Body = z.infer<typeof schema>;

export async function chat(c: ServeContext, service: Service): Promise<Response> {
  const body = parseBody(schema, await readJson(c, service.limits.bodyBytes));
  const model = service.model(body.model);
  c.set('about', { model: model.name });
  const tools = (body.tools ?? []).map((tool) => tool.function);
  const choice: ToolChoice =
    typeof body.tool_choice === 'object' ? body.tool_choice.function : (body.tool_choice ?? 'auto');
  const constraint = constraintOf(model, tools, choice, formatOf(body));
  const top = logprobsOf(body);
  const n = body.n ?? 1;
  const withLayers = body.hybrid_infer?.layers ?? false;
  if (n > service.limits.choices)
    throw invalidRequest(`n: ${n} choices, at most ${service.limits.choices}`, 'n', 'invalid_value');
  const sampling = samplingOf(model, body, maxTokensOf(body));
  const prompt = await model.encode({
    kind: 'chat',
    conversation: {
      messages: toTemplateMessages(body.messages),
      tools: constraint.tools ? templateTools(tools) : undefined,
    },
  });
  const { grammar } = constraint;
  const job = await Job.start({
    model,
    sequences: sequencesOf([prompt], n, body.seed),
    sampling: {
      ...sampling,
      stop: [...sampling.stop!, ...model.chatStops],
      logprobs: top,
      measureRecall: body.hybrid_infer?.measure_recall,
    },
    mask: grammar ? () => model.mask(grammar) : undefined,
    client: service.clientSignal(c),
    limits: service.limits,
    metrics: service.metrics,
  });
  const head = { id: `chatcmpl-${randomUUID()}`, created: Math.floor(Date.now() / 1000), model: model.name };
  const usage = (results: BackendResult[]) => usageOf([prompt.length], results);
  const tokens: TokenLogprob[][] = Array.from({ length: n }, () => []);
  const onToken =
    top === undefined ? undefined : (index: number, token: TokenLogprob) => void tokens[index].push(token);
  const streams = tokens.map(() => (constraint.tools ? new ToolStream(model.toolFormat!) : null));

  if (!body.stream) {
    const results = await job.run({ onToken });
    c.set('about', { model: model.name, usage: usage(results) });
    const choices = results.map((result, index) => {
      const { text, calls } = splitCalls(streams[index], result.text);
      const message = {
        role: 'assistant',
        content: calls.length > 0 && text === '' ? null : text,
        refusal: null,
        ...(calls.length > 0 ? { tool_calls: calls.map(callObject) } : {}),
      };
      const logprobs = onToken ? chatLogprobs(model, tokens[index]) : null;
      return { index, message, logprobs, finish_reason: calls.length > 0 ? 'tool_calls' : result.stopReason };
    });
    return c.json({
      ...head,
      object: 'chat.completion',
      choices,
      usage: usage(results),
      ...detailsOf(results, withLayers),
    });
  }

  return eventStream(c, service.limits.stallMs, job.stop, async (events) => {
    const withUsage = body.stream_options?.include_usage ?? false;
    const object = 'chat.completion.chunk';
    const send = (fields: object): void =>
      events.send({ ...head, object, ...(withUsage ? { usage: null } : {}), ...fields });
    const delta = (index: number, part: object, finish: string | null = null): object => {
      const logprobs = onToken && tokens[index].length > 0 ? chatLogprobs(model, tokens[index]) : null;
      tokens[index] = [];
      return { choices: [{ index, delta: part, logprobs, finish_reason: finish }] };
    };
    tokens.forEach((_, index) => send(delta(index, { role: 'assistant', content: '' })));
    const results = await job.run({
      onToken,
      onText: (index, piece) => {
        const text = streams[index] ? streams[index].push(piece) : piece;
        if (text !== '') send(delta(index, { content: text }));
      },
      onLayers: withLayers
        ? (index, layers, count) => send({ choices: [], ...layersNow(index, layers, count) })
        : undefined,
    });
    results.forEach((result, index) => {
      const { text, calls } = streams[index]?.end() ?? { text: '', calls: [] };
      if (text !== '') send(delta(index, { content: text }));
      calls.forEach((call, i) => send(delta(index, { tool_calls: [{ index: i, ...callObject(call) }] })));
      send({
        ...delta(index, {}, calls.length > 0 ? 'tool_calls' : result.stopReason),
        ...detailsOf([result], withLayers),
      });
    });
    if (withUsage) events.send({ ...head, object, choices: [], usage: usage(results) });
    events.done();
  });
}

function splitCalls(stream: ToolStream | null, all: string): { text: string; calls: ToolCall[] } {
  if (!stream) return { text: all, calls: [] };
  const before = stream.push(all);
  const { text, calls } = stream.end();
  return { text: before + text, calls };
}

const callObject = (call: ToolCall): object => ({
  id: `call_${randomUUID()}`,
  type: 'function',
  function: call,
});

function formatOf({ response_format: format }: Body): ResponseFormat {
  if (format?.type !== 'json_schema') return format ?? { type: 'text' };
  return {
    type: 'json_schema',
    schema: format.json_schema.schema,
    param: 'response_format.json_schema.schema',
  };
}

function logprobsOf(body: Body): number | undefined {
  if (body.logprobs) return body.top_logprobs ?? 0;
  if (body.top_logprobs) throw invalidRequest('top_logprobs: logprobs must be true', 'top_logprobs');
  return undefined;
}

function maxTokensOf(body: Body): { value: number | undefined; field: string } {
  const { max_tokens: old, max_completion_tokens: value } = body;
  if (old !== undefined && value !== undefined && old !== value)
    throw notSupported('max_tokens and max_completion_tokens contradict each other', 'max_tokens');
  return value !== undefined
    ? { value, field: 'max_completion_tokens' }
    : { value: old, field: 'max_tokens' };
}
