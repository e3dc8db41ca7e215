/**
 * llama.cpp (through node-llama-cpp) behind the part of OpenAI's completions API that tools/load-serve.mjs asks
 * for: as many sequences as our `serve` has slots, batched by the library, first come first served.
 *
 *     node tools/peers/llama-server.mjs MODEL.gguf [threads, 2] [sequences, 4] [context, 256]
 */
import { createServer } from 'node:http';
import { loadLlama } from './load-llama.mjs';

const [modelPath, threads = '2', slots = '4', contextSize = '256'] = process.argv.slice(2);
const model = await loadLlama(modelPath, Number(threads));
const context = await model.createContext({
  sequences: Number(slots),
  contextSize: Number(contextSize),
  threads: Number(threads),
});
const free = Array.from({ length: Number(slots) }, () => context.getSequence());
const waiting = [];

const acquire = () =>
  free.length > 0 ? Promise.resolve(free.pop()) : new Promise((resolve) => waiting.push(resolve));
const release = (sequence) => (waiting.length > 0 ? waiting.shift()(sequence) : void free.push(sequence));

async function complete({ prompt, seed, max_tokens: most }, response) {
  const sequence = await acquire();
  try {
    await sequence.clearHistory();
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    const send = (data) => response.write(`data: ${JSON.stringify(data)}\n\n`);
    let count = 0;
    for await (const token of sequence.evaluate(model.tokenize(prompt), {
      temperature: 0.8,
      seed,
      topK: 40,
      topP: 0.95,
    })) {
      count++;
      send({ choices: [{ index: 0, text: model.detokenize([token]), finish_reason: null }] });
      if (count >= most) break;
    }
    send({ choices: [], usage: { completion_tokens: count } });
    response.end('data: [DONE]\n\n');
  } finally {
    release(sequence);
  }
}

const server = createServer(async (request, response) => {
  let text = '';
  for await (const chunk of request) text += chunk;
  await complete(JSON.parse(text), response).catch((error) => response.destroy(error));
});
server.listen(0, '127.0.0.1', () =>
  console.log(JSON.stringify({ url: `http://127.0.0.1:${server.address().port}`, pid: process.pid })),
);
