/**
 * Writes a synthetic model of a published shape: random weights with chosen densities, for honest speed
 * numbers without a download and without training. See docs/synthetic-models.md.
 */
/* global AbortController */
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { performance } from 'node:perf_hooks';
import { readFlags } from './flags.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
if (!existsSync(join(root, 'dist/synthesize/write-synthetic.js'))) {
  console.error('dist/ is missing: run npm run build first');
  process.exit(2);
}
const { SHAPES } = await import(join(root, 'dist/synthesize/shapes.js'));
const { writeSynthetic } = await import(join(root, 'dist/synthesize/write-synthetic.js'));
const { progressReporter, formatBytes } = await import(join(root, 'dist/io/progress.js'));

const usage = `node tools/synthesize.mjs SHAPE -o FOLDER [options]

Makes FOLDER/SHAPE.QUANT.hpack and, profiles/ and predictors/ beside it: run started in FOLDER finds them.
shapes: ${Object.keys(SHAPES).join(', ')}

  --quant FORMAT             of the weights: q4, q8, f32 (q4)
  --predictor-quant FORMAT   of a low-rank predictor: q4, q8 (q4)
  --predictor-rank N         its hidden units, and the rank of the part of the gates that it sees (by shape)
  --sketch-bits N            instead: the gates themselves in 1, 2 or 3 bits as their predictor
  --sparsity S               share of neurons that are zero (as published; so are the two below)
  --predicted-sparsity S     share of neurons that are no candidates; a sketch has what its bits give
  --recall R                 share of the active neurons that are candidates
  --skew S                   spread of the neurons' frequencies (1)
  --layers N                 fewer layers than the shape has
  --threads N                (all cores)
  --seed N                   (1)`;
const text = { type: 'string' };
const shares = ['sparsity', 'predicted-sparsity', 'recall', 'skew'];
const counts = ['predictor-rank', 'sketch-bits', 'layers', 'threads', 'seed'];
const { values, positionals } = readFlags(
  usage,
  {
    output: { ...text, short: 'o' },
    quant: { ...text, default: 'q4' },
    'predictor-quant': text,
    ...Object.fromEntries([...shares, ...counts].map((name) => [name, text])),
  },
  counts,
  true,
);
const refuse = (message) => {
  console.error(`error: ${message}\n\n${usage}`);
  process.exit(2);
};
const [shape] = positionals;
if (!shape || positionals.length > 1 || !values.output) refuse('expected one shape and -o FOLDER');
const share = (name) => {
  if (values[name] === undefined) return undefined;
  const value = Number(values[name]);
  if (values[name].trim() === '' || !Number.isFinite(value))
    refuse(`--${name} is "${values[name]}", expected a number`);
  return value;
};
const oneOf = (name, value, known) => {
  if (!known.includes(value)) refuse(`--${name} is ${value}, expected ${known.join(', ')}`);
};
oneOf('quant', values.quant, ['q4', 'q8', 'f32']);
const bits = values['sketch-bits'];
if (bits) {
  oneOf('sketch-bits', bits, [1, 2, 3]);
  for (const name of ['predictor-quant', 'predictor-rank', 'predicted-sparsity'])
    if (values[name]) refuse(`--${name} is of a low-rank predictor, --sketch-bits makes a sketch`);
} else {
  values['predictor-quant'] ??= 'q4';
  oneOf('predictor-quant', values['predictor-quant'], ['q4', 'q8']);
}
const progress = progressReporter();
const abort = new AbortController();
process.once('SIGINT', () => abort.abort());
mkdirSync(values.output, { recursive: true });
try {
  const began = performance.now();
  const made = await writeSynthetic(
    {
      shape,
      sparsity: share('sparsity'),
      predictedSparsity: share('predicted-sparsity'),
      recall: share('recall'),
      rank: values['predictor-rank'],
      skew: share('skew'),
      layers: values.layers,
      seed: values.seed,
    },
    values.output,
    {
      quant: values.quant,
      predictorQuant: bits ? `q${bits}` : values['predictor-quant'],
      threads: values.threads,
      signal: abort.signal,
      onProgress: progress.report,
    },
  );
  progress.finish();
  const percent = (part) => `${(100 * part).toFixed(1)} %`;
  console.log(
    [
      `pack       ${made.pack} (${formatBytes(made.packBytes)})`,
      `profile    ${made.profile}`,
      `predictor  ${made.predictor} (${formatBytes(made.predictorBytes)})`,
      `built for  sparsity ${percent(made.asked.sparsity)}, predicted sparsity ${percent(made.asked.predictedSparsity)}, recall ${percent(made.asked.recall)}`,
      `skew       the hottest 26 % of the neurons make ${percent(made.hotShare)} of the activations`,
      `time       ${((performance.now() - began) / 1000).toFixed(0)} s`,
    ].join('\n'),
  );
} catch (error) {
  progress.finish();
  console.error(`${error.message}${error.hint ? `\n${error.hint}` : ''}`);
  process.exit(error.exitCode ?? 1);
}
