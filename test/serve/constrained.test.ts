/** Formats, tools, log probabilities, biases and penalties, by OpenAI's client against the demo model. */
import OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { MODEL, startServer, type Started } from './start.js';

let s: Started;
let client: OpenAI;
beforeAll(async () => {
  s = await startServer();
  client = s.client;
});
afterAll(() => s.close());

const CHAT = {
  model: MODEL,
  messages: [{ role: 'user' as const, content: 'A king.' }],
  max_completion_tokens: 200,
  seed: 3,
};

const KING = {
  type: 'object',
  properties: {
    name: { type: 'string', maxLength: 12 },
    age: { type: 'integer', minimum: 1, maximum: 99 },
    kind: { enum: ['good', 'bad'] },
  },
  required: ['name', 'age', 'kind'],
  additionalProperties: false,
};
const schemaFormat = (schema: Record<string, unknown>, strict = true) =>
  ({ type: 'json_schema', json_schema: { name: 'king', schema, strict } }) as const;

const tool = (name: string, parameters: Record<string, unknown> = KING) =>
  ({ type: 'function', function: { name, description: 'A king.', parameters, strict: true } }) as const;

describe('response_format', () => {
  it.each([1, 2, 3])('json_schema: the answer satisfies the schema (seed %i)', async (seed) => {
    const done = await client.chat.completions.create({ ...CHAT, seed, response_format: schemaFormat(KING) });
    const king = JSON.parse(done.choices[0].message.content!) as { name: string; age: number; kind: string };
    expect(Object.keys(king)).toEqual(['name', 'age', 'kind']);
    expect(king.age).toBeGreaterThanOrEqual(1);
    expect(king.age).toBeLessThanOrEqual(99);
    expect(['good', 'bad']).toContain(king.kind);
    expect(done.choices[0].finish_reason).toBe('stop');
  });

  it('json_object: the answer is an object', async () => {
    const done = await client.chat.completions.create({
      ...CHAT,
      temperature: 0,
      logit_bias: {},
      response_format: { type: 'json_object' },
    });
    const { content } = done.choices[0].message;
    expect(content!.startsWith('{')).toBe(true);
    if (done.choices[0].finish_reason === 'stop') expect(JSON.parse(content!)).toBeTypeOf('object');
  });

  it('streams what it answers in one piece', async () => {
    const ask = { ...CHAT, response_format: schemaFormat(KING) };
    const whole = await client.chat.completions.create(ask);
    const streamed = await client.chat.completions.stream(ask).finalChatCompletion();
    expect(streamed.choices[0].message.content).toBe(whole.choices[0].message.content);
  });

  it('holds for every choice', async () => {
    const done = await client.chat.completions.create({ ...CHAT, n: 3, response_format: schemaFormat(KING) });
    for (const { message } of done.choices) expect(JSON.parse(message.content!)).toHaveProperty('kind');
  });

  it('refuses what it cannot enforce, by keyword and place', async () => {
    const schema = { type: 'object', properties: { tags: { type: 'array', uniqueItems: true } } };
    await expect(
      client.chat.completions.create({ ...CHAT, response_format: schemaFormat(schema) }),
    ).rejects.toMatchObject({
      status: 400,
      code: 'invalid_schema',
      message: expect.stringContaining('#/properties/tags: uniqueItems'),
    });
  });

  it('is understood by the Responses API too', async () => {
    const done = await client.responses.create({
      model: MODEL,
      input: 'A king.',
      text: { format: { type: 'json_schema', name: 'king', schema: KING, strict: true } },
    });
    expect(done.status).toBe('completed');
    expect(JSON.parse(done.output_text)).toHaveProperty('age');
  });
});

describe('tools', () => {
  it('a required call is made, to one of the tools, with arguments of its schema', async () => {
    const done = await client.chat.completions.create({
      ...CHAT,
      tools: [tool('crown'), tool('depose')],
      tool_choice: 'required',
    });
    const [choice] = done.choices;
    expect(choice.finish_reason).toBe('tool_calls');
    expect(choice.message.content).toBeNull();
    const call = choice.message.tool_calls![0] as OpenAI.ChatCompletionMessageFunctionToolCall;
    expect(['crown', 'depose']).toContain(call.function.name);
    expect(JSON.parse(call.function.arguments)).toHaveProperty('kind');
  });

  it('a named one is the one called, and streams as a call', async () => {
    const stream = client.chat.completions.stream({
      ...CHAT,
      tools: [tool('crown'), tool('depose')],
      tool_choice: { type: 'function', function: { name: 'depose' } },
    });
    const final = await stream.finalChatCompletion();
    const call = final.choices[0].message.tool_calls![0] as OpenAI.ChatCompletionMessageFunctionToolCall;
    expect(call.function.name).toBe('depose');
    expect(JSON.parse(call.function.arguments)).toHaveProperty('age');
  });

  it('a call and its result go back into the conversation', async () => {
    const done = await client.chat.completions.create({
      ...CHAT,
      max_completion_tokens: 8,
      messages: [
        ...CHAT.messages,
        {
          role: 'assistant',
          content: null,
          tool_calls: [
            { id: 'c1', type: 'function', function: { name: 'crown', arguments: '{"name":"X"}' } },
          ],
        },
        { role: 'tool', tool_call_id: 'c1', content: 'crowned' },
      ],
    });
    expect(done.choices[0].message.content!.length).toBeGreaterThan(0);
  });

  it('left to the model, an answer without a call is text', async () => {
    const done = await client.chat.completions.create({
      ...CHAT,
      max_completion_tokens: 12,
      tools: [tool('crown')],
    });
    expect(done.choices[0].message.tool_calls).toBeUndefined();
    expect(done.choices[0].message.content!.length).toBeGreaterThan(0);
  });

  it('are called by the Responses API in its own form', async () => {
    const done = await client.responses.create({
      model: MODEL,
      input: 'A king.',
      tools: [{ type: 'function', name: 'crown', parameters: KING, strict: true }],
      tool_choice: 'required',
    });
    const call = done.output[0] as OpenAI.Responses.ResponseFunctionToolCall;
    expect(call).toMatchObject({ type: 'function_call', name: 'crown', status: 'completed' });
    expect(JSON.parse(call.arguments)).toHaveProperty('name');
  });

  it('that are not offered cannot be chosen', async () => {
    const failing = client.chat.completions.create({
      ...CHAT,
      tools: [tool('crown')],
      tool_choice: { type: 'function', function: { name: 'depose' } },
    });
    await expect(failing).rejects.toMatchObject({ status: 400, param: 'tool_choice' });
  });
});

describe('logprobs', () => {
  it('of chat: every token with its alternatives; probabilities are those of the logits', async () => {
    const done = await client.chat.completions.create({
      ...CHAT,
      temperature: 0,
      max_completion_tokens: 6,
      logprobs: true,
      top_logprobs: 3,
    });
    const content = done.choices[0].logprobs!.content!;
    expect(content.map((t) => t.token).join('')).toBe(done.choices[0].message.content);
    for (const token of content) {
      expect(token.top_logprobs).toHaveLength(3);
      expect(token.top_logprobs[0].token).toBe(token.token); // greedy: the likeliest
      expect(Math.exp(token.logprob)).toBeLessThanOrEqual(1);
      expect(Buffer.from(token.bytes!).toString()).toBe(token.token);
    }
  });

  it('of completions: with offsets into the text', async () => {
    const done = await client.completions.create({
      model: MODEL,
      prompt: 'The king',
      max_tokens: 5,
      seed: 1,
      logprobs: 2,
    });
    const {
      tokens,
      token_logprobs: probs,
      text_offset: offsets,
      top_logprobs: tops,
    } = done.choices[0].logprobs!;
    expect(tokens!.join('')).toBe(done.choices[0].text);
    expect(probs).toHaveLength(tokens!.length);
    offsets!.forEach((at, i) => expect(done.choices[0].text.slice(at).startsWith(tokens![i])).toBe(true));
    expect(Object.keys(tops![0])).toHaveLength(2);
  });

  it('stream beside the text they belong to', async () => {
    const stream = client.chat.completions.stream({ ...CHAT, max_completion_tokens: 6, logprobs: true });
    const final = await stream.finalChatCompletion();
    expect(final.choices[0].logprobs!.content!.map((t) => t.token).join('')).toBe(
      final.choices[0].message.content,
    );
  });
});

describe('biases and penalties', () => {
  it('logit_bias forbids and forces tokens', async () => {
    const ask = { model: MODEL, prompt: 'The king', max_tokens: 4, temperature: 0 };
    const [first] = (await client.completions.create({ ...ask, logprobs: 0 })).choices[0].logprobs!.tokens!;
    const id = s.model.tokenizer.encode(first, { addSpecial: false })[0];
    const without = await client.completions.create({ ...ask, logit_bias: { [id]: -100 } });
    expect(without.choices[0].text.startsWith(first)).toBe(false);
    const x = s.model.tokenizer.encode('x', { addSpecial: false })[0];
    expect((await client.completions.create({ ...ask, logit_bias: { [x]: 100 } })).choices[0].text).toBe(
      'xxxx',
    );
  });

  it('a frequency penalty ends repetitions', async () => {
    const x = s.model.tokenizer.encode('x', { addSpecial: false })[0];
    const ask = { model: MODEL, prompt: 'The king', max_tokens: 8, temperature: 0, logit_bias: { [x]: 12 } };
    const free = await client.completions.create(ask);
    const less = await client.completions.create({ ...ask, frequency_penalty: 2 });
    const count = (text: string): number => text.split('x').length - 1;
    expect(count(less.choices[0].text)).toBeLessThan(count(free.choices[0].text));
  });
});
