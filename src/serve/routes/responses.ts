/** POST /v1/responses: OpenAI's newer API, without its memory: nothing is stored. */
import { randomUUID } from 'node:crypto';
import { z } from 'zod';
import { detailsOf, usageOf } from '../account.js';
import { invalidRequest } from '../api-error.js';
import type { BackendResult } from '../backend.js';
import { parseBody, readJson } from '../body.js';
import {
  constraintOf,
  functionFields,
  templateTools,
  toTemplateMessages,
  type RequestMessage,
  type ResponseFormat,
  type ToolChoice,
} from '../chat-request.js';
import { functionName, harmlessFields, recallField, maybe, samplingFields, schemaObject } from '../fields.js';
import { Job, samplingOf, sequencesOf } from '../job.js';
import * as limits from '../limits.js';
import type { ServeContext, Service } from '../service.js';
import { eventStream } from '../sse.js';
import { ToolStream, type ToolCall } from '../tool-format.js';

const textPart = z.strictObject({
  type: z.enum(['input_text', 'output_text', 'text'], 'only text is supported'),
  text: z.string(),
  annotations: maybe(z.array(z.unknown()).max(0)),
  logprobs: maybe(z.array(z.unknown()).max(0)),
});
const content = z.union([
  z.string(),
  z
    .array(textPart)
    .max(limits.MAX_MESSAGES)
    .transform((parts) => parts.map((part) => part.text).join('')),
]);
const identity = { id: maybe(z.string().max(256)), status: maybe(z.string().max(64)) };

const item = z.union([
  z.strictObject({
    ...identity,
    type: maybe(z.literal('message')),
    role: z.enum(['system', 'developer', 'user', 'assistant']),
    content,
  }),
  z.strictObject({
    ...identity,
    type: z.literal('function_call'),
    call_id: z.string().max(256),
    name: functionName,
    arguments: z.string(),
  }),
  z.strictObject({
    ...identity,
    type: z.literal('function_call_output'),
    call_id: z.string().max(256),
    output: content,
  }),
]);

const { temperature, top_p, top_k, min_p, seed, stream, model: modelField } = samplingFields;
export const schema = z.strictObject({
  ...harmlessFields,
  model: modelField,
  temperature,
  top_p,
  top_k,
  min_p,
  seed,
  stream,
  input: z.union([z.string(), z.array(item).min(1).max(limits.MAX_MESSAGES)]),
  instructions: maybe(z.string()),
  max_output_tokens: maybe(z.number().int().min(1)),
  text: maybe(
    z.strictObject({
      format: maybe(
        z.discriminatedUnion('type', [
          z.strictObject({ type: z.literal('text') }),
          z.strictObject({ type: z.literal('json_object') }),
          z.strictObject({
            type: z.literal('json_schema'),
            name: functionName,
            description: maybe(z.string()),
            schema: schemaObject,
            strict: maybe(z.boolean()),
          }),
        ]),
      ),
    }),
  ),
  tools: maybe(
    z
      .array(
        z.strictObject({
          type: z.literal('function', 'only function tools are supported'),
          ...functionFields,
        }),
      )
      .max(limits.MAX_TOOLS),
  ),
  tool_choice: maybe(
    z.union([
      z.enum(['none', 'auto', 'required']),
      z.strictObject({ type: z.literal('function'), name: functionName }),
    ]),
  ),
  parallel_tool_calls: maybe(z.boolean()),
  truncation: maybe(z.literal('disabled', 'prompts are not truncated: expected disabled')),
  stream_options: maybe(z.strictObject({ include_obfuscation: maybe(z.literal(false)) })),
  hybrid_infer: recallField,
});
type Body = z.infer<typeof schema>;

export async function responses(c: ServeContext, service: Service): Promise<Response> {
  const body = parseBody(schema, await readJson(c, service.limits.bodyBytes));
  const model = service.model(body.model);
  c.set('about', { model: model.name });
  const tools = body.tools ?? [];
  const choice: ToolChoice =
    typeof body.tool_choice === 'object' ? { name: body.tool_choice.name } : (body.tool_choice ?? 'auto');
  const { grammar, tools: calling } = constraintOf(model, tools, choice, formatOf(body));
  const sampling = samplingOf(model, body, { value: body.max_output_tokens, field: 'max_output_tokens' });
  const messages = toTemplateMessages(messagesOf(body));
  const prompt = await model.encode({
    kind: 'chat',
    conversation: { messages, tools: calling ? templateTools(tools) : undefined },
  });
  const job = await Job.start({
    model,
    sequences: sequencesOf([prompt], 1, body.seed),
    sampling: {
      ...sampling,
      stop: [...sampling.stop!, ...model.chatStops],
      measureRecall: body.hybrid_infer?.measure_recall,
    },
    mask: grammar ? () => model.mask(grammar) : undefined,
    client: service.clientSignal(c),
    limits: service.limits,
    metrics: service.metrics,
  });
  const answer = new Answer(body, model.name, calling ? new ToolStream(model.toolFormat!) : null);

  if (!body.stream) {
    const [result] = await job.run();
    answer.push(result.text);
    const done = answer.finish(result, prompt.length);
    c.set('about', { model: model.name, usage: done.usage });
    return c.json(done);
  }
  return eventStream(c, service.limits.stallMs, job.stop, async (events) => {
    let number = 0;
    const send = (type: string, fields: object): void =>
      events.send({ type, sequence_number: number++, ...fields }, type);
    answer.onEvent = send;
    send('response.created', { response: answer.describe('in_progress') });
    send('response.in_progress', { response: answer.describe('in_progress') });
    const [result] = await job.run({ onText: (_, piece) => answer.push(piece) });
    const done = answer.finish(result, prompt.length);
    send(done.status === 'completed' ? 'response.completed' : 'response.incomplete', { response: done });
  });
}

interface OutputItem {
  id: string;
  type: 'message' | 'function_call';
  [field: string]: unknown;
}

/** The response object as it grows, and the events that tell of it. */
class Answer {
  onEvent: (type: string, fields: object) => void = () => {};
  private readonly id = `resp_${randomUUID()}`;
  private readonly createdAt = Math.floor(Date.now() / 1000);
  private readonly messageId = `msg_${randomUUID()}`;
  private readonly output: OutputItem[] = [];
  private text = '';

  constructor(
    private readonly body: Body,
    private readonly model: string,
    private readonly calls: ToolStream | null,
  ) {}

  push(piece: string): void {
    this.addText(this.calls ? this.calls.push(piece) : piece);
  }

  finish(result: BackendResult, promptTokens: number) {
    const { text, calls } = this.calls?.end() ?? { text: '', calls: [] };
    this.addText(text);
    const cut = result.stopReason === 'length';
    if (this.output.length > 0 || calls.length === 0) this.endMessage(cut ? 'incomplete' : 'completed');
    calls.forEach((call) => this.addCall(call));
    const usage = usageOf([promptTokens], [result]);
    return {
      ...this.describe(cut ? 'incomplete' : 'completed'),
      incomplete_details: cut ? { reason: 'max_output_tokens' } : null,
      output_text: this.text,
      usage: {
        input_tokens: usage.prompt_tokens,
        input_tokens_details: usage.prompt_tokens_details,
        output_tokens: usage.completion_tokens,
        output_tokens_details: { reasoning_tokens: 0 },
        total_tokens: usage.total_tokens,
      },
      ...detailsOf([result]),
    };
  }

  describe(status: 'in_progress' | 'completed' | 'incomplete') {
    const { body } = this;
    return {
      id: this.id,
      object: 'response',
      created_at: this.createdAt,
      status,
      error: null,
      incomplete_details: null as { reason: string } | null,
      instructions: body.instructions ?? null,
      max_output_tokens: body.max_output_tokens ?? null,
      metadata: body.metadata ?? {},
      model: this.model,
      output: this.output.map((entry) => ({ ...entry })),
      parallel_tool_calls: body.parallel_tool_calls ?? true,
      previous_response_id: null,
      store: false,
      temperature: body.temperature ?? null,
      text: { format: body.text?.format ?? { type: 'text' } },
      tool_choice: body.tool_choice ?? 'auto',
      tools: body.tools ?? [],
      top_p: body.top_p ?? null,
      truncation: 'disabled',
    };
  }

  private addText(piece: string): void {
    if (piece === '') return;
    if (this.text === '') this.beginMessage();
    this.text += piece;
    this.onEvent('response.output_text.delta', {
      ...this.place,
      content_index: 0,
      delta: piece,
      logprobs: [],
    });
  }

  private readonly place = { item_id: this.messageId, output_index: 0 };

  private beginMessage(): void {
    this.output.push({
      id: this.messageId,
      type: 'message',
      status: 'in_progress',
      role: 'assistant',
      content: [],
    });
    this.onEvent('response.output_item.added', { output_index: 0, item: this.output[0] });
    this.onEvent('response.content_part.added', { ...this.place, content_index: 0, part: part('') });
  }

  private endMessage(status: 'completed' | 'incomplete'): void {
    if (this.output.length === 0) this.beginMessage();
    this.onEvent('response.output_text.done', {
      ...this.place,
      content_index: 0,
      text: this.text,
      logprobs: [],
    });
    this.onEvent('response.content_part.done', { ...this.place, content_index: 0, part: part(this.text) });
    this.output[0] = { ...this.output[0], status, content: [part(this.text)] };
    this.onEvent('response.output_item.done', { output_index: 0, item: this.output[0] });
  }

  private addCall(call: ToolCall): void {
    const output_index = this.output.length;
    const id = `fc_${randomUUID()}`;
    const entry = {
      id,
      type: 'function_call' as const,
      status: 'completed',
      call_id: `call_${randomUUID()}`,
      ...call,
    };
    this.onEvent('response.output_item.added', {
      output_index,
      item: { ...entry, status: 'in_progress', arguments: '' },
    });
    this.onEvent('response.function_call_arguments.delta', {
      item_id: id,
      output_index,
      delta: call.arguments,
    });
    this.onEvent('response.function_call_arguments.done', {
      item_id: id,
      output_index,
      name: call.name,
      arguments: call.arguments,
    });
    this.output.push(entry);
    this.onEvent('response.output_item.done', { output_index, item: entry });
  }
}

const part = (text: string): object => ({ type: 'output_text', text, annotations: [], logprobs: [] });

function messagesOf(body: Body): RequestMessage[] {
  const messages: RequestMessage[] =
    body.instructions === undefined ? [] : [{ role: 'system', content: body.instructions, name: undefined }];
  if (typeof body.input === 'string')
    return [...messages, { role: 'user', content: body.input, name: undefined }];
  for (const entry of body.input) {
    if (entry.type === 'function_call_output')
      messages.push({ role: 'tool', content: entry.output, tool_call_id: entry.call_id });
    else if (entry.type === 'function_call') {
      const call = {
        id: entry.call_id,
        type: 'function' as const,
        function: { name: entry.name, arguments: entry.arguments },
      };
      messages.push({
        role: 'assistant',
        content: undefined,
        name: undefined,
        refusal: undefined,
        tool_calls: [call],
      });
    } else if (entry.role === 'assistant') {
      messages.push({
        role: 'assistant',
        content: entry.content,
        name: undefined,
        refusal: undefined,
        tool_calls: undefined,
      });
    } else messages.push({ role: entry.role, content: entry.content, name: undefined });
  }
  if (messages.length === 0) throw invalidRequest('input: it is empty', 'input');
  return messages;
}

function formatOf(body: Body): ResponseFormat {
  const format = body.text?.format;
  if (format?.type !== 'json_schema') return format ?? { type: 'text' };
  return { type: 'json_schema', schema: format.schema, param: 'text.format.schema' };
}
