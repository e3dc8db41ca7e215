/** `sparsify` and `eval --tasks` as users run them. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { describe, expect, it, vi } from 'vitest';
import { writeTinyFolder } from '../helpers/tiny-models.js';
import { cli, finished, json, scratch, start } from './command.js';

vi.setConfig({ testTimeout: 300_000 });

const LAST_WORD = resolve('test/tasks/reference/samples_last_word.jsonl');
const text = scratch('train.txt');
const write = (): void =>
  writeFileSync(text, 'the king went to the forest and saw a house there. '.repeat(60));
const SMALL = ['--steps', '4', '--batch-tokens', '64', '--window', '16', '-t', '1'];

describe('sparsify', () => {
  it('trains, compares and writes what its JSON says', async () => {
    write();
    const model = writeTinyFolder({ hiddenAct: 'silu', layers: 1 });
    const [out, report] = [scratch('settings'), scratch('report.html')];
    const result = await json<{
      settings: Record<string, unknown>[];
      history: Record<string, unknown>[];
      artifacts: object;
    }>([
      ...['sparsify', model, '--text', `${text}=2`, '--settings', 'vanilla,prosparse', '-o', out],
      ...['--report', report, ...SMALL],
    ]);
    expect(result).toMatchObject({ code: 0, artifacts: { model: out, report } });
    expect(result.settings.map(({ setting }) => setting)).toEqual(['vanilla', 'prosparse']);
    for (const field of ['sparsity', 'perplexity', 'tasks', 'steps', 'tokens', 'lambda', 'threshold']) {
      expect(result.settings[0]).toHaveProperty(field);
    }
    for (const field of ['setting', 'step', 'loss', 'l1', 'lambda', 'perplexity', 'sparsity']) {
      expect(result.history[0]).toHaveProperty(field);
    }
    const config = JSON.parse(readFileSync(`${out}/prosparse/config.json`, 'utf8')) as object;
    expect(config).toMatchObject({ hidden_act: 'fatrelu' });
    const page = readFileSync(report, 'utf8');
    expect(page).toContain('vanilla ReLU');
    expect(page).not.toMatch(/<(script|link|img)[^>]*(src|href)=/);
    const ran = await json(['run', `${out}/prosparse`, 'the king', '-n', '2']);
    expect(ran.code).toBe(0);
  });

  it('stops at Ctrl-C and goes on with the same command', async () => {
    write();
    const model = writeTinyFolder({ hiddenAct: 'silu', layers: 1 });
    const args = [
      'sparsify',
      model,
      '--text',
      text,
      '-o',
      scratch('long'),
      ...SMALL,
      '--steps',
      '3000',
      '--json',
    ];
    const child = start(args);
    const outcome = finished(child);
    // The work folder holds a checkpoint from the first stop on; before that there is the folder itself.
    while (!existsSync(scratch('cache/sparsify'))) await new Promise((done) => setTimeout(done, 20));
    await new Promise((done) => setTimeout(done, 1500));
    child.kill('SIGINT');
    const { code, stdout } = await outcome;
    expect(code).toBe(130);
    expect(JSON.parse(stdout)).toMatchObject({ error: { code: 'ABORTED' } });
    expect(existsSync(scratch('long'))).toBe(false);
  });

  it('says what is wrong with its input before anything is trained', async () => {
    write();
    const silu = writeTinyFolder({ hiddenAct: 'silu', layers: 1 });
    const relu = writeTinyFolder({ hiddenAct: 'relu', layers: 1 });
    const refused = async (args: string[]): Promise<string> => {
      const { code, stdout } = await cli(['sparsify', ...args, '-o', scratch('never'), '--json']);
      expect(code).toBe(2);
      return (JSON.parse(stdout) as { error: { message: string } }).error.message;
    };
    expect(await refused([relu, '--text', text])).toMatch(/sparse already/);
    expect(await refused([silu, '--text', text, '--stages', '0:10,1e-3:5'])).toMatch(
      /stage 1 ends at step 5/,
    );
    expect(await refused([silu, '--text', text, '--memory', '1MiB', ...SMALL])).toMatch(/training needs/);
    expect(await refused([silu, '--text', scratch('nothing.txt')])).toMatch(/no such file/);
    expect(await refused([silu, '--text', text, '--settings', 'magic'])).toMatch(/--settings is "magic"/);
    expect(existsSync(scratch('never'))).toBe(false);
  });

  it('profiles and benches every result with --profile', async () => {
    write();
    const model = writeTinyFolder({ hiddenAct: 'silu', layers: 1 });
    const [out, report] = [scratch('profiled'), scratch('profiled.html')];
    const result = await json<{ settings: { setting: string; profile: Record<string, unknown> | null }[] }>([
      ...['sparsify', model, '--text', text, '--settings', 'original,shifted,prosparse', '-o', out],
      ...['--profile', '--quick', '--report', report, ...SMALL],
    ]);
    expect(result).toMatchObject({ code: 0 });
    const figure = expect.any(Number) as number;
    const step = { dense: figure, sparse: figure, times: figure };
    const speeds = { dense: figure, exact: figure, predicted: figure };
    const [original, ...sparse] = result.settings;
    expect(original.profile).toMatchObject({
      ...{ recall: null, predictedSparsity: null, s2: null, s3: null },
      tokensPerSecond: { dense: figure, exact: null, predicted: null },
    });
    for (const { profile } of sparse) {
      expect(profile).toMatchObject({ recall: figure, predictedSparsity: figure, sparsity: figure });
      expect(profile).toMatchObject({ tokensPerSecond: speeds, s2: step, s3: step });
    }
    expect(readFileSync(report, 'utf8')).toContain('Predictors and speed');
    for (const file of ['profiles/prosparse.profile', 'predictors/shifted.predictor'])
      expect(existsSync(`${out}/${file}`), file).toBe(true);
  });

  it('shifts the threshold of a ReLU model', async () => {
    write();
    const out = scratch('shifted');
    const model = writeTinyFolder({ hiddenAct: 'relu', layers: 1 });
    const result = await json([
      ...['sparsify', model, '--text', text, '--shift-only', '-o', out, '--window', '16', '-t', '1'],
    ]);
    expect(result).toMatchObject({ code: 0, artifacts: { model: out } });
    expect(result.threshold).toBeTypeOf('number');
  });
});

describe('eval --tasks', () => {
  it('scores tasks and says how far it is from lm-eval', async () => {
    const result = await json<{ tasks: object[]; parity: { requests: number } }>([
      ...['eval', '--tasks', LAST_WORD, '--ffn', 'predicted', '-t', '1'],
    ]);
    expect(result).toMatchObject({ code: 0, ffnMode: 'predicted', parity: { requests: 60 } });
    expect(result.tasks[0]).toMatchObject({ task: 'last_word', n: 60 });
    for (const field of ['metrics', 'stderr', 'change'])
      expect(result.tasks[0]).toHaveProperty(`${field}.acc`);
  });

  it('needs a text or tasks, not both', async () => {
    expect(await json(['eval'])).toMatchObject({ code: 2, error: { code: 'USAGE' } });
    writeFileSync(scratch('t.txt'), 'a');
    const both = ['eval', '--tasks', LAST_WORD, '--text', scratch('t.txt')];
    expect(await json(both)).toMatchObject({ code: 2, error: { code: 'USAGE' } });
  });
});
