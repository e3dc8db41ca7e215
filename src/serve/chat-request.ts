/** Conversations, tools and response formats as requests describe them; shared by chat and responses. */
import { z } from 'zod';
import { anyObject, compileSchema, SchemaError, type Node } from '../constrain/index.js';
import { isObject } from '../io/strict-json.js';
import type { ChatMessage } from '../model/chat.js';
import { invalidRequest, notSupported } from './api-error.js';
import { functionName, maybe, schemaObject, textContent } from './fields.js';
import type { ServedModel } from './served-model.js';
import { toolGrammar, type Tool } from './tool-format.js';

const toolCall = z.strictObject({
  id: z.string().max(256),
  type: z.literal('function'),
  function: z.strictObject({ name: functionName, arguments: z.string() }),
});

export const messageSchema = z.discriminatedUnion('role', [
  z.strictObject({
    role: z.enum(['system', 'developer']),
    content: textContent,
    name: maybe(z.string().max(256)),
  }),
  z.strictObject({ role: z.literal('user'), content: textContent, name: maybe(z.string().max(256)) }),
  z.strictObject({
    role: z.literal('assistant'),
    content: maybe(textContent),
    name: maybe(z.string().max(256)),
    refusal: maybe(z.string()),
    tool_calls: maybe(z.array(toolCall).min(1).max(128)),
  }),
  z.strictObject({ role: z.literal('tool'), content: textContent, tool_call_id: z.string().max(256) }),
]);
export type RequestMessage = z.infer<typeof messageSchema>;

/** As templates expect them: no null, arguments as objects, `developer` under its older name. */
export function toTemplateMessages(messages: readonly RequestMessage[]): ChatMessage[] {
  return messages.map((message, i) => {
    const content = message.content ?? '';
    if (message.role === 'tool') return { role: 'tool', content, tool_call_id: message.tool_call_id };
    const role = message.role === 'developer' ? 'system' : message.role;
    if (message.role !== 'assistant' || !message.tool_calls) return { role, content };
    const calls = message.tool_calls.map(({ id, type, function: f }) => ({
      id,
      type,
      function: { name: f.name, arguments: parseArguments(f.arguments, i) },
    }));
    return { role, content, tool_calls: calls };
  });
}

function parseArguments(text: string, index: number): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw invalidRequest(
      `messages.${index}.tool_calls: arguments are not JSON`,
      `messages.${index}.tool_calls`,
    );
  }
}

export type ResponseFormat =
  { type: 'text' } | { type: 'json_object' } | { type: 'json_schema'; schema: unknown; param: string };
export type ToolChoice = 'none' | 'auto' | 'required' | { name: string };

/** What constrains an answer, and whether calls are looked for in it. */
export interface Constraint {
  grammar: Node | null;
  tools: boolean;
}

/** @throws ApiError 400 when the combination, a tool or the schema is not supported */
export function constraintOf(
  model: ServedModel,
  tools: readonly Tool[],
  choice: ToolChoice,
  format: ResponseFormat,
): Constraint {
  if (tools.length > 0 && choice !== 'none') {
    if (format.type !== 'text')
      throw notSupported('tools beside a response format are not supported', 'response_format');
    return { grammar: toolsGrammar(model, tools, choice), tools: true };
  }
  if (choice === 'required' || typeof choice === 'object')
    throw invalidRequest('tool_choice: there are no tools', 'tool_choice');
  if (format.type === 'text') return { grammar: null, tools: false };
  if (format.type === 'json_object') return { grammar: anyObject(), tools: false };
  return { grammar: withParam(format.param, () => compileSchema(format.schema)), tools: false };
}

function toolsGrammar(model: ServedModel, tools: readonly Tool[], choice: Exclude<ToolChoice, 'none'>): Node {
  const { toolFormat } = model;
  if (!toolFormat)
    throw notSupported(
      'tools: this model’s chat template has no tools, or in a form that is not known',
      'tools',
    );
  const offered = typeof choice === 'object' ? tools.filter((tool) => tool.name === choice.name) : tools;
  if (offered.length === 0) throw invalidRequest('tool_choice: there is no such tool', 'tool_choice');
  return withParam('tools', () => toolGrammar(toolFormat, offered, choice !== 'auto'));
}

function withParam<T>(param: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof SchemaError)) throw error;
    throw invalidRequest(
      `${param}: ${error.path ? `${error.path}: ` : ''}${error.message}`,
      param,
      'invalid_schema',
    );
  }
}

/** Fields of a function tool, in either API. */
export const functionFields = {
  name: functionName,
  description: maybe(z.string()),
  parameters: maybe(schemaObject),
  strict: maybe(z.boolean()),
};

/** Tools in the form that templates read. */
export const templateTools = (tools: readonly Tool[]): object[] =>
  tools.map(({ name, description, parameters }) => ({
    type: 'function',
    // Templates reach for `parameters.properties` without asking whether it is there.
    function: {
      name,
      description: description ?? '',
      parameters: { type: 'object', properties: {}, ...(isObject(parameters) ? parameters : {}) },
    },
  }));
