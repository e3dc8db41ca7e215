/** `serve` as a process: it listens, answers, drains on SIGTERM with exit code 0. Also with the model on a GPU. */
import { writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { reason } from '../gpu/webgpu/adapter.js';
import { DEMO, finished, json, scratch, start } from './command.js';

interface Serving {
  url: string;
  stop(signal: NodeJS.Signals): Promise<{ code: number; stderr: string }>;
}

async function serve(args: string[]): Promise<Serving> {
  const child = start(['serve', ...args, '--port', '0', '--json', '--threads', '2']);
  const outcome = finished(child);
  let text = '';
  child.stdout.on('data', (chunk: Buffer) => (text += chunk.toString()));
  while (!text.includes('\n')) await new Promise((done) => setTimeout(done, 20));
  const { url, models } = JSON.parse(text) as { url: string; models: string[] };
  expect(models).toEqual(['tales-4m-relu']);
  return {
    url,
    stop(signal) {
      child.kill(signal);
      return outcome;
    },
  };
}

const ask = (url: string, body: object, headers: Record<string, string> = {}) =>
  fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify(body),
  });

describe('serve', () => {
  it('answers, and on SIGTERM ends what runs and exits with 0', async () => {
    const { url, stop } = await serve([DEMO]);
    const stream = await ask(`${url}/v1/completions`, {
      prompt: 'The king',
      max_tokens: 240,
      stream: true,
      seed: 1,
    });
    const outcome = stop('SIGTERM');
    expect(await stream.text()).toMatch(/"finish_reason":"(length|stop)"[\s\S]*\[DONE\]/);
    const { code, stderr } = await outcome;
    expect(code).toBe(0);
    const lines = stderr
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as { msg: string });
    expect(lines.map((line) => line.msg)).toEqual(expect.arrayContaining(['request', 'draining']));
  });

  it('runs as many sequences at once as --slots says', async () => {
    const { url, stop } = await serve(['--slots', '2']);
    expect(await (await fetch(`${url}/ready`)).json()).toMatchObject({ models: [{ slots: 2 }] });
    await stop('SIGTERM');
  });

  it('takes keys from a file and a template from another, and ends on Ctrl-C with 0', async () => {
    writeFileSync(scratch('keys.txt'), '# comment\nsecret-1\n');
    writeFileSync(scratch('template.jinja'), '{{ messages[0].content }}');
    const { url, stop } = await serve([
      '--api-key-file',
      scratch('keys.txt'),
      '--chat-template',
      scratch('template.jinja'),
    ]);
    const body = { messages: [{ role: 'user', content: 'The king' }], max_tokens: 2 };
    expect((await ask(`${url}/v1/chat/completions`, body)).status).toBe(401);
    expect((await ask(`${url}/v1/chat/completions`, body, { authorization: 'Bearer secret-1' })).status).toBe(
      200,
    );
    expect((await stop('SIGINT')).code).toBe(0);
  });

  describe.skipIf(reason !== null)(`with the model on a GPU${reason ? ` (skipped: ${reason})` : ''}`, () => {
    it('ends on SIGTERM with 0', async () => {
      const { url, stop } = await serve([DEMO, '--gpu', 'webgpu']);
      expect((await ask(`${url}/v1/completions`, { prompt: 'The king', max_tokens: 2 })).status).toBe(200);
      expect((await stop('SIGTERM')).code).toBe(0);
    }, 120_000);

    it('ends on a second Ctrl-C in the middle of a text with 130', async () => {
      const { url, stop } = await serve([DEMO, '--gpu', 'webgpu']);
      const asked = { prompt: 'The king', max_tokens: 240, temperature: 0, stream: true };
      const { body } = await ask(`${url}/v1/completions`, asked);
      const text = body!.getReader();
      await text.read();
      void stop('SIGINT');
      while (
        await fetch(`${url}/ready`).then(
          ({ ok }) => ok,
          () => false,
        )
      );
      const ended = stop('SIGINT');
      await text.cancel().catch(() => undefined);
      expect((await ended).code).toBe(130);
    }, 120_000);
  });

  it.each([
    [['--port', '99999'], '--port'],
    [['--max-queue', '0'], '--max-queue'],
    [['--slots', '257'], '--slots'],
    [['--max-body', 'much'], '--max-body'],
    [['--log-level', 'loud'], '--log-level'],
    [['--api-key', 'two words'], 'API key'],
    [['nothing-there'], 'nothing-there'],
    [['--chat-template', 'nothing.jinja'], 'nothing.jinja'],
    [[DEMO, DEMO, '--profile', 'x'], '--profile'],
  ])('%j is refused with exit code 2', async (args, named) => {
    const result = await json<{ error: { message: string } }>(['serve', ...args]);
    expect(result.code).toBe(2);
    expect(result.error.message).toContain(named);
  });

  it('of two models with one name, or a port in use, ends with an error', async () => {
    expect(await json(['serve', DEMO, DEMO, '--port', '0'])).toMatchObject({
      code: 2,
      error: { code: 'USAGE' },
    });
    const { url, stop } = await serve([]);
    const taken = await json<{ error: { message: string } }>(['serve', '--port', new URL(url).port]);
    expect([taken.code, taken.error.message]).toEqual([1, expect.stringContaining('cannot listen')]);
    await stop('SIGTERM');
  });
});
