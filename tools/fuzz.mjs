/**
 * A longer fuzz run than the test suite has time for: random corruptions of tiny models, tokenizers and packs,
 * each opened and used. Anything but success or a typed error is a finding; so is taking too long, and so is
 * memory that grows without end.
 *
 *     npm run build && node tools/fuzz.mjs [--seconds 60] [--seed 1] [--target safetensors,gguf,...]
 *
 * Findings are kept in dist/fuzz-findings/<target>-<seed>-<case>; the same seed makes the same cases.
 */
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import fc from 'fast-check';
import { loadTestModules } from './test-modules.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const { values: options } = parseArgs({
  options: {
    seconds: { type: 'string', default: '60' },
    seed: { type: 'string', default: '1' },
    target: { type: 'string', default: '' },
  },
});

/** One case may take this long; the slowest honest one, a tokenizer that is stopped, takes one second. */
const CASE_MS = 5000;
/** Memory above what the process had when warm: a leak or an allocation that trusts a length. */
const MAX_GROWTH_BYTES = 512 * 2 ** 20;

if (!existsSync(join(root, 'dist/model/index.js'))) {
  console.error('dist/ is missing: run npm run build first');
  process.exit(2);
}
process.env.HYBRID_INFER_CACHE = join(tmpdir(), `hybrid-infer-fuzz-${process.pid}`);
const { HybridError } = await import(join(root, 'dist/errors.js'));
const { openModel, createTokenizer, ChatTemplate } = await import(join(root, 'dist/model/index.js'));
const helpers = await loadTestModules(
  ['float-bits', 'tiny-models', 'tiny-gguf', 'corrupt'].map((name) => `helpers/${name}`),
);

// ---- targets: a file to corrupt, and how to use what it belongs to --------------------------------------

async function useModel(path) {
  const model = await openModel(path);
  try {
    for (const [name, { shape }] of model.tensors) {
      await model.readRows(name, 0, shape.length === 1 ? 1 : shape[0]);
    }
    const tokenizer = createTokenizer(model.tokenizer);
    tokenizer.decode(tokenizer.encode('The end of the tale — naïve 🦉'));
  } finally {
    await model.close();
  }
}

const small = { hiddenSize: 32, intermediateSize: 32, layers: 1, heads: 2, kvHeads: 1, vocabSize: 270 };
const folder = helpers.writeTinyFolder({ ...small, dtype: 'F16', shards: 2 });
const single = helpers.writeTinyFolder(small);
const inFolder = (name, focus) => ({ file: join(folder, name), focus, use: () => useModel(folder) });
const ggufTarget = (tokenizer) => {
  const file = helpers.writeTinyGguf({ ...small, ggufType: 'Q4_0', tokenizer }, helpers.tempFolder());
  return { file, focus: 6500, use: () => useModel(file) };
};

const TEMPLATE =
  "{%- set ns = namespace(n=0) -%}{% for m in messages[:9] %}{% set ns.n = ns.n + 1 %}{{ '<|' ~ m.role ~ '|>' }}" +
  "{{ m['content'].split('a')[0] | trim | replace('b', 'cc') | indent(2) }}{{ range(ns.n) | join('-') }}{% endfor %}" +
  '{% macro f(x) %}{{ x * 3 if x > 1 else [x, x] | tojson }}{% endmacro %}{{ f(2) }}';
const templateFile = join(helpers.tempFolder(), 'template.jinja');
writeFileSync(templateFile, TEMPLATE);

const targets = {
  safetensors: { file: join(single, 'model.safetensors'), focus: 1400, use: () => useModel(single) },
  shard: inFolder('model-00001-of-00002.safetensors', 700),
  index: inFolder('model.safetensors.index.json', 1200),
  gguf: ggufTarget('gpt2'),
  'gguf-sentencepiece': ggufTarget('llama'),
  config: inFolder('config.json', 700),
  tokenizer: inFolder('tokenizer.json', 6000),
  'tokenizer-config': inFolder('tokenizer_config.json', 200),
  template: {
    file: templateFile,
    focus: TEMPLATE.length,
    use: async () => {
      const template = new ChatTemplate(readFileSync(templateFile, 'latin1'), { tokenizerConfigJson: '{}' });
      template.render({ messages: [{ role: 'user', content: 'a banana\n'.repeat(50) }] });
    },
  },
};
const pack = await packTarget();
if (pack) targets.pack = pack;

async function packTarget() {
  if (!existsSync(join(root, 'dist/pack/reader.js')) || !existsSync(join(root, 'dist/pack/convert.js')))
    return null;
  const { openPack } = await import(join(root, 'dist/pack/reader.js'));
  const { convert } = await import(join(root, 'dist/pack/convert.js'));
  const file = join(helpers.tempFolder(), 'tiny.pack');
  const source = await openModel(single);
  await convert(source, file, { quant: 'q4' });
  await source.close();
  return { file, focus: 9000, use: async () => (await openPack(file)).close() };
}

// ---- the run -------------------------------------------------------------------------------------------

const wanted = options.target ? options.target.split(',') : Object.keys(targets);
for (const name of wanted) {
  if (!targets[name]) {
    console.error(`unknown target ${name}; there are: ${Object.keys(targets).join(', ')}`);
    process.exit(2);
  }
}
const seed = Number(options.seed);
const originals = new Map(wanted.map((name) => [name, readFileSync(targets[name].file)]));
const counts = new Map(wanted.map((name) => [name, { opened: 0, refused: 0, findings: 0, slowestMs: 0 }]));
const end = performance.now() + Number(options.seconds) * 1000;
let warmBytes = 0;

for (let number = 0; performance.now() < end; number++) {
  const name = wanted[number % wanted.length];
  const { file, focus, use } = targets[name];
  const [corrupt] = fc.sample(helpers.corruptions(focus), { seed: seed * 1_000_003 + number, numRuns: 1 });
  const bytes = corrupt(originals.get(name));
  writeFileSync(file, bytes);
  await oneCase(name, number, bytes, use);
  writeFileSync(file, originals.get(name));
  if (number === 20 * wanted.length) warmBytes = process.memoryUsage().rss;
}
console.table(Object.fromEntries(counts));
rmSync(process.env.HYBRID_INFER_CACHE, { recursive: true, force: true });
process.exitCode = [...counts.values()].some((c) => c.findings > 0) ? 1 : 0;

async function oneCase(name, number, bytes, use) {
  const count = counts.get(name);
  const start = performance.now();
  try {
    await use();
    count.opened++;
  } catch (error) {
    if (error instanceof HybridError) count.refused++;
    else report(name, number, bytes, error.stack ?? String(error));
  }
  const ms = performance.now() - start;
  count.slowestMs = Math.max(count.slowestMs, Math.round(ms));
  if (ms > CASE_MS) report(name, number, bytes, `took ${Math.round(ms)} ms`);
  const grown = process.memoryUsage().rss - warmBytes;
  if (warmBytes > 0 && grown > MAX_GROWTH_BYTES) {
    report(name, number, bytes, `memory grew by ${Math.round(grown / 2 ** 20)} MiB`);
    warmBytes += grown;
  }
}

function report(name, number, bytes, what) {
  counts.get(name).findings++;
  const folderName = join(root, 'dist/fuzz-findings');
  mkdirSync(folderName, { recursive: true });
  const path = join(folderName, `${name}-${seed}-${number}`);
  writeFileSync(path, bytes);
  console.error(`${name}, case ${number}: ${what}\n  input kept as ${path}`);
}
