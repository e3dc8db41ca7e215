/**
 * `sparsify` stopped at random moments, by Ctrl-C and by SIGKILL in turn, and started again with the same command
 * ends with the bytes of a run that nobody disturbed: models, report and JSON. A few moments here; KILLS=50 tries
 * as many as you like.
 */
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it, vi } from 'vitest';
import { random, writeTinyFolder } from '../helpers/tiny-models.js';
import { finished, scratch, start, type Outcome } from './command.js';

vi.setConfig({ testTimeout: 600_000, hookTimeout: 300_000 });

const KILLS = Number(process.env.KILLS ?? 6);
const SETTINGS = ['prosparse', 'vanilla'];
const next = random(5);
const out = scratch('settings');
const report = scratch('report.html');
let args: string[];
let undisturbed: Map<string, Buffer>;
let undisturbedMs = 0;

const run = (): Promise<Outcome> => finished(start(args));

/** Everything the command made. The JSON does not say what the memory would have been on a quieter machine. */
function results({ stdout }: Outcome): Map<string, Buffer> {
  const files = SETTINGS.flatMap((setting) =>
    readdirSync(join(out, setting)).map((name) => join(setting, name)),
  );
  return new Map([
    ...files.map((name): [string, Buffer] => [name, readFileSync(join(out, name))]),
    ['report', readFileSync(report)],
    ['stdout', Buffer.from(stdout)],
  ]);
}

/** Nothing of an earlier run, in the cache neither. */
function forget(): void {
  for (const path of [out, report, scratch('cache')]) rmSync(path, { recursive: true, force: true });
}

/** @returns whether it had finished before the signal came */
async function stopAfter(milliseconds: number, signal: 'SIGINT' | 'SIGKILL'): Promise<boolean> {
  const child = start(args);
  const timer = setTimeout(() => child.kill(signal), milliseconds);
  const { code, stderr } = await finished(child);
  clearTimeout(timer);
  expect([0, signal === 'SIGINT' ? 130 : 137], stderr).toContain(code);
  return code === 0;
}

beforeAll(async () => {
  const model = writeTinyFolder({ hiddenAct: 'silu', dtype: 'F16', layers: 1 });
  writeFileSync(scratch('t.txt'), 'the king went to the forest and saw a house there. '.repeat(60));
  args = [
    ...['sparsify', model, '--text', scratch('t.txt'), '--settings', SETTINGS.join(','), '-o', out],
    ...['--steps', '120', '--batch-tokens', '64', '--window', '16', '-t', '2', '--eval-every', '40'],
    ...['--checkpoint-every', '7', '--report', report, '--json'],
  ];
  const begin = performance.now();
  const outcome = await run();
  undisturbedMs = performance.now() - begin;
  expect(outcome.code, outcome.stdout).toBe(0);
  undisturbed = results(outcome);
});

describe('sparsify', () => {
  it(`stopped at ${KILLS} moments ends with the same bytes`, async () => {
    let stops = 0;
    let checkpoints = 0;
    while (stops < KILLS) {
      forget();
      // Several stops in one run: each start goes on where the last one was.
      for (let k = 0; k < 3 && stops < KILLS; k++) {
        const signal = stops % 2 === 0 ? 'SIGKILL' : 'SIGINT';
        if (await stopAfter(undisturbedMs * (0.1 + 0.8 * next()), signal)) break;
        stops++;
        const work = scratch('cache/sparsify');
        const folders = existsSync(work) ? readdirSync(work) : [];
        checkpoints += folders.filter((name) => existsSync(join(work, name, 'checkpoint'))).length;
      }
      const outcome = await run();
      expect(outcome.code, outcome.stdout).toBe(0);
      const found = results(outcome);
      expect([...found.keys()].sort()).toEqual([...undisturbed.keys()].sort());
      for (const [name, bytes] of found) expect(bytes.equals(undisturbed.get(name)!), name).toBe(true);
    }
    expect(checkpoints).toBeGreaterThan(0);
  });

  it('leaves no checkpoint behind when it is done', async () => {
    forget();
    expect((await run()).code).toBe(0);
    expect(readdirSync(scratch('cache/sparsify'))).toEqual([]);
  });
});
