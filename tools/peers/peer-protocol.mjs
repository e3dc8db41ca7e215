/** A peer process: says what it is, then answers requests, one JSON line each way. */
import { createInterface } from 'node:readline';

/** @param run answers one request; everything loaded stays loaded between requests */
export function serve(name, run) {
  const send = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
  send({ ready: name });
  createInterface({ input: process.stdin }).on('line', async (line) => {
    try {
      send(await run(JSON.parse(line)));
    } catch (error) {
      send({ error: error instanceof Error ? (error.stack ?? error.message) : String(error) });
    }
  });
  process.stdin.on('end', () => process.exit(0));
}

/**
 * Tokens per second of all sequences while every one of them is writing: from when the last one began until the
 * first one was done.
 * @param times for each sequence when it got each of its tokens, in ms
 */
export function decodeSpeed(times) {
  const begin = Math.max(...times.map((at) => at[0]));
  const end = Math.min(...times.map((at) => at.at(-1)));
  return times.flat().filter((at) => at > begin && at <= end).length / ((end - begin) / 1000);
}
