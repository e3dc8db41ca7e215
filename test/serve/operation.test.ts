/** Keys, queues, health, metrics, logs, faults and the end of a server. */
import { afterEach, describe, expect, it } from 'vitest';
import OpenAI from 'openai';
import { Word } from '../../src/engine/control.js';
import { HybridBackend } from '../../src/serve/backend.js';
import { MODEL, startServer, type Started, type StartOptions } from './start.js';

let s: Started;
const start = async (options: StartOptions = {}): Promise<Started> => (s = await startServer(options));
afterEach(() => s.close());

const ASK = { model: MODEL, prompt: 'The king', max_tokens: 200, seed: 5, temperature: 0.8 };
const SHORT = { ...ASK, max_tokens: 4 };
const served = () => [...s.service.models.values()][0];

describe('keys', () => {
  it('are asked for on everything but health and the page, and never logged', async () => {
    const log: string[] = [];
    await start({ keys: ['first-key', 'second-key'], log });
    for (const authorization of [
      undefined,
      'Bearer wrong',
      'Bearer first-ke',
      'Basic first-key',
      `Bearer ${'x'.repeat(10_000)}`,
      'Bearer first-key extra',
    ]) {
      const response = await fetch(`${s.url}/v1/models`, { headers: authorization ? { authorization } : {} });
      expect(response.status).toBe(401);
      expect(response.headers.get('www-authenticate')).toBe('Bearer');
    }
    await expect(
      new OpenAI({ baseURL: `${s.url}/v1`, apiKey: 'wrong', maxRetries: 0 }).models.list(),
    ).rejects.toMatchObject({ status: 401, code: 'invalid_api_key' });
    expect(
      (await new OpenAI({ baseURL: `${s.url}/v1`, apiKey: 'second-key' }).models.list()).data,
    ).toHaveLength(1);
    expect((await fetch(`${s.url}/metrics`)).status).toBe(401);
    for (const path of ['/health', '/ready', '/']) expect((await fetch(s.url + path)).status).toBe(200);
    expect(log.join('')).not.toMatch(/first-key|second-key|wrong/);
  });
});

describe('the queue', () => {
  it('when full is 503 with Retry-After, and those in it are served', async () => {
    await start({ limits: { queue: 2 } });
    const answers = await Promise.all(Array.from({ length: 12 }, () => s.post('/v1/completions', ASK)));
    const statuses = answers.map((answer) => answer.status).sort();
    expect(statuses.filter((status) => status === 200).length).toBeGreaterThanOrEqual(3);
    const refused = answers.filter((answer) => answer.status === 503);
    expect(refused.length).toBe(12 - statuses.filter((status) => status === 200).length);
    expect(refused.length).toBeGreaterThan(0);
    for (const answer of refused) {
      expect(Number(answer.headers.get('retry-after'))).toBeGreaterThan(0);
      expect(await answer.json()).toMatchObject({ error: { code: 'queue_full', type: 'server_error' } });
    }
  });

  it('lets nobody wait longer than it says', async () => {
    await start({ limits: { queueMs: 1 } });
    const answers = await Promise.all(Array.from({ length: 9 }, () => s.post('/v1/completions', ASK)));
    expect(answers.filter((answer) => answer.status === 503).length).toBeGreaterThan(0);
    expect(served().admission.queued).toBe(0);
  });

  it('changes nothing in what is written: the same seed, alone and among others', async () => {
    await start();
    const write = async (seed: number) =>
      (await s.client.completions.create({ ...ASK, max_tokens: 40, seed })).choices[0].text;
    const alone = await write(5);
    const together = await Promise.all([1, 2, 5, 3, 4].map(write));
    expect(together[2]).toBe(alone);
  });
});

describe('time', () => {
  it('of a request is limited, and the slot is free afterwards', async () => {
    await start({ limits: { requestMs: 30 } });
    const response = await s.post('/v1/completions', { ...ASK, n: 8 });
    expect([response.status, await response.json()]).toEqual([
      504,
      { error: expect.objectContaining({ code: 'request_timeout' }) },
    ]);
    expect(served().admission.running).toBe(0);
  });
});

describe('health', () => {
  it('says whether requests are taken', async () => {
    await start();
    expect(await (await fetch(`${s.url}/ready`)).json()).toMatchObject({
      status: 'ready',
      models: [{ id: MODEL, slots: 4 }],
    });
    s.service.state = 'loading';
    const ready = await fetch(`${s.url}/ready`);
    expect([ready.status, ready.headers.get('retry-after')]).toEqual([503, '5']);
    expect((await s.post('/v1/completions', SHORT)).status).toBe(503);
    expect(await (await fetch(`${s.url}/health`)).json()).toEqual({ status: 'ok', state: 'loading' });
    s.service.state = 'ready';
  });

  it('metrics count requests, tokens, time to the first and sparsity', async () => {
    await start();
    await s.client.completions.create(SHORT);
    await s.post('/v1/completions', { temperature: -1 });
    const text = await (await fetch(`${s.url}/metrics`)).text();
    expect(text).toContain('hybrid_infer_requests_total{route="/v1/completions",status="200"} 1');
    expect(text).toContain('hybrid_infer_requests_total{route="/v1/completions",status="400"} 1');
    expect(text).toContain(`hybrid_infer_generated_tokens_total{model="${MODEL}"} 4`);
    expect(text).toContain(`hybrid_infer_time_to_first_token_seconds_count{model="${MODEL}"} 1`);
    expect(text).toMatch(/hybrid_infer_sparsity\{model="tales-4m-relu"\} 0\.[6-9]/);
    expect(text).toContain(`hybrid_infer_queued_sequences{model="${MODEL}"} 0`);
    expect(text).toMatch(/^process_resident_memory_bytes \d+/m);
  });

  it('requests are one line of JSON each, with an id that the answer carries', async () => {
    const log: string[] = [];
    await start({ log });
    const response = await s.post('/v1/completions', SHORT);
    await response.text();
    while (log.length === 0) await new Promise((done) => setTimeout(done, 5));
    const line = JSON.parse(log[0]) as Record<string, unknown>;
    expect(line).toMatchObject({
      method: 'POST',
      path: '/v1/completions',
      status: 200,
      model: MODEL,
      usage: { completion_tokens: 4 },
    });
    expect(response.headers.get('x-request-id')).toBe(line.id);
    expect(log[0]).not.toContain('The king');
  });
});

describe('pages of other origins', () => {
  it('may not call, unless their origin was named', async () => {
    await start();
    const ask = (origin: string) => fetch(`${s.url}/v1/models`, { headers: { origin } });
    expect((await ask('https://a.example')).headers.get('access-control-allow-origin')).toBeNull();
    await s.close();
    await start({ corsOrigins: ['https://a.example'] });
    expect((await ask('https://a.example')).headers.get('access-control-allow-origin')).toBe(
      'https://a.example',
    );
    expect((await ask('https://b.example')).headers.get('access-control-allow-origin')).toBeNull();
  });
});

describe('a lane that dies under load', () => {
  it('is one error for each running request; those that wait, and the next ones, succeed', async () => {
    await start();
    const running = Promise.all(
      Array.from({ length: 12 }, (_, seed) => s.post('/v1/completions', { ...ASK, seed })),
    );
    while (served().admission.running < 4) await new Promise((done) => setTimeout(done, 2));
    await s.model.engine.workerThreads[0].terminate();
    const answers = await running;
    const failed = answers.filter((answer) => answer.status !== 200);
    expect(failed.length).toBeGreaterThan(0);
    expect(failed.length).toBeLessThanOrEqual(4); // the slots
    for (const answer of failed)
      expect([answer.status, await answer.json()]).toEqual([
        500,
        { error: expect.objectContaining({ code: 'lane_failed' }) },
      ]);
    expect((await s.client.completions.create(SHORT)).choices[0].text.length).toBeGreaterThan(0);
  });

  it('or hangs is one error for each, within seconds, and the next ones succeed', async () => {
    let hung = false;
    class Hanging extends HybridBackend {
      override generate(...[prompt, request, events]: Parameters<HybridBackend['generate']>) {
        const onText = (piece: string): void => {
          // One arrival too few: from here on every lane waits for one that never comes.
          if (!hung) Atomics.sub(this.model.engine.laneControl, Word.ARRIVED, 1);
          hung = true;
          events.onText(piece);
        };
        return super.generate(prompt, request, { ...events, onText });
      }
    }
    await start({ backend: (model) => new Hanging(model) });
    const ask = { ...ASK, max_tokens: 240, temperature: 0 };
    const texts = await Promise.all(
      [true, false, true, false].map(async (stream) =>
        (await s.post('/v1/completions', { ...ask, stream })).text(),
      ),
    );
    for (const text of texts) expect(text.match(/"code":"lane_failed"/g)).toHaveLength(1);
    expect((await s.client.completions.create(SHORT)).choices[0].text.length).toBeGreaterThan(0);
  });

  it('in a stream is one last event', async () => {
    await start();
    const stream = await s.client.completions.create({ ...ASK, max_tokens: 250, stream: true });
    const read = async () => {
      let killed = false;
      for await (const chunk of stream) {
        if (killed || chunk.choices.length === 0) continue;
        killed = true;
        await s.model.engine.workerThreads[0].terminate();
      }
      return 'ended';
    };
    // The text may have been complete before the thread died.
    await read().catch((error: unknown) =>
      expect(error).toMatchObject({ message: expect.stringMatching(/lane|worker|thread/i) }),
    );
    expect((await s.client.completions.create(SHORT)).choices).toHaveLength(1);
  });
});

describe('a drain', () => {
  it('ends what runs, refuses what comes, and then is done', async () => {
    await start();
    const running = s.post('/v1/completions', ASK);
    while (served().admission.running === 0) await new Promise((done) => setTimeout(done, 2));
    const drained = s.server.drain();
    const late = await s.post('/v1/completions', SHORT).then(
      (answer) => answer.status,
      () => 'closed',
    );
    expect([503, 'closed']).toContain(late);
    const answer = await running;
    expect(answer.status).toBe(200);
    expect(((await answer.json()) as { choices: unknown[] }).choices).toHaveLength(1);
    await drained;
    s.server.drain = async () => {}; // for afterEach
  });
});
