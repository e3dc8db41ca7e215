/** compatcanary, somebody else's idea of what an OpenAI-compatible API is. */
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, it } from 'vitest';
import {
  HybridBackend,
  type BackendResult,
  type GenerationEvents,
  type SamplingRequest,
} from '../../src/serve/backend.js';
import { MODEL, startServer, type Started } from './start.js';

// Beside src/index.js, the only file the package exports.
const CLI = fileURLToPath(new URL('cli.js', import.meta.resolve('compatcanary')));

/** The demo model hardly ever writes a quote, which is what ends a string, and seldom ends a tale. */
class Terse extends HybridBackend {
  override generate(
    prompt: readonly number[],
    request: SamplingRequest,
    events: GenerationEvents,
  ): Promise<BackendResult> {
    const [quote] = s.model.tokenizer.encode('"', { addSpecial: false });
    const stop = request.mask ? request.stop : [...(request.stop ?? []), ',', '.', '!', '?', ':'];
    const { maxTokens = 100 } = request;
    const quoting = { ...request, maxTokens, seed: 1, stop, logitBias: { [quote]: 8 } };
    return super.generate(prompt, quoting, events);
  }
}

let s: Started;
beforeAll(async () => {
  s = await startServer({ backend: (model) => new Terse(model) });
});
afterAll(() => s.close());

it('of its larger profile, chat and responses, no check fails', { timeout: 180_000 }, async () => {
  const args = [
    CLI,
    'scan',
    '--base-url',
    `${s.url}/v1`,
    '--model',
    MODEL,
    '--profile',
    'modern',
    '--format',
    'json',
    '--fail-on',
    'never',
  ];
  const child = spawn(process.execPath, args);
  let text = '';
  child.stdout.on('data', (chunk: Buffer) => (text += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (text += chunk.toString()));
  await new Promise((done) => child.on('close', done));
  const report = JSON.parse(text) as { results: { id: string; status: string; summary: string }[] };
  expect(report.results.length).toBeGreaterThanOrEqual(7);
  expect(report.results.filter((result) => result.status !== 'pass')).toEqual([]);
});
