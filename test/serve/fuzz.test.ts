/** Damaged requests: tools/fuzz-serve.mjs sends 100,000, here it sends a few. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { expect, it } from 'vitest';

interface Report {
  requests: number;
  statuses: Record<string, number>;
  wrong: object[];
}

it(
  'damaged requests get answers of this API, and the server lives and drains',
  { timeout: 300_000 },
  async () => {
    const args = ['tools/fuzz-serve.mjs', '--requests', '800', '--clients', '8'];
    const run = promisify(execFile)(process.execPath, args).catch((error: { stdout: string }) => error);
    const { requests, statuses, wrong } = JSON.parse((await run).stdout) as Report;
    expect(wrong).toEqual([]);
    expect(requests).toBe(800);
    expect(statuses['200']).toBeGreaterThan(0);
    expect(statuses['400']).toBeGreaterThan(400);
  },
);
