/** `tune`: measure the trade-off between quality and work, and set the thresholds to the chosen point. */
import { Option, type Command } from 'commander';
import type { KernelBackend } from '../kernels/kernels.js';
import type { WeightFormat } from '../kernels/layout.js';
import { formatBytes } from '../io/progress.js';
import type { TuneResult } from '../profiler/tune.js';
import type { CliContext } from './context.js';
import { layerTable } from './layer-table.js';
import { modelPath } from './model-argument.js';
import { KERNEL_CHOICES, outputOptions, quantOption, threadsOption } from './options.js';
import { list, share, wholeNumber } from './parse.js';
import { table } from './table.js';
import { readTextFile } from './text-file.js';

interface TuneFlags {
  text?: string;
  tokens?: number;
  seed?: number;
  window?: number;
  targets?: number[];
  recall?: number;
  maxPplIncrease?: number;
  profile?: string;
  predictor?: string;
  threads?: number;
  kernels?: KernelBackend | 'auto';
  quant?: WeightFormat;
}

export function registerTune(program: Command, context: CliContext): void {
  const command = program
    .command('tune')
    .description('Sweep the thresholds with real evaluations and keep the best point.')
    .argument('[model]', 'model folder, .gguf file or pack (default: the demo model)')
    .option(
      '--text <file>',
      'text to measure on; not the text that was profiled (default: the model writes its own)',
    )
    .addOption(
      new Option(
        '--tokens <n>',
        'use the first n tokens of the text, or write so many (default: by the size of the model, at most 16384)',
      ).argParser(wholeNumber('--tokens', 2, 2 ** 31 - 1)),
    )
    .addOption(
      new Option('--seed <n>', 'of the text the model writes (default: 1000)').argParser(
        wholeNumber('--seed', 0, 2 ** 32 - 1),
      ),
    )
    .addOption(
      new Option('--window <n>', 'tokens that are scored together').argParser(
        wholeNumber('--window', 2, 2 ** 24),
      ),
    )
    .addOption(
      new Option('--targets <shares>', 'recalls to try, such as 0.97,0.99').argParser(
        list(share('--targets')),
      ),
    )
    .addOption(
      new Option('--recall <share>', 'choose the point of this mean recall')
        .argParser(share('--recall'))
        .conflicts('maxPplIncrease'),
    )
    .addOption(
      new Option(
        '--max-ppl-increase <share>',
        'choose the cheapest point within this increase of perplexity (default: 0.1%)',
      ).argParser(share('--max-ppl-increase', 0, 10)),
    )
    .option('--profile <file>', 'profile to use (default: found by the name of the model)')
    .option('--predictor <file>', 'predictor to tune (default: found by the name of the model)')
    .addOption(quantOption())
    .addOption(threadsOption())
    .addOption(new Option('--kernels <backend>', 'kernel backend').choices(KERNEL_CHOICES).default('auto'));
  outputOptions(command)
    .addHelpText('after', EXAMPLES)
    .action((model: string | undefined, flags: TuneFlags) => tuneCommand(context, model, flags));
}

const EXAMPLES = `
Examples:
  hybrid-infer tune
  hybrid-infer tune --text valid.txt
  hybrid-infer tune ./prosparse-7b --text wiki.txt --max-ppl-increase 0.5% --json`;

async function tuneCommand(
  context: CliContext,
  argument: string | undefined,
  flags: TuneFlags,
): Promise<void> {
  const text = flags.text === undefined ? null : readTextFile(flags.text, '--text');
  const path = modelPath(argument);
  const [{ tune, sweepTokens }, { packFor }, { openPack }, { createTokenizer }] = await Promise.all([
    import('../profiler/tune.js'),
    import('../pack/cache.js'),
    import('../pack/reader.js'),
    import('../model/tokenizer.js'),
  ]);
  const { threads, kernels } = flags;
  const shared = { threads, signal: context.signal, onProgress: context.progress.report };
  const pack = openPack(
    await packFor(path, flags.quant ?? null, { ...shared, onWarning: (message) => context.warn(message) }),
  );
  try {
    const tokens = flags.tokens ?? sweepTokens(pack.header);
    const ids =
      text === null
        ? null
        : createTokenizer(pack.header.tokenizer).encode(text, { addSpecial: false }).slice(0, tokens);
    const { recall, maxPplIncrease } = flags;
    const result = await tune(pack, ids, {
      ...shared,
      kernels,
      window: flags.window,
      tokens,
      seed: flags.seed,
      targets: flags.targets,
      profile: flags.profile,
      predictor: flags.predictor,
      choose:
        recall !== undefined
          ? { recall }
          : maxPplIncrease !== undefined
            ? { maxPerplexityIncrease: maxPplIncrease }
            : undefined,
    });
    context.progress.finish();
    if (context.json) context.printJson(toJson(result, flags));
    else context.print(toText(result));
  } finally {
    pack.close();
  }
}

/** Field names are a contract: docs/json.md. */
const toJson = ({ path, predictor, curve, chosen, evaluation }: TuneResult, flags: TuneFlags): object => ({
  model: predictor.model.name,
  artifacts: { profile: flags.profile ?? null, predictor: path, report: null },
  layers: predictor.layers.map((layer, l) => ({
    layer: l,
    mode: layer.mode,
    ...layer.heldOut,
    threshold: layer.threshold,
    rank: layer.predictor.rank,
    kind: layer.predictor.kind,
    bytes: layer.bytes,
    reason: layer.reason,
    measured: evaluation.layers[l],
  })),
  curve,
  chosen,
});

function toText({ path, predictor, curve, chosen }: TuneResult): string {
  const percent = (value: number): string => `${(100 * value).toFixed(2)} %`;
  const rows = curve.map((point) => [
    point === chosen || point.target === chosen.target ? '*' : ' ',
    `${point.target}`,
    percent(point.recall),
    percent(point.weightedRecall),
    percent(point.predictedSparsity),
    point.perplexity.toFixed(4),
    `${(100 * (point.perplexity / point.densePerplexity - 1)).toFixed(3)} %`,
    point.klDivergence.toExponential(2),
    formatBytes(point.ffnBytesPerToken),
    point.decodeTokensPerSecond.toFixed(1),
  ]);
  const header = ['', 'target', 'recall', 'weighted', 'predicted', 'perplexity', 'change', 'KL', 'FFN bytes'];
  return [
    table([...header, 'tokens/s'], rows),
    '',
    layerTable(predictor.layers),
    '',
    'recall and sparsity of the layers: on text that did not choose the thresholds',
    `wrote ${path}: recall ${chosen.target}`,
  ].join('\n');
}
