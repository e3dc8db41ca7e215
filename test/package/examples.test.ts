/** The programs in examples/ run as they stand. */
import { spawn } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { expect, it, vi } from 'vitest';
import { finished, scratch, type Outcome } from '../cli/command.js';
import { writeTinyFolder } from '../helpers/tiny-models.js';

vi.setConfig({ testTimeout: 300_000 });

function example(program: string, args: string[]): Promise<Outcome> {
  const hybridInfer = `${process.execPath} ${resolve('dist/cli/main.js')}`;
  const env = {
    ...process.env,
    HYBRID_INFER_CACHE: scratch('cache'),
    HYBRID_INFER: hybridInfer,
    NO_COLOR: '1',
  };
  return finished(spawn(program, args, { env }));
}

it('library.mjs writes and says what was skipped', async () => {
  const { code, stdout, stderr } = await example(process.execPath, ['examples/library.mjs']);
  expect(stderr).toBe('');
  expect(code).toBe(0);
  expect(stdout).toMatch(/FFN predicted: \d+\.\d % of the neurons were zero/);
});

it("server-openai.mjs streams from a server by OpenAI's client, and ends it", async () => {
  const { code, stdout, stderr } = await example(process.execPath, ['examples/server-openai.mjs']);
  expect(stderr).toBe('');
  expect(code).toBe(0);
  expect(stdout.trim().length).toBeGreaterThan(20);
});

it.skipIf(process.platform === 'win32')('sparsify.sh trains, profiles and runs a small model', async () => {
  const [text, out] = [scratch('example.txt'), scratch('example')];
  mkdirSync(out);
  writeFileSync(text, 'the king went to the forest and saw a house there. '.repeat(400));
  const model = writeTinyFolder({ hiddenAct: 'silu', layers: 1 });
  const small = ['--steps', '4', '--batch-tokens', '64', '--window', '16', '-t', '1'];
  const { code, stdout, stderr } = await example('sh', ['examples/sparsify.sh', model, text, out, ...small]);
  expect(code, stderr).toBe(0);
  expect(stdout).toContain('.predictor');
});
