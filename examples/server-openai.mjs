/**
 * The server with OpenAI's own client (`npm install openai`), streaming. Starts the server itself; one that runs
 * already is given by its address: `node examples/server-openai.mjs http://127.0.0.1:8080/v1`
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import OpenAI from 'openai';

const [, , given] = process.argv;
const server = given ? null : await startServer();
try {
  const client = new OpenAI({
    baseURL: given ?? server.url,
    apiKey: process.env.HYBRID_INFER_API_KEY ?? 'none',
  });
  const [{ id: model }] = (await client.models.list()).data;
  const request = { model, prompt: 'Once upon a time', max_tokens: 40, seed: 7, stream: true };
  for await (const { choices } of await client.completions.create(request)) {
    process.stdout.write(choices[0]?.text ?? '');
  }
  console.log();
} finally {
  server?.child.kill('SIGTERM'); // it drains, and ends with exit code 0
}

/** @returns its process, and the address of its API once it takes requests */
async function startServer() {
  const main = fileURLToPath(new URL('dist/cli/main.js', import.meta.resolve('hybrid-infer/package.json')));
  const child = spawn(process.execPath, [main, 'serve', '--port', '0', '--json', '--log-level', 'error'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [first] = await once(child.stdout, 'data');
  return { child, url: `${JSON.parse(String(first)).url}/v1` };
}
