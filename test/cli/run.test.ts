import { describe, expect, it } from 'vitest';
import { cli, DEMO, json, scratch } from './command.js';
import { cpSync, mkdirSync, readFileSync } from 'node:fs';

interface RunDocument {
  text: string;
  tokens: number[];
  stopReason: string;
  seed: number;
  stats: Record<string, unknown>;
}

describe('run', () => {
  it('prints only the generated text on stdout and one line of statistics on stderr', async () => {
    const { code, stdout, stderr } = await cli(['run', 'Once upon a time', '-n', '8', '--greedy']);
    expect(code).toBe(0);
    expect(stdout.endsWith('\n')).toBe(true);
    expect(stdout.trim().length).toBeGreaterThan(0);
    expect(stdout).not.toContain('sparsity');
    const lines = stderr.trim().split('\n');
    expect(lines.at(-1)).toMatch(
      /^\[prompt \d+ tokens at .*generated 8 at .*ffn (?:exact|predicted).*threads? \| sparsity \d+\.\d+ %.*seed \d+\]$/,
    );
  });

  it('keeps the field names of its JSON contract', async () => {
    const result = await json<RunDocument>(['run', 'Once upon a time', '-n', '6', '--seed', '5']);
    expect(result).toMatchObject({ code: 0, stopReason: 'length', seed: 5 });
    expect(result.tokens).toHaveLength(6);
    expect(Object.keys(result.stats)).toEqual(
      expect.arrayContaining([
        'promptTokens',
        'promptTokensPerSecond',
        'generatedTokens',
        'decodeTokensPerSecond',
        'ffnMode',
        'kernels',
        'threads',
        'gpu',
        'sparsity',
        'predictedSparsity',
        'recall',
        'weightedRecall',
        'bytesPerToken',
      ]),
    );
    expect(result.stats.sparsity).toBeGreaterThan(0.5);
    expect(result.stats.sparsity).toBeLessThan(1);
  });

  it('takes the prompt and the temperature by the names of llama.cpp too', async () => {
    const [named, plain, two] = await Promise.all([
      json<RunDocument>(['run', '-p', 'The king', '-n', '8', '--temp', '0']),
      json<RunDocument>(['run', 'The king', '-n', '8', '--greedy']),
      cli(['run', DEMO, 'The king', '-p', 'The queen']),
    ]);
    expect(named.tokens).toEqual(plain.tokens);
    expect(two.code).toBe(2);
    expect(two.stderr).toContain('two prompts');
  });

  it('gives the same text for the same seed, and the same greedy text with one thread and two', async () => {
    const seeded = ['run', 'The king', '-n', '24', '--seed', '9'];
    const greedy = ['run', 'The king', '-n', '24', '--greedy'];
    const [a, b, one, two] = await Promise.all([
      json<RunDocument>(seeded),
      json<RunDocument>(seeded),
      json<RunDocument>([...greedy, '--threads', '1']),
      json<RunDocument>([...greedy, '--threads', '2']),
    ]);
    expect(b.tokens).toEqual(a.tokens);
    expect(two.tokens).toEqual(one.tokens);
  });

  it('reads the prompt from stdin, without its last line break', async () => {
    const typed = await json<RunDocument>(['run', 'The king', '-n', '4', '--greedy']);
    const piped = await json<RunDocument>(['run', '-', '-n', '4', '--greedy'], 'The king\n');
    expect(piped.stats.promptTokens).toBe(typed.stats.promptTokens);
    expect(piped.tokens).toEqual(typed.tokens);
  });

  it('ends at a stop string and leaves it out', async () => {
    const free = await json<RunDocument>(['run', 'The king', '-n', '40', '--greedy']);
    const stop = free.text.slice(10, 13);
    const stopped = await json<RunDocument>(['run', 'The king', '-n', '40', '--greedy', '--stop', stop]);
    expect(stopped.stopReason).toBe('stop');
    expect(stopped.text).toBe(free.text.slice(0, free.text.indexOf(stop)));
  });

  it('takes one argument for the model when it exists and for a prompt otherwise', async () => {
    const folder = scratch('model');
    mkdirSync(folder, { recursive: true });
    cpSync(DEMO, folder, { recursive: true });
    const withModel = await json<RunDocument>(['run', folder, '-n', '2', '--greedy']);
    expect(withModel.stats.promptTokens).toBe(1); // the begin token
    const named = await json<RunDocument>(['run', 'tales-4m-relu', 'The king', '-n', '2', '--greedy']);
    const both = await json<RunDocument>(['run', folder, 'The king', '-n', '2', '--greedy']);
    const prompt = await json<RunDocument>(['run', 'The king', '-n', '2', '--greedy']);
    expect(both.tokens).toEqual(prompt.tokens);
    expect(named.tokens).toEqual(prompt.tokens);
  });

  it('writes a trace of what the lanes did', async () => {
    const path = scratch('trace.json');
    await json<RunDocument>(['run', 'The king', '-n', '3', '--threads', '2', '--trace', path]);
    const { traceEvents } = JSON.parse(readFileSync(path, 'utf8')) as { traceEvents: { name: string }[] };
    expect(traceEvents.map((event) => event.name)).toEqual(
      expect.arrayContaining(['attention', 'ffn', 'head']),
    );
  });

  it.each([
    [['--recall', '0.9', '--ffn', 'exact'], '--recall needs FFN mode predicted'],
    [['--gpu-memory', '1GiB'], '--gpu-memory without --gpu'],
  ])('refuses options that would do nothing: %j', async (flags, message) => {
    const result = await json(['run', 'The king', '-n', '2', ...flags]);
    expect(result).toMatchObject({ code: 2, error: { code: 'USAGE' } });
    expect(JSON.stringify(result)).toContain(message);
  });

  it('refuses a prompt longer than the context before any work', async () => {
    const result = await json(['run', 'The king '.repeat(300), '-n', '2']);
    expect(result).toMatchObject({ code: 2, error: { code: 'CONTEXT_FULL' } });
  });

  it('says that the demo model has no chat template', async () => {
    const result = await json(['run', '--chat', 'Hello', '-n', '2']);
    expect(result).toMatchObject({ code: 2, error: { code: 'TEMPLATE_INVALID' } });
  });
});
