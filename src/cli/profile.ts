/** `profile`: from a model and text to predictors, thresholds and a plan that `run` then uses. */
import { Option, type Command } from 'commander';
import { UsageError } from '../errors.js';
import { formatBytes } from '../io/progress.js';
import type { KernelBackend } from '../kernels/kernels.js';
import type { WeightFormat } from '../kernels/layout.js';
import { GATE_PREDICTOR_KINDS, type GatePredictorKind } from '../predictor/types.js';
import type { ProfileOptions, Target } from '../profiler/options.js';
import type { Sparsified } from '../profiler/sparsify.js';
import type { HotResult, ProfileResult } from '../profiler/profile.js';
import type { RunFigures } from '../profiler/run-figures.js';
import type { CliContext } from './context.js';
import { modelPath } from './model-argument.js';
import { layerTable } from './layer-table.js';
import { KERNEL_CHOICES, outputOptions, quantOption, threadsOption } from './options.js';
import { byteSize, collect, share, wholeNumber } from './parse.js';
import { percent } from './stats-line.js';
import { table } from './table.js';
import { readTextFile } from './text-file.js';

interface ProfileFlags {
  text?: string[];
  quick?: boolean;
  hotOnly?: boolean;
  tokens?: number;
  samples?: number;
  window?: number;
  seed?: number;
  predictor?: GatePredictorKind;
  rank?: number | 'auto';
  recall?: number;
  maxPplIncrease?: number;
  sparsify?: number;
  memory?: number;
  device?: string;
  out: string;
  report?: string;
  quant?: WeightFormat;
  threads?: number;
  kernels?: KernelBackend | 'auto';
  merge?: string[];
}

export function registerProfile(program: Command, context: CliContext): void {
  const whole = (flags: string, help: string, name: string, min: number, max: number): Option =>
    new Option(flags, help).argParser(wholeNumber(name, min, max));
  const command = program
    .command('profile')
    .description('Record which neurons fire, train predictors, choose thresholds, plan every layer.')
    .argument('[model]', 'model folder, .gguf file or pack (default: the demo model)')
    .option('--text <file>', 'text to read; may be repeated (default: the model writes its own)', collect)
    .option('--quick', 'fewer tokens and samples, no training')
    .addOption(
      new Option('--hot-only', 'frequencies for ordering and placing neurons, no predictor').conflicts([
        'report',
        'predictor',
        'rank',
        'recall',
        'maxPplIncrease',
        'samples',
      ]),
    )
    .addOption(whole('--tokens <n>', 'most tokens to record', '--tokens', 1, 2 ** 31 - 1))
    .addOption(whole('--samples <n>', 'most tokens to train on', '--samples', 1, 2 ** 31 - 1))
    .addOption(whole('--window <n>', 'tokens that are read together', '--window', 2, 2 ** 24))
    .addOption(whole('--seed <n>', 'same seed, same artifacts', '--seed', 0, 2 ** 32 - 1))
    .addOption(new Option('--predictor <kind>', 'kind of predictor').choices(GATE_PREDICTOR_KINDS))
    .addOption(new Option('--rank <n>', 'hidden units of a predictor, or auto').argParser(parseRank))
    .addOption(
      new Option('--recall <share>', 'choose thresholds for this mean recall (default: 0.99)')
        .argParser(share('--recall'))
        .conflicts('maxPplIncrease'),
    )
    .addOption(
      new Option('--max-ppl-increase <share>', 'choose thresholds by perplexity, such as 0.5%').argParser(
        share('--max-ppl-increase', 0, 10),
      ),
    )
    .addOption(
      new Option(
        '--sparsify <share>',
        'SiLU and GELU models: leave out what raises perplexity by at most this, such as 1%',
      )
        .argParser(share('--sparsify', 0, 10))
        .conflicts(['recall', 'maxPplIncrease', 'hotOnly', 'predictor', 'rank', 'merge']),
    )
    .addOption(
      new Option('--memory <size>', 'memory to use (default: half of the machine)').argParser(
        byteSize('--memory'),
      ),
    )
    .option(
      '--device <provider>',
      'execution provider for the products of fitting, such as webgpu or cuda (default: cpu)',
    )
    .option('-o, --out <folder>', 'where profiles/ and predictors/ are; with --merge: the file to write', '.')
    .option('--report <file>', 'write an HTML report')
    .addOption(
      new Option('--merge <files...>', 'merge profile files of one model instead').conflicts([
        'text',
        'report',
      ]),
    )
    .addOption(quantOption())
    .addOption(threadsOption())
    .addOption(new Option('--kernels <backend>', 'kernel backend').choices(KERNEL_CHOICES));
  outputOptions(command)
    .addHelpText('after', EXAMPLES)
    .action((model: string | undefined, flags: ProfileFlags) =>
      flags.merge ? mergeCommand(context, flags.merge, flags.out) : profileCommand(context, model, flags),
    );
}

const EXAMPLES = `
An interrupted run goes on where it was when it is started again.

Examples:
  hybrid-infer profile --quick
  hybrid-infer profile ./prosparse-7b --text wiki.txt --report prosparse.html
  hybrid-infer profile model.hpack --hot-only
  hybrid-infer profile ./llama-2-7b --text wiki.txt --sparsify 1%
  hybrid-infer profile model.hpack --max-ppl-increase 0.5% --out artifacts
  hybrid-infer profile --merge monday.profile tuesday.profile -o both.profile`;

const parseRank = (text: string): number | 'auto' =>
  text === 'auto' ? 'auto' : wholeNumber('--rank', 1, 65_536)(text);

async function profileCommand(
  context: CliContext,
  model: string | undefined,
  flags: ProfileFlags,
): Promise<void> {
  const path = modelPath(model);
  const texts = flags.text?.map((name) => ({ name, text: readTextFile(name, '--text') }));
  if (flags.samples && flags.tokens && flags.samples > flags.tokens) {
    throw new UsageError(`--samples ${flags.samples} is more than --tokens ${flags.tokens}`);
  }
  const { profile, profileHot } = await import('../profiler/profile.js');
  const options: ProfileOptions = {
    texts,
    quick: flags.quick,
    tokens: flags.tokens,
    samples: flags.samples,
    window: flags.window,
    seed: flags.seed,
    predictor: flags.predictor,
    rank: flags.rank,
    target: targetOf(flags),
    sparsify: flags.sparsify,
    memoryBytes: flags.memory,
    device: flags.device,
    threads: flags.threads,
    kernels: flags.kernels,
    signal: context.signal,
    onProgress: context.progress.report,
    onWarning: (message) => context.warn(message),
    onNote: (message) => context.note(message),
  };
  if (flags.hotOnly) {
    const hot = await profileHot(path, flags.out, flags.quant ?? null, options);
    context.progress.finish();
    if (context.json) context.printJson(hotToJson(hot));
    else context.print(hotToText(hot));
    return;
  }
  const result = await profile(path, flags.out, flags.quant ?? null, options);
  if (flags.report !== undefined) {
    const { writeHtmlReport } = await import('../report/html.js');
    await writeHtmlReport(flags.report, result);
  }
  context.progress.finish();
  if (context.json) context.printJson(toJson(result, flags.report ?? null));
  else context.print(toText(result, flags.report));
}

async function mergeCommand(context: CliContext, files: string[], out: string): Promise<void> {
  if (files.length < 2 || out === '.') {
    throw new UsageError('--merge needs at least two profile files, and -o FILE for the result');
  }
  const { mergeProfileFiles } = await import('../profiler/merge.js');
  const merged = await mergeProfileFiles(files, out);
  const artifacts = { profile: out, predictor: null, report: null };
  if (context.json) context.printJson({ artifacts, tokens: merged.tokens, sources: merged.sources });
  else context.print(`${out}: ${merged.tokens} tokens of ${merged.sources.length} profiles`);
}

function targetOf(flags: ProfileFlags): Target | undefined {
  if (flags.maxPplIncrease !== undefined) return { maxPerplexityIncrease: flags.maxPplIncrease };
  return flags.recall === undefined ? undefined : { recall: flags.recall };
}

// ---- output ----------------------------------------------------------------------------------------------

/** Layers as in `eval`, on held-out text, with what was chosen and why. */
function layersOf({ predictor, evaluation }: ProfileResult): object[] {
  return predictor.layers.map((layer, l) => ({
    layer: l,
    mode: layer.mode,
    ...layer.heldOut,
    threshold: layer.threshold,
    rank: layer.predictor.rank,
    kind: layer.predictor.kind,
    bytes: layer.bytes,
    reason: layer.reason,
    measured: evaluation.layers[l],
  }));
}

function toJson(result: ProfileResult, report: string | null): object {
  const { layers: _, ...evaluation } = result.evaluation;
  return {
    model: result.predictor.model.name,
    artifacts: { ...result.artifacts, report },
    target: result.target,
    sparsified: result.sparsified,
    layers: layersOf(result),
    evaluation,
    attempts: result.attempts,
    provenance: result.predictor.provenance,
    memory: result.memory,
    seconds: result.seconds,
    fitSeconds: result.fitSeconds,
    recordTokensPerSecond: result.recordTokensPerSecond,
  };
}

function hotToJson({ artifacts, profile, memory, seconds, recordTokensPerSecond }: HotResult): object {
  return {
    model: profile.model.name,
    artifacts: { ...artifacts, predictor: null, report: null },
    layers: profile.layers.map(({ sparsity, dead, alwaysOn }, l) => ({ layer: l, sparsity, dead, alwaysOn })),
    provenance: profile.sources[0],
    memory,
    seconds,
    recordTokensPerSecond,
  };
}

function hotToText(result: HotResult): string {
  const { profile, artifacts } = result;
  const mean = profile.layers.reduce((sum, { sparsity }) => sum + sparsity, 0) / profile.layers.length;
  return [
    `${profile.model.name}: ${profile.tokens} tokens counted, sparsity ${percent(mean)}`,
    ...costLines(result),
    artifacts.profile,
  ].join('\n');
}

/** Seconds by stage, memory, and the speed of recording. */
function costLines({ seconds, memory, recordTokensPerSecond }: RunFigures): string[] {
  const total = Object.values(seconds).reduce((a, b) => a + b, 0);
  const stages = Object.entries(seconds).map(([stage, value]) => `${stage} ${value.toFixed(1)}`);
  return [
    `${total.toFixed(1)} s (${stages.join(', ')}), at most ${formatBytes(memory.peakBytes)} of memory` +
      (recordTokensPerSecond === null ? '' : `, recorded ${recordTokensPerSecond.toFixed(0)} tokens/s`),
  ];
}

/** What was left out before it was built for all neurons, and how far it was from the best. */
function screenedLines({ attempts }: ProfileResult): string[] {
  const of = new Map<string, { over: number[]; error: number; estimated: boolean }>();
  for (const { kind, format, rank, from, over, overError } of attempts.flat()) {
    if (from === 'all') continue;
    const sketch = kind !== 'lowrank' && kind !== 'mlp';
    const name = `${kind} ${sketch ? format : rank}`;
    const known = of.get(name) ?? { over: [], error: 0, estimated: false };
    known.over.push(over);
    known.error = Math.max(known.error, overError);
    known.estimated ||= from === 'estimate';
    of.set(name, known);
  }
  return [...of].map(([name, { over, error, estimated }]) => {
    const range = `${percent(Math.min(...over))} to ${percent(Math.max(...over))}`;
    const sure = error > 0 ? `, ± ${percent(error)}` : estimated ? ', estimated in its favour' : '';
    return `not built: ${name} in ${over.length} layers, its FFN dearer by ${range}${sure}`;
  });
}

const WAYS = {
  dense: 'dense',
  gate: 'exact, small gates cut (CATS)',
  contribution: 'exact, small contributions cut (no less to read: what a predictor can reach)',
  predicted: 'predicted, by contributions',
} as const;

/** Dense and what was found, side by side, on text that decided nothing. */
function sparsifiedLines({ alternatives, verdict, chosen }: Sparsified): string[] {
  const [dense] = alternatives;
  const header = ['', 'active', 'FFN bytes', 'of dense', 'perplexity', 'change', 'tokens/s', 'speed'];
  const rows = alternatives.map((a) => [
    WAYS[a.name],
    percent(1 - a.skipped),
    formatBytes(a.ffnBytes),
    percent(a.ffnBytes / dense.ffnBytes),
    a.perplexity.toFixed(4),
    percent(a.increase),
    a.tokensPerSecond?.toFixed(1) ?? '-',
    a.speedup === null ? '-' : `${a.speedup.toFixed(2)}x`,
  ]);
  return ['', table(header, rows), '', `chosen: ${chosen}, ${verdict}`];
}

function toText(result: ProfileResult, report: string | undefined): string {
  const { predictor, evaluation: e } = result;
  const { provenance } = predictor;
  const text = provenance.selfWritten
    ? 'text the model wrote'
    : provenance.texts.map((t) => t.name).join(', ');
  const ffn = predictor.layers.reduce((sum, { bytes, mode }) => sum + bytes[mode], 0);
  const exact = predictor.layers.reduce((sum, { bytes }) => sum + bytes.exact, 0);
  const change =
    e.densePerplexity === null ? '' : ` (${percent(e.perplexity / e.densePerplexity - 1)} from dense)`;
  return [
    `${predictor.model.name}: ${provenance.tokens} tokens of ${text}, ` +
      `${provenance.samples} samples; target ${result.target}`,
    `figures: ${provenance.heldOutSamples} samples that neither trained nor chose anything`,
    '',
    layerTable(predictor.layers),
    '',
    `perplexity ${e.perplexity.toFixed(4)}${change}, KL divergence ${e.klDivergence?.toExponential(2) ?? '-'}, ` +
      `top-1 agreement ${e.top1Agreement === null ? '-' : percent(e.top1Agreement)}, on held-out text`,
    ...(result.sparsified
      ? sparsifiedLines(result.sparsified)
      : [`FFN weights per token: ${formatBytes(ffn)}, ${percent(ffn / exact)} of what exact reads`]),
    ...screenedLines(result),
    ...costLines(result),
    ...Object.values(result.artifacts),
    ...(report === undefined ? [] : [report]),
  ].join('\n');
}
