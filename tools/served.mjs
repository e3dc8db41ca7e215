/** `hybrid-infer serve` as a process of its own, for tools that ask it things. */
import { spawn } from 'node:child_process';
import process from 'node:process';

const MAIN = new URL('../dist/cli/main.js', import.meta.url).pathname;

/**
 * @param options of `serve`, and models
 * @param nodeOptions of the process
 * @returns its address, its process id, and `stop`, which drains it and gives its exit code
 */
export async function startServer(options, nodeOptions = []) {
  const args = [...nodeOptions, MAIN, 'serve', '--port', '0', '--json', '--log-level', 'error', ...options];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = new Promise((done) => child.once('close', done));
  let text = '';
  for await (const chunk of child.stdout) {
    text += chunk;
    if (text.includes('\n')) break;
  }
  if (text === '') throw new Error(`serve ended with exit code ${await ended}`);
  return {
    url: JSON.parse(text).url,
    pid: child.pid,
    stop() {
      child.kill('SIGTERM');
      return ended;
    },
  };
}
