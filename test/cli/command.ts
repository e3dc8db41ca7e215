/** Runs the built command line as users do: a child process with its own cache folder. */
import { spawn, type ChildProcessWithoutNullStreams } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll } from 'vitest';

const MAIN = resolve('dist/cli/main.js');
export const DEMO = resolve('models/tales-4m-relu');

const folder = mkdtempSync(join(tmpdir(), 'hybrid-infer-cli-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A path in a folder that is removed when the test file ends. */
export const scratch = (name: string): string => join(folder, name);

export interface Outcome {
  /** As a shell sees it: 128 + number for a signal that ended the process. */
  code: number;
  stdout: string;
  stderr: string;
}

/** @param mostFileBytes what the kernel lets it write into one file, in whole KiB: a disk that is full */
export function start(args: string[], mostFileBytes?: number): ChildProcessWithoutNullStreams {
  const command = [process.execPath, MAIN, ...args];
  const limited = ['bash', '-c', `ulimit -f ${(mostFileBytes ?? 0) / 1024}; exec "$0" "$@"`, ...command];
  const [program, ...rest] = mostFileBytes === undefined ? command : limited;
  return spawn(program, rest, {
    env: { ...process.env, HYBRID_INFER_CACHE: scratch('cache'), DEBUG: '', NO_COLOR: '1' },
  });
}

export function finished(child: ChildProcessWithoutNullStreams): Promise<Outcome> {
  const outcome: Outcome = { code: -1, stdout: '', stderr: '' };
  child.stdout.on('data', (chunk: Buffer) => (outcome.stdout += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (outcome.stderr += chunk.toString()));
  return new Promise((done) =>
    child.on('close', (code, signal) => done({ ...outcome, code: code ?? 128 + constants.signals[signal!] })),
  );
}

/** @param input what stdin holds; empty by default */
export function cli(args: string[], input = ''): Promise<Outcome> {
  const child = start(args);
  child.stdin.on('error', () => {}); // the command may end before it has read everything
  child.stdin.end(input);
  return finished(child);
}

/** The document on stdout; fails the test when stdout is anything else. */
export async function json<T = Record<string, unknown>>(
  args: string[],
  input = '',
): Promise<T & { code: number }> {
  const { code, stdout } = await cli([...args, '--json'], input);
  return { ...(JSON.parse(stdout) as T), code };
}

/** Resolves when the command has made this file: a sign of how far it is. */
export async function appears(path: string): Promise<void> {
  while (!existsSync(path)) await new Promise((resolve) => setTimeout(resolve, 10));
}
