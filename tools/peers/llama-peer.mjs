/**
 * llama.cpp (through node-llama-cpp) as one side of the comparison: loads a GGUF file, then answers one
 * `{prompt, generate, sequences}` at a time with the tokens per second of both parts. See peers.mjs.
 */
/* global performance */
import { readFileSync } from 'node:fs';
import { loadLlama } from './load-llama.mjs';
import { decodeSpeed, serve } from './peer-protocol.mjs';

const [modelPath, threads, contextSize, most] = process.argv.slice(2);
const model = await loadLlama(modelPath, Number(threads));
const context = await model.createContext({
  contextSize: Number(contextSize),
  batchSize: Number(contextSize),
  sequences: Number(most),
  threads: Number(threads),
});
const all = Array.from({ length: Number(most) }, () => context.getSequence());
const vocabulary = model.fileInfo.metadata.tokenizer.ggml.tokens.length;

const manifest = new URL('node_modules/node-llama-cpp/package.json', import.meta.url);
const { version } = JSON.parse(readFileSync(manifest, 'utf8'));

/** Reads the last prompt token and writes. @returns when each token came */
async function write(sequence, last, generate) {
  const at = [];
  // The first yielded token ends the prompt; the rest are one forward pass each.
  for await (const token of sequence.evaluate([last], { temperature: 0, yieldEogToken: true })) {
    at.push(performance.now());
    if (at.length > generate || token === undefined) break;
  }
  return at;
}

serve(`llama.cpp (node-llama-cpp ${version})`, async ({ prompt, generate, sequences = 1 }) => {
  const used = all.slice(0, sequences);
  const tokens = used.map((_, s) => Array.from({ length: prompt }, (_, i) => (i * 977 + 3 + s) % vocabulary));
  for (const sequence of used) await sequence.clearHistory();
  const t0 = performance.now();
  for (const [s, sequence] of used.entries()) {
    await sequence.evaluateWithoutGeneratingNewTokens(tokens[s].slice(0, -1));
  }
  const t1 = performance.now();
  const times = await Promise.all(used.map((sequence, s) => write(sequence, tokens[s].at(-1), generate)));
  return {
    promptTokensPerSecond: (sequences * (prompt - 1)) / ((t1 - t0) / 1000),
    decodeTokensPerSecond: decodeSpeed(times),
  };
});
