/** BAD-INPUTS S1 to S8: what breaks other servers is a 4xx in OpenAI's form within a second, and this one lives. */
import { gzipSync } from 'node:zlib';
import { connect, type Socket } from 'node:net';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { postHead, raw } from './raw.js';
import { MODEL, startServer, type Started } from './start.js';

let s: Started;
beforeAll(async () => {
  s = await startServer({ limits: { stallMs: 500, arrivalMs: 3000 } });
});
afterAll(() => s.close());
afterEach(async () => {
  const done = await s.client.completions.create({
    model: MODEL,
    prompt: 'The king',
    max_tokens: 2,
    seed: 1,
  });
  expect(done.choices[0].text.length).toBeGreaterThan(0);
});

const COMPLETIONS = '/v1/completions';
const ask = (fields: object): object => ({ model: MODEL, prompt: 'x', max_tokens: 1, ...fields });
async function refused(
  body: unknown,
  status: number,
  message: RegExp,
  headers: Record<string, string> = {},
  path = COMPLETIONS,
) {
  const response = await s.post(path, body, headers);
  const { error } = (await response.json()) as {
    error: { message: string; type: string; param: unknown; code: unknown };
  };
  expect([response.status, error.message]).toEqual([status, expect.stringMatching(message)]);
  expect(Object.keys(error)).toEqual(['message', 'type', 'param', 'code']);
}

describe('a body', () => {
  it('over the limit is refused, by its length or as it comes', async () => {
    await refused(JSON.stringify(ask({ prompt: 'x'.repeat(1 << 20) })), 413, /larger than 1048576 bytes/);
    const chunk = `10000\r\n${'x'.repeat(0x10000)}\r\n`;
    const answer = await raw(s.url, (socket) => {
      socket.write(postHead(COMPLETIONS) + 'transfer-encoding: chunked\r\n\r\n');
      const more = (): void => void (socket.writable && socket.write(chunk, () => setImmediate(more)));
      more();
    });
    expect(answer.status).toBe(413);
    expect(JSON.parse(answer.body)).toHaveProperty('error.message');
  });

  it('compressed is refused: it could be a bomb', () =>
    refused(gzipSync('0'.repeat(1 << 20)).toString('latin1'), 415, /content-encoding gzip/, {
      'content-encoding': 'gzip',
    }));

  it('of another type is refused: web pages may send such without asking', () =>
    refused('{}', 415, /expected application\/json/, { 'content-type': 'text/plain' }));

  it('that is not UTF-8 is refused', async () => {
    const bytes = Buffer.concat([Buffer.from('{"prompt":"'), Buffer.from([0xff, 0xfe]), Buffer.from('"}')]);
    const response = await fetch(s.url + COMPLETIONS, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: bytes,
    });
    expect(response.status).toBe(400);
    expect(await response.text()).toContain('not valid UTF-8');
  });

  it.each([
    ['100,000 levels deep', '['.repeat(100_000) + ']'.repeat(100_000), /deeper than 64/],
    ['deep and never closed', '{"a":'.repeat(100_000), /deeper than 64/],
    ['with a key twice', '{"prompt":"a","prompt":"b"}', /appears twice/],
    ['with a key twice in another spelling', '{"prompt":"a","\\u0070rompt":"b"}', /appears twice/],
    ['with __proto__', '{"__proto__":{"n":1},"prompt":"a"}', /__proto__ is not a parameter/],
    ['with constructor inside', '{"prompt":"a","logit_bias":{"constructor":1}}', /logit_bias/],
    ['empty', '', /JSON/],
    ['half', '{"prompt":', /JSON/],
    ['not an object', '[]', /expected object/],
    ['null', 'null', /expected object/],
    ['of a million values', `{"prompt":[${'1,'.repeat(400_000)}1]}`, /values/],
  ])('%s is refused', (_, body, message) => refused(body, 400, message));
});

describe('a number', () => {
  const NUMBERS = [
    'temperature',
    'top_p',
    'top_k',
    'min_p',
    'presence_penalty',
    'frequency_penalty',
    'repetition_penalty',
    'seed',
    'n',
    'max_tokens',
    'logprobs',
  ];
  const WRONG = ['-1e9', '1e9999', '9007199254740993', '"NaN"', '"1"', 'true', '[]', '{}', '-1e-9999x'];

  it.each(NUMBERS)('%s that is impossible is refused by its name', async (field) => {
    for (const value of WRONG) {
      const body = JSON.stringify(ask({}))
        .replace(/("max_tokens":1,?)?\}$/, `"${field}":${value}}`)
        .replace(/,?"max_tokens":1,("max_tokens")/, ',$1');
      const response = await s.post(COMPLETIONS, body);
      const { error } = (await response.json()) as { error: { message: string; param: string | null } };
      expect([field, value, response.status]).toEqual([field, value, 400]);
      if (!value.endsWith('x')) expect(error.param).toBe(field);
    }
  });

  const chat = { messages: [{ role: 'user', content: 'x' }] };
  const sampling = ['temperature', 'top_p', 'top_k', 'min_p', 'seed'];
  const penalties = ['presence_penalty', 'frequency_penalty', 'repetition_penalty'];
  it.each([
    ['/v1/chat/completions', chat, [...sampling, ...penalties, 'n', 'max_tokens', 'max_completion_tokens']],
    ['/v1/chat/completions', { ...chat, logprobs: true }, ['top_logprobs']],
    ['/v1/responses', { input: 'x' }, [...sampling, 'max_output_tokens']],
    ['/v1/embeddings', { input: 'x' }, ['dimensions']],
  ])('that is impossible is refused by its name in %s too', async (path, base, fields) => {
    for (const field of fields) {
      for (const value of WRONG) {
        const body = JSON.stringify({ model: MODEL, ...base, [field]: '@' }).replace('"@"', value);
        const response = await s.post(path, body);
        const { error } = (await response.json()) as { error: { param: string | null } };
        expect([field, value, response.status]).toEqual([field, value, 400]);
        if (!value.endsWith('x')) expect(error.param).toBe(field);
      }
    }
  });

  it.each(['top_k', 'seed', 'n', 'max_tokens'])('%s with a fraction is refused', (field) =>
    refused(ask({ [field]: 1.5 }), 400, new RegExp(field)),
  );

  it.each([
    [{ n: 1000 }, /n: .*128/],
    [{ n: 100 }, /100 choices, at most 16/],
    [{ max_tokens: 1e9 }, /more than the context holds, 256/],
    [{ stop: Array.from({ length: 10_000 }, () => 'x') }, /stop: .*16/],
    [{ stop: '' }, /stop/],
    [{ stop: 'x'.repeat(1000) }, /stop: .*256/],
    [{ logit_bias: { 99999: 1 } }, /99999 is no token, ids end at 1023/],
    [{ logit_bias: { x: 1 } }, /logit_bias/],
    [{ logit_bias: { 1: 1000 } }, /logit_bias\.1: .*100/],
    [{ logprobs: 1e6 }, /logprobs: .*20/],
    [{ prompt: [0, 5000] }, /5000 is no token/],
    [{ prompt: [-1] }, /prompt/],
    [{ prompt: Array.from({ length: 1000 }, () => 'x') }, /prompt/],
    [{ prompt: 7 }, /prompt/],
    [{ prompt: [[]] }, /prompt/],
    [{ model: 'x'.repeat(10_000) }, /model/],
  ])('or list beyond its limit is refused, with the limit: %#', async (fields, message) => {
    const response = await s.post(COMPLETIONS, ask(fields));
    expect([400, 404]).toContain(response.status);
    expect(((await response.json()) as { error: { message: string } }).error.message).toMatch(message);
  });
});

describe('a schema', () => {
  const format = (schema: unknown) => ({
    model: MODEL,
    messages: [{ role: 'user', content: 'x' }],
    max_tokens: 4,
    response_format: { type: 'json_schema', json_schema: { name: 'x', schema } },
  });

  it.each([
    [{ $ref: '#' }, /no finite value/],
    [{ anyOf: Array.from({ length: 100_000 }, () => true) }, /at most 500/],
    [{ type: 'string', pattern: '(a+)+b{200}(c{200}){200}' }, /states/],
    [{ type: 'string', pattern: '(a*)*\\1' }, /not supported/],
    [{ unheardOf: 1 }, /"unheardOf" is not supported/],
    [{ type: 'object', properties: { a: { not: {} } } }, /#\/properties\/a: the keyword "not"/],
  ])('%# that is endless, huge or not supported is refused in time', (schema, message) =>
    refused(format(schema), 400, message, {}, '/v1/chat/completions'),
  );
});

describe('a conversation', () => {
  it('cannot write control tokens', async () => {
    const [served] = s.service.models.values();
    const { tokenizer } = s.model;
    for (const text of ['<|begin|>', 'a<|end|>b', '<|be<|begin|>gin|>', '<|<|end|>']) {
      const plain = await served.encoder.encode({ kind: 'text', text });
      expect(plain.filter((id) => tokenizer.isSpecial(id))).toEqual([]);
      expect(tokenizer.decode(plain)).toBe(text);
      const chat = await served.encoder.encode({
        kind: 'chat',
        conversation: { messages: [{ role: 'user', content: text }] },
      });
      expect(chat.filter((id) => tokenizer.isSpecial(id))).toEqual([]);
    }
    // Whoever wants them says so, by their ids.
    expect(tokenizer.encode('<|end|>')).toEqual([1]);
  });

  it('cannot write template syntax', async () => {
    const [served] = s.service.models.values();
    const content = '{% for i in range(1000000) %}{{ messages }}{% endfor %}';
    const ids = await served.encoder.encode({
      kind: 'chat',
      conversation: { messages: [{ role: 'user', content }] },
    });
    expect(s.model.tokenizer.decode(ids)).toContain(content);
  });

  it('with a template that grows without end is stopped', async () => {
    const bomb = await startServer({
      template:
        '{% for a in range(60000) %}{% for b in range(60000) %}{{ messages }}{% endfor %}{% endfor %}',
    });
    try {
      const response = await bomb.post('/v1/chat/completions', {
        messages: [{ role: 'user', content: 'x' }],
      });
      expect(response.status).toBe(400);
      expect(await response.text()).toContain('was stopped');
    } finally {
      await bomb.close();
    }
  });

  it('of a million characters is refused before it is encoded', async () => {
    const content = 'a'.repeat(1_000_000);
    await refused(
      { messages: [{ role: 'user', content }] },
      400,
      /1000000 characters/,
      {},
      '/v1/chat/completions',
    );
    await refused({ prompt: content }, 400, /1000000 characters/);
  });
});

describe('below HTTP', () => {
  it('10,000 headers are refused', async () => {
    const headers = Array.from({ length: 10_000 }, (_, i) => `x-${i}: y\r\n`).join('');
    const answer = await raw(s.url, (socket) => socket.write(postHead(COMPLETIONS, headers) + '\r\n'));
    expect(answer.status).toBe(431);
    expect(JSON.parse(answer.body)).toHaveProperty('error.type', 'invalid_request_error');
  });

  it.each([
    'nonsense\r\n\r\n',
    'GET / HTTP/9.9\r\n\r\n',
    '\0\0\0\0\r\n\r\n',
    'POST / HTTP/1.1\r\ncontent-length: -5\r\n\r\n',
    'POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n',
  ])('%j is refused in the same form', async (text) => {
    const answer = await raw(s.url, (socket) => socket.write(text));
    expect(answer.status).toBeGreaterThanOrEqual(400);
    expect(JSON.parse(answer.body)).toHaveProperty('error.message');
  });

  it('a foreign Host header is refused: DNS rebinding', async () => {
    const answer = await raw(s.url, (socket) =>
      socket.write('GET /v1/models HTTP/1.1\r\nhost: evil.example\r\n\r\n'),
    );
    expect(answer.status).toBe(403);
  });

  it('a path or method that is none gets the form too', async () => {
    const missing = await fetch(`${s.url}/v1/nothing`);
    expect([missing.status, await missing.json()]).toEqual([
      404,
      { error: expect.objectContaining({ type: 'invalid_request_error' }) },
    ]);
    expect((await fetch(`${s.url}/v1/completions`)).status).toBe(405);
  });

  it('half-open connections hold nothing that others need', async () => {
    const { hostname, port } = new URL(s.url);
    const sockets: Socket[] = [];
    for (let i = 0; i < 40; i++) {
      const socket = connect(Number(port), hostname);
      socket.on('error', () => {});
      socket.write(postHead(COMPLETIONS) + 'content-length: 100\r\n\r\n{"prompt"');
      sockets.push(socket);
    }
    const done = await s.client.completions.create({ model: MODEL, prompt: 'The king', max_tokens: 2 });
    expect(done.choices).toHaveLength(1);
    sockets.forEach((socket) => socket.destroy());
  });
});

describe('a connection', () => {
  it('whose body does not arrive is told so, in time', async () => {
    const answer = await raw(s.url, (socket) =>
      socket.write(postHead(COMPLETIONS) + 'content-length: 100\r\n\r\n{"prompt"'),
    );
    expect(answer.status).toBe(408);
    expect(JSON.parse(answer.body)).toHaveProperty('error.type', 'invalid_request_error');
  });

  it('beyond the limit is closed, and those before it go on', async () => {
    const few = await startServer({ limits: { connections: 2 } });
    const { hostname, port } = new URL(few.url);
    const open = (): Socket => connect(Number(port), hostname).on('error', () => {});
    const [first, second] = [open(), open()];
    await Promise.all([first, second].map((socket) => new Promise((done) => socket.once('connect', done))));
    await new Promise((done) => open().once('close', done));
    const answered = new Promise((done) => second.once('data', done));
    second.write('GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n');
    expect(String(await answered)).toMatch(/^HTTP\/1\.1 200/);
    first.destroy();
    second.destroy();
    await few.close();
  });
});

describe('a client that goes', () => {
  const streaming = JSON.stringify({ model: MODEL, prompt: 'The king', max_tokens: 250, stream: true });
  const head = `${postHead(COMPLETIONS)}content-length: ${Buffer.byteLength(streaming)}\r\n\r\n${streaming}`;
  const slotFree = async (): Promise<void> => {
    const [served] = s.service.models.values();
    while (served.admission.running > 0) await new Promise((done) => setTimeout(done, 10));
  };

  it('in the middle of a stream frees its slot', async () => {
    await raw(s.url, (socket) => {
      socket.write(head);
      socket.once('data', () => socket.destroy());
    });
    await slotFree();
  });

  it('before its answer begins frees its place in the queue', async () => {
    const sockets = Array.from({ length: 8 }, () => {
      const { hostname, port } = new URL(s.url);
      const socket = connect(Number(port), hostname);
      socket.on('error', () => {});
      socket.write(head);
      return socket;
    });
    const [served] = s.service.models.values();
    while (served.admission.queued === 0) await new Promise((done) => setTimeout(done, 5));
    sockets.forEach((socket) => socket.destroy());
    await slotFree();
    expect(served.admission.queued).toBe(0);
  });

  it('that reads nothing does not keep others waiting', async () => {
    const { hostname, port } = new URL(s.url);
    const socket = connect(Number(port), hostname);
    socket.on('error', () => {});
    socket.pause();
    socket.write(head);
    const done = await s.client.completions.create({ model: MODEL, prompt: 'The king', max_tokens: 2 });
    expect(done.choices).toHaveLength(1);
    socket.destroy();
  });
});
