/**
 * hybrid-infer beside its peers: the same weights, the same machine, in turns. `--help` says how to use it.
 *
 * node-llama-cpp and ours stay loaded in processes of their own, programs of other builds are started for their turn;
 * only one works at a time. A round asks every
 * configuration once, so that slow minutes of a shared machine hit all alike. Ratios are taken round by
 * round against the first row; medians are printed. Memory bandwidth is sampled before every round.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { cpus } from 'node:os';
import { resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { readFlags } from '../flags.mjs';
import { llamaBench, powerInfer } from './programs.mjs';

const USAGE = `node tools/peers/peers.mjs --pack FILE.hpack --gguf FILE.gguf [options]

Speed of hybrid-infer and of llama.cpp (node-llama-cpp) with the same weights, in turns. It needs
  a build of this project and the peer:  npm run build && npm --prefix tools/peers install
  a pack with profiles/ and predictors/ beside it:  node tools/synthesize.mjs prosparse-7b -o DIR
  the same weights for llama.cpp:  hybrid-infer export DIR/prosparse-7b.q4.hpack --gguf FILE.gguf

  --prompt N       tokens of the prompt (512)
  --generate N     tokens generated after it (64)
  --rounds N       turns of every configuration (5)
  --threads N      threads of either side (all cores)
  --modes LIST     FFN modes: predicted,exact,dense
  --kernels LIST   native,wasm (native)
  --sequences N    N at once, each with a prompt of its own: tokens/s of all while all write (1)
  --llama-bench PATH       also this program, of llama.cpp or of ik_llama.cpp (which then repacks its weights); as
                           often as there are programs
  --powerinfer PATH        also PowerInfer's main, on
  --powerinfer-gguf FILE   what hybrid-infer export DIR/prosparse-7b.q4.hpack --powerinfer FILE wrote
  --no-node-llama          without node-llama-cpp
  --json           one JSON document
`;

const text = { type: 'string' };
const { values } = readFlags(
  USAGE,
  {
    pack: text,
    gguf: text,
    threads: { ...text, default: String(cpus().length) },
    prompt: { ...text, default: '512' },
    generate: { ...text, default: '64' },
    rounds: { ...text, default: '5' },
    modes: { ...text, default: 'predicted,exact,dense' },
    kernels: { ...text, default: 'native' },
    sequences: { ...text, default: '1' },
    'llama-bench': { ...text, multiple: true, default: [] },
    powerinfer: text,
    'powerinfer-gguf': text,
    'no-node-llama': { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
  },
  ['threads', 'prompt', 'generate', 'rounds', 'sequences'],
);
const { threads, prompt, generate, rounds, sequences } = values;
if (!values.pack || !values.gguf) {
  console.error('peers: --pack FILE.hpack and --gguf FILE.gguf are needed; --help says how to make them');
  process.exit(2);
}
if (Boolean(values.powerinfer) !== Boolean(values['powerinfer-gguf'])) {
  console.error('peers: --powerinfer PATH and --powerinfer-gguf FILE go together');
  process.exit(2);
}
const programs = [
  ...values['llama-bench'],
  ...(values.powerinfer ? [values.powerinfer, values['powerinfer-gguf']] : []),
];
if (programs.length > 0 && sequences > 1) {
  console.error('peers: --llama-bench and --powerinfer run one sequence; leave --sequences out');
  process.exit(2);
}
for (const file of [values.pack, values.gguf, ...programs]) {
  if (existsSync(file)) continue;
  console.error(`peers: ${file} does not exist; --help says how to make it`);
  process.exit(2);
}
const context = prompt + generate + 16;

/** A child process that answers one request at a time. */
class Peer {
  constructor(script, args) {
    const file = fileURLToPath(new URL(script, import.meta.url));
    this.child = spawn(process.execPath, [file, ...args], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.lines = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]();
    this.exited = once(this.child, 'exit');
  }
  async answer() {
    const { value, done } = await this.lines.next();
    if (done) throw new Error(`peer ended (code ${(await this.exited)[0]})`);
    const message = JSON.parse(value);
    if (message.error) throw new Error(message.error);
    return message;
  }
  ask(request) {
    this.child.stdin.write(`${JSON.stringify(request)}\n`);
    return this.answer();
  }
  async close() {
    this.child.stdin.end();
    await this.exited;
  }
}

// The peers end with their input, when this process does.
process.once('uncaughtException', ({ message }) => {
  console.error(`peers: ${message}`);
  process.exit(1);
});

const dist = new URL('../../dist/', import.meta.url);
const { BandwidthProbe, MOST_OF_FLOOR } = await import(new URL('bench/bandwidth.js', dist));
const { selectKernels } = await import(new URL('kernels/select.js', dist));

const pack = resolve(values.pack);
const gguf = resolve(values.gguf);
/** [name, peer, request] */
const configurations = [];
const peers = [];
if (!values['no-node-llama']) {
  const llama = new Peer('llama-peer.mjs', [gguf, threads, context, sequences]);
  peers.push(llama);
  configurations.push([(await llama.answer()).ready, llama, { prompt, generate, sequences }]);
}
for (const path of values['llama-bench']) {
  const bench = llamaBench(resolve(path), gguf, threads);
  configurations.push([bench.name, bench, { prompt, generate }]);
}
if (values.powerinfer) {
  const powerinfer = powerInfer(resolve(values.powerinfer), resolve(values['powerinfer-gguf']), threads);
  configurations.push([powerinfer.name, powerinfer, { prompt, generate }]);
}
for (const kernels of values.kernels.split(',')) {
  const peer = new Peer('hybrid-peer.mjs', [pack, threads, context, sequences, kernels]);
  peers.push(peer);
  const name = (await peer.answer()).ready;
  for (const ffn of values.modes.split(','))
    configurations.push([`${name}, ${ffn}`, peer, { prompt, generate, sequences, ffn }]);
}

const probe = await BandwidthProbe.start(threads, selectKernels('auto'));
const results = configurations.map(() => []);
for (let round = 0; round < rounds; round++) {
  for (let i = 0; i < configurations.length; i++) {
    const [, peer, request] = configurations[i];
    const bandwidth = await probe.sample();
    results[i].push({ ...(await peer.ask(request)), bandwidth });
  }
  console.error(
    `round ${round + 1} of ${rounds}: ${results.map((r) => r.at(-1).decodeTokensPerSecond.toFixed(2)).join('  ')} tokens/s`,
  );
}
await probe.close();
for (const peer of peers) await peer.close();

const median = (list) => {
  const sorted = [...list].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};
const bandwidth = median(results.flat().map((r) => r.bandwidth));
const rows = configurations.map(([name], i) => {
  const of = (key) => results[i].map((r) => r[key]);
  const ratio = (key) => median(of(key).map((v, round) => v / results[0][round][key]));
  const decode = of('decodeTokensPerSecond');
  const bytes = results[i][0].bytesPerToken ?? null;
  return {
    name,
    promptTokensPerSecond: sequences === 1 ? median(of('promptTokensPerSecond')) : null,
    promptRatio: sequences === 1 ? ratio('promptTokensPerSecond') : null,
    decodeTokensPerSecond: median(decode),
    decodeMin: Math.min(...decode),
    decodeMax: Math.max(...decode),
    decodeRatio: ratio('decodeTokensPerSecond'),
    bytesPerToken: bytes,
    // Floor: the bytes one token must read, at the bandwidth measured between the runs.
    shareOfFloor: bytes === null ? null : (bytes * median(decode)) / (bandwidth * 1e9),
  };
});

if (values.json) {
  console.log(
    JSON.stringify({
      machine: { cpu: cpus()[0].model, cores: cpus().length, memoryBandwidthGBps: bandwidth },
      rounds,
      prompt,
      generate,
      sequences,
      rows,
    }),
  );
} else {
  console.log(
    `${cpus()[0].model}, ${threads} threads, ${bandwidth.toFixed(1)} GB/s; ${sequences > 1 ? `${sequences} sequences at once, ` : ''}prompt ${prompt}, ${generate} generated, medians of ${rounds} rounds`,
  );
  console.log('| | prompt tok/s | ratio | decode tok/s (min-max) | ratio | MB/token | share of floor |');
  console.log('|---|---|---|---|---|---|---|');
  for (const r of rows) {
    const range = `${r.decodeTokensPerSecond.toFixed(2)} (${r.decodeMin.toFixed(2)}-${r.decodeMax.toFixed(2)})`;
    const bytes = r.bytesPerToken === null ? '' : (r.bytesPerToken / 1e6).toFixed(0);
    const wrong = r.shareOfFloor > MOST_OF_FLOOR ? ' (mistake of measurement)' : '';
    const share = r.shareOfFloor === null ? '' : `${(100 * r.shareOfFloor).toFixed(0)} %${wrong}`;
    console.log(
      `| ${r.name} | ${r.promptTokensPerSecond?.toFixed(1) ?? ''} | ${r.promptRatio?.toFixed(2) ?? ''} | ${range} | ${r.decodeRatio.toFixed(2)} | ${bytes} | ${share} |`,
    );
  }
}
