/** OpenAI's official client against the served demo model: one feature a test. */
import OpenAI, { APIUserAbortError, BadRequestError, NotFoundError } from 'openai';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { MODEL, startServer, type Started } from './start.js';

let s: Started;
let client: OpenAI;
beforeAll(async () => {
  s = await startServer();
  client = s.client;
});
afterAll(() => s.close());

const TALE = { model: MODEL, prompt: 'Once upon a time', max_tokens: 24, seed: 7 };
const CHAT = {
  model: MODEL,
  messages: [{ role: 'user' as const, content: 'Tell me of a king.' }],
  max_completion_tokens: 24,
  seed: 7,
};

describe('models', () => {
  it('are listed and found by their names', async () => {
    const models = [];
    for await (const model of client.models.list()) models.push(model.id);
    expect(models).toEqual([MODEL]);
    expect(await client.models.retrieve(MODEL)).toMatchObject({ id: MODEL, object: 'model' });
    await expect(client.models.retrieve('nothing')).rejects.toThrow(NotFoundError);
  });
});

describe('completions', () => {
  it('write what the library writes for the same seed', async () => {
    const done = await client.completions.create(TALE);
    const own = await s.model.generate('Once upon a time', { maxTokens: 24, seed: 7 });
    expect(done.choices).toMatchObject([{ index: 0, text: own.text, finish_reason: 'length' }]);
    expect(done.usage).toMatchObject({
      prompt_tokens: own.stats.promptTokens,
      completion_tokens: 24,
      total_tokens: own.stats.promptTokens + 24,
    });
    expect(done.usage?.prompt_tokens_details?.cached_tokens).toBeTypeOf('number');
    expect(done).toMatchObject({ sparsity: { ffn_mode: 'exact' }, timings: { threads: 2 } });
  });

  it('stream the same text, with the usage at the end when asked', async () => {
    const whole = await client.completions.create(TALE);
    const stream = await client.completions.create({
      ...TALE,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = '';
    let finish: string | null = null;
    let usage = null;
    let chunks = 0;
    for await (const chunk of stream) {
      chunks++;
      text += chunk.choices[0]?.text ?? '';
      finish = chunk.choices[0]?.finish_reason ?? finish;
      usage = chunk.usage ?? usage;
    }
    expect(chunks).toBeGreaterThan(3);
    expect(text).toBe(whole.choices[0].text);
    expect(finish).toBe('length');
    expect(usage).toEqual(whole.usage);
  });

  it('give n choices that differ, and the same ones for the same seed', async () => {
    const [a, b] = [
      await client.completions.create({ ...TALE, n: 3 }),
      await client.completions.create({ ...TALE, n: 3 }),
    ];
    expect(new Set(a.choices.map((choice) => choice.text)).size).toBe(3);
    expect(b.choices).toEqual(a.choices);
    expect(a.usage?.completion_tokens).toBe(72);
  });

  it('take several prompts, and token ids', async () => {
    const texts = await client.completions.create({ ...TALE, prompt: ['Once upon a time', 'The wolf'] });
    expect(texts.choices.map((choice) => choice.index)).toEqual([0, 1]);
    const ids = s.model.tokenizer.encode('Once upon a time');
    const one = await client.completions.create({ ...TALE, prompt: ids });
    expect(one.choices[0].text).toBe(texts.choices[0].text);
  });

  it('end before a stop text', async () => {
    const free = await client.completions.create(TALE);
    const stop = free.choices[0].text.slice(8, 12);
    const done = await client.completions.create({ ...TALE, stop: [stop, 'never'] });
    expect(done.choices[0]).toMatchObject({
      text: free.choices[0].text.split(stop)[0],
      finish_reason: 'stop',
    });
  });

  it('echo the prompt', async () => {
    const done = await client.completions.create({ ...TALE, echo: true, max_tokens: 2 });
    expect(done.choices[0].text.startsWith('Once upon a time')).toBe(true);
  });
});

describe('chat', () => {
  it('answers in the template of the server', async () => {
    const done = await client.chat.completions.create(CHAT);
    const own = await s.model.generate('user: Tell me of a king.\nassistant:', {
      maxTokens: 24,
      seed: 7,
      stop: '\nuser:',
    });
    expect(done.choices[0].message).toMatchObject({ role: 'assistant', content: own.text });
    expect(done.object).toBe('chat.completion');
  });

  it('streams the same text in chunks', async () => {
    const whole = await client.chat.completions.create(CHAT);
    const stream = client.chat.completions.stream({ ...CHAT, stream_options: { include_usage: true } });
    const final = await stream.finalChatCompletion();
    expect(final.choices[0].message.content).toBe(whole.choices[0].message.content);
    expect(final.usage).toEqual(whole.usage);
  });

  it('takes content in parts, and developer messages', async () => {
    const parts = await client.chat.completions.create({
      ...CHAT,
      messages: [
        {
          role: 'user',
          content: [
            { type: 'text', text: 'Tell me ' },
            { type: 'text', text: 'of a king.' },
          ],
        },
      ],
    });
    expect(parts.choices).toEqual((await client.chat.completions.create(CHAT)).choices);
    const developer = await client.chat.completions.create({
      ...CHAT,
      messages: [{ role: 'developer', content: 'Be brief.' }, ...CHAT.messages],
    });
    const system = await client.chat.completions.create({
      ...CHAT,
      messages: [{ role: 'system', content: 'Be brief.' }, ...CHAT.messages],
    });
    expect(developer.choices).toEqual(system.choices);
  });

  it('shows the layers while it writes, and of the whole answer at its end, to who asks', async () => {
    const hybrid_infer = { layers: true, measure_recall: true };
    const body = { ...CHAT, n: 2, stream: true as const, hybrid_infer };
    const live: [number, number] = [0, 0];
    const ends: Layer[][] = [];
    let openEnds = 2;
    for await (const chunk of await client.chat.completions.create(body)) {
      const { layers_now: now, layers } = chunk as unknown as LayerFields;
      if (now) {
        expect([openEnds > 0, now.layers.length]).toEqual([true, 4]);
        live[now.index] += now.tokens;
      }
      if (chunk.choices[0]?.finish_reason) openEnds--;
      if (layers) ends.push(layers[0]);
    }
    const generated = CHAT.max_completion_tokens - 1; // the first token comes from the prompt
    expect(live).toEqual([generated, generated]);
    expect(ends).toHaveLength(2);
    expect(ends[0][0]).toMatchObject({ layer: 0, candidates: 1024, gated: expect.any(Number) });
    const whole = await client.chat.completions.create({ ...body, stream: false });
    expect((whole as unknown as LayerFields).layers).toEqual(ends);
  });

  it('says nothing of layers to who does not', async () => {
    const text = await (await s.post('/v1/chat/completions', { ...CHAT, stream: true })).text();
    expect(text).not.toContain('layers');
  });
});

interface Layer {
  layer: number;
  candidates: number;
  gated: number;
}
interface LayerFields {
  layers_now?: { index: number; tokens: number; layers: Layer[] };
  layers?: Layer[][];
}

describe('responses', () => {
  const ASK = { model: MODEL, input: 'Tell me of a king.', max_output_tokens: 16 };

  it('have output text and usage, and say when they were cut', async () => {
    const done = await client.responses.create(ASK);
    expect(done).toMatchObject({
      object: 'response',
      status: 'incomplete',
      incomplete_details: { reason: 'max_output_tokens' },
    });
    expect(done.output_text.length).toBeGreaterThan(0);
    expect(done.usage).toMatchObject({
      output_tokens: 16,
      input_tokens_details: { cached_tokens: expect.any(Number) },
    });
  });

  it('stream typed events whose deltas are the text', async () => {
    const types: string[] = [];
    let text = '';
    let last = '';
    const stream = client.responses.stream(ASK);
    for await (const event of stream) {
      types.push(event.type);
      if (event.type === 'response.output_text.delta') text += event.delta;
      if (event.type === 'response.output_text.done') last = event.text;
    }
    expect(types[0]).toBe('response.created');
    expect(types).toEqual(
      expect.arrayContaining([
        'response.output_item.added',
        'response.content_part.added',
        'response.output_item.done',
      ]),
    );
    expect(types.at(-1)).toBe('response.incomplete');
    expect(text).toBe(last);
    expect((await stream.finalResponse()).output_text).toBe(text);
  });

  it('remember nothing, and say so', async () => {
    await expect(client.responses.create({ ...ASK, previous_response_id: 'resp_1' })).rejects.toThrow(
      /previous_response_id/,
    );
    await expect(client.responses.create({ ...ASK, store: true })).rejects.toThrow(/not stored/);
  });
});

describe('errors', () => {
  it('of the client name the field, in OpenAI’s form', async () => {
    const failing = client.completions.create({ ...TALE, temperature: 3 });
    await expect(failing).rejects.toThrow(BadRequestError);
    await expect(failing).rejects.toMatchObject({
      status: 400,
      param: 'temperature',
      type: 'invalid_request_error',
      code: 'invalid_value',
    });
  });

  it('of a model that is not there are 404', async () => {
    await expect(client.completions.create({ ...TALE, model: 'gpt-4' })).rejects.toMatchObject({
      status: 404,
      code: 'model_not_found',
    });
  });

  it('of a prompt longer than the context are told before any work', async () => {
    await expect(
      client.completions.create({ ...TALE, prompt: 'The king '.repeat(300) }),
    ).rejects.toMatchObject({ status: 400, code: 'context_length_exceeded' });
  });

  it.each([
    ['suffix', { suffix: 'x' }],
    ['best_of', { best_of: 4 }],
    ['unheard_of', { unheard_of: 1 }],
  ])('name %s, which is not supported', async (name, fields) => {
    await expect(client.completions.create({ ...TALE, ...fields } as never)).rejects.toMatchObject({
      status: 400,
      param: name,
    });
  });

  it('name pictures in a conversation', async () => {
    const content = [{ type: 'image_url' as const, image_url: { url: 'data:,' } }];
    await expect(
      client.chat.completions.create({ ...CHAT, messages: [{ role: 'user', content }] }),
    ).rejects.toMatchObject({ status: 400, param: expect.stringContaining('messages.0.content') });
  });
});

describe('abort', () => {
  it('frees the slot, and the next request is served', async () => {
    const stop = new AbortController();
    const stream = await client.completions.create(
      { ...TALE, max_tokens: 250, stream: true },
      { signal: stop.signal },
    );
    const read = async () => {
      for await (const chunk of stream) if (chunk.choices.length > 0) stop.abort();
    };
    await read().catch((error: unknown) => expect(error).toBeInstanceOf(APIUserAbortError));
    expect(
      (await client.completions.create({ ...TALE, max_tokens: 4 })).choices[0].text.length,
    ).toBeGreaterThan(0);
    const [served] = s.service.models.values();
    expect(served.admission.running).toBe(0);
  });
});

describe('embeddings', () => {
  it('are unit vectors of the hidden size, in either encoding, the same for text and its ids', async () => {
    const input = ['The king sleeps.', 'The king is asleep.', 'A wolf ran through the forest'];
    const floats = await client.embeddings.create({ model: MODEL, input, encoding_format: 'float' });
    const base64 = await client.embeddings.create({ model: MODEL, input }); // the client decodes
    const ids = await client.embeddings.create({ model: MODEL, input: s.model.tokenizer.encode(input[0]) });
    const [a, b, c] = floats.data.map((d) => d.embedding);
    const dot = (x: number[], y: number[]): number => x.reduce((sum, v, i) => sum + v * y[i], 0);
    expect(a).toHaveLength(s.model.config.hiddenSize);
    expect(dot(a, a)).toBeCloseTo(1, 5);
    expect(dot(a, b)).toBeGreaterThan(dot(a, c));
    expect(base64.data.map((d) => Array.from(d.embedding))).toEqual(floats.data.map((d) => d.embedding));
    expect(dot(ids.data[0].embedding, a)).toBeCloseTo(1, 5);
    expect(floats.usage.prompt_tokens).toBe(floats.usage.total_tokens);
  });

  it('of another size, or of nothing, are refused', async () => {
    await expect(client.embeddings.create({ model: MODEL, input: 'x', dimensions: 3 })).rejects.toMatchObject(
      {
        status: 400,
        param: 'dimensions',
      },
    );
    await expect(client.embeddings.create({ model: MODEL, input: '' })).rejects.toMatchObject({
      status: 400,
    });
  });
});

describe('what was computed before', () => {
  it('is not computed again: cached tokens of a repeated prompt', async () => {
    const prompt = 'There was once a king who had three daughters, and he said to them: '.repeat(6);
    await client.completions.create({ ...TALE, prompt, max_tokens: 2 });
    const again = await client.completions.create({ ...TALE, prompt, max_tokens: 2 });
    const { prompt_tokens: all, prompt_tokens_details: details } = again.usage!;
    expect(details!.cached_tokens).toBeGreaterThan(all / 2);
    expect(details!.cached_tokens).toBeLessThan(all);
  });
});
