/** `chat`: piped, and in a terminal (made by util-linux' `script`). */
import { spawn } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { MessageLines } from '../../src/cli/chat-input.js';
import { cli, json, scratch } from './command.js';

interface ChatDocument {
  turns: { user: string; assistant: string; stopReason: string }[];
}
const PLAIN = ['chat', '--chat-template', 'plain', '--seed', '5', '-n', '12'];

describe('several lines', () => {
  const read = (...lines: string[]) => {
    const message = new MessageLines();
    return lines.map((line) => message.push(line)).at(-1);
  };
  it.each([
    [['a'], 'a'],
    [['a\\', 'b'], 'a\nb'],
    [['"""a', 'b\\', 'c"""'], 'a\nb\\\nc'],
    [['"""', 'a', '"""'], 'a\n'],
    [['"""a"""'], 'a'],
    [['a\\'], null],
    [['"""a'], null],
  ])('%j are %j', (lines, text) => expect(read(...lines)).toBe(text));
});

describe('chat, piped', () => {
  it('answers every line; stdout holds the answers only', async () => {
    const { code, stdout, stderr } = await cli([...PLAIN], 'Tell me of a king.\nAnd of a wolf.\n');
    expect(code).toBe(0);
    expect(stdout).not.toMatch(/>>>|king\.\nAnd|\/help/);
    expect(stdout.trim().length).toBeGreaterThan(10);
    expect(stderr).toContain('/help lists commands');
  });

  it('with --json is one document', async () => {
    const { turns, code } = await json<ChatDocument>([...PLAIN], 'One.\nTwo.\n');
    expect(code).toBe(0);
    expect(turns.map((turn) => turn.user)).toEqual(['One.', 'Two.']);
    expect(turns.every((turn) => turn.assistant.length > 0)).toBe(true);
  });

  it('without a template says so and continues what is typed', async () => {
    const { stdout, stderr } = await cli(['chat', '--seed', '5', '-n', '8'], 'Once upon a time\n');
    const run = await cli(['run', 'Once upon a time', '--seed', '5', '-n', '8']);
    expect(stderr).toContain('has no chat template: it continues what you type');
    expect(stdout).toBe(run.stdout);
  });

  it('keeps a conversation and goes on with it; /retry with the same seed says the same', async () => {
    const file = scratch('talk.json');
    const first = await json<ChatDocument>([...PLAIN], `One.\n/save ${file}\nTwo.\n`);
    const second = await json<ChatDocument>([...PLAIN], `/load ${file}\nTwo.\n/retry\n`);
    expect(second.turns).toHaveLength(1);
    expect(second.turns[0].assistant).toBe(first.turns[1].assistant);
    const reset = await json<ChatDocument>([...PLAIN], 'One.\n/reset\nOne.\n');
    expect(reset.turns[1].assistant).toBe(reset.turns[0].assistant);
  });

  it.each([
    ['/set temperature hot\n', /temperature is "hot"/],
    ['/set mood 1\n', /no setting "mood"; there are temperature/],
    ['/nonsense\n', /no command \/nonsense/],
    ['/load nothing.json\n', /nothing\.json/],
    ['/retry\n', /nothing to answer again/],
    [`${'king '.repeat(400)}\n`, /the context holds 256/],
  ])('%j ends with exit code 2 and the reason', async (input, message) => {
    const result = await json<{ error: { message: string } }>([...PLAIN], input);
    expect([result.code, result.error.message]).toEqual([2, expect.stringMatching(message)]);
  });

  it('without a template continues its own text, and takes back the last piece on /retry', async () => {
    const args = ['chat', '--seed', '5', '-n', '8'];
    const { turns } = await json<ChatDocument>(args, 'Once upon a time\n and then\n/retry\n');
    expect(turns.map((turn) => turn.user)).toEqual(['Once upon a time', ' and then']);
    const once = await json<ChatDocument>(args, 'Once upon a time\n and then\n');
    expect(turns).toMatchObject(once.turns.map(({ assistant }) => ({ assistant })));
  });

  it('without a template refuses a system prompt', async () => {
    const given = await json<{ error: { code: string } }>(['chat', '--system', 'x'], 'One.\n');
    expect([given.code, given.error.code]).toEqual([2, 'TEMPLATE_INVALID']);
    expect((await json(['chat'], '/system x\n')).code).toBe(2);
  });

  it('takes a system prompt of its own, which /reset leaves and a saved conversation has', async () => {
    const file = scratch('system.json');
    const input = `One.\n/system Be a wolf.\n/reset\nOne.\n/save ${file}\n`;
    const { turns } = await json<ChatDocument>([...PLAIN, '--system', 'Be a king.'], input);
    const wolf = await json<ChatDocument>([...PLAIN, '--system', 'Be a wolf.'], 'One.\n');
    expect(turns[1].assistant).toBe(wolf.turns[0].assistant);
    expect(turns[1].assistant).not.toBe(turns[0].assistant);
    const saved = JSON.parse(readFileSync(file, 'utf8')) as { messages: object[] };
    expect(saved.messages).toHaveLength(3);
    expect(saved.messages[0]).toEqual({ role: 'system', content: 'Be a wolf.' });
  });

  it.each(['', '{', '{"format":"hybrid-infer session"}'])(
    'a saved conversation that is %j is refused',
    async (content) => {
      writeFileSync(scratch('bad.json'), content);
      const input = `/load ${scratch('bad.json')}\n`;
      expect(await json([...PLAIN], input)).toMatchObject({ code: 2, error: { code: 'SESSION_INVALID' } });
    },
  );
});

const SCRIPT = '/usr/bin/script';
const missing = existsSync(SCRIPT) ? '' : ` (skipped: no ${SCRIPT} to make a terminal)`;

describe.skipIf(missing !== '')(`chat in a terminal${missing}`, () => {
  it('streams, stops an answer on Ctrl-C without ending, remembers its lines, and ends on Ctrl-D', async () => {
    const cache = scratch('tty-cache');
    const command = `${process.execPath} ${resolve('dist/cli/main.js')} chat --chat-template plain --seed 5 -n 240 --kernels reference`;
    const child = spawn(SCRIPT, ['-qefc', command, '/dev/null'], {
      env: { ...process.env, HYBRID_INFER_CACHE: cache, NO_COLOR: '1', TERM: 'xterm' },
    });
    let screen = '';
    child.stdout.on('data', (chunk: Buffer) => (screen += chunk.toString()));
    const ended = new Promise<number | null>((done) => child.on('close', done));
    const shows = async (text: string, from = 0): Promise<number> => {
      while (!screen.includes(text, from)) await new Promise((done) => setTimeout(done, 20));
      return screen.indexOf(text, from) + text.length;
    };
    // On a busy machine an answer may be complete before the key arrives: then ask again.
    const stopOne = async (from: number): Promise<number> => {
      child.stdin.write('Tell me of a king.\r');
      const asked = await shows('king.\r', from);
      while (screen.length < asked + 20) await new Promise((done) => setTimeout(done, 20));
      child.stdin.write('\x03');
      const heard = /\(stopped\)|Ctrl-D or \/exit ends/;
      while (!heard.test(screen.slice(asked))) await new Promise((done) => setTimeout(done, 20));
      const stopped = screen.indexOf('(stopped)', asked);
      return stopped >= 0 ? stopped : stopOne(await shows('>>> ', screen.indexOf('Ctrl-D or', asked)));
    };
    const stopped = await stopOne(await shows('>>> '));
    const again = await shows('>>> ', stopped);
    child.stdin.write('/set mood 1\r');
    const told = await shows('no setting "mood"', again); // a mistake ends nothing
    await shows('>>> ', told);
    child.stdin.write('\x04');
    expect(await ended).toBe(0);
    expect(readFileSync(`${cache}/chat-history`, 'utf8')).toBe('Tell me of a king.\n/set mood 1\n');
  });
});
