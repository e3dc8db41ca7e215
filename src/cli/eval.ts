/** `eval`: how good the model is on a text in the chosen FFN mode, and what its layers skipped. */
import { Option, type Command } from 'commander';
import { UsageError } from '../errors.js';
import type { Evaluation } from '../evaluate/evaluate.js';
import type { CliContext } from './context.js';
import { modelPath } from './model-argument.js';
import {
  engineOptions,
  loadOptions,
  outputOptions,
  planOptions,
  type EngineFlags,
  type PlanFlags,
} from './options.js';
import { wholeNumber } from './parse.js';
import { percent } from './stats-line.js';
import { table } from './table.js';
import { readTextFile } from './text-file.js';

interface EvalFlags extends EngineFlags, PlanFlags {
  text?: string;
  tasks?: string[];
  beginToken?: boolean;
  ownRows?: boolean;
  window?: number;
  tokens?: number;
  dense: boolean;
}

export function registerEval(program: Command, context: CliContext): void {
  const command = program
    .command('eval')
    .description('Measure a model on a text or on tasks, and its distance from dense.')
    .argument('[model]', 'model folder, .gguf file or pack (default: the demo model)')
    .option('--text <file>', 'a text: perplexity, sparsity, densities per layer')
    .addOption(
      new Option(
        '--tasks <files...>',
        "files of lm_eval --log_samples: accuracies, against lm-eval's own answers",
      ).conflicts(['text', 'window', 'tokens']),
    )
    .option('--begin-token', "tasks: a begin token before every context, as lm-eval's add_bos_token")
    .option('--own-rows', 'tasks: score continuations at their own positions, also where lm-eval does not')
    .addOption(
      new Option(
        '--window <n>',
        'tokens that are scored together (default: 256, or the context if shorter)',
      ).argParser(wholeNumber('--window', 2, 2 ** 24)),
    )
    .addOption(
      new Option('--tokens <n>', 'use the first n tokens of the text').argParser(
        wholeNumber('--tokens', 2, 2 ** 31 - 1),
      ),
    )
    .option('--no-dense', 'skip the comparison with dense');
  outputOptions(planOptions(engineOptions(command)))
    .addHelpText('after', EXAMPLES)
    .action((model: string | undefined, flags: EvalFlags) => evalCommand(context, model, flags));
}

const EXAMPLES = `
Perplexity: consecutive windows, the last partial one dropped; every token but a window's first is scored.

Tasks: the requests of lm-eval's sample files, scored as lm-eval does; an interrupted run goes on where it was.

Examples:
  hybrid-infer eval --text valid.txt
  hybrid-infer eval ./prosparse-7b --ffn predicted --tasks samples_hellaswag.jsonl samples_gsm8k.jsonl
  hybrid-infer eval ./prosparse-7b --quant q4 --text wiki.txt --tokens 20000 --json`;

async function evalCommand(
  context: CliContext,
  argument: string | undefined,
  flags: EvalFlags,
): Promise<void> {
  if (flags.tasks !== undefined) {
    const { evalTasksCommand } = await import('./eval-tasks.js');
    return evalTasksCommand(context, argument, { ...flags, tasks: flags.tasks });
  }
  if (flags.text === undefined) {
    throw new UsageError('eval needs --text FILE or --tasks FILE...');
  }
  if (flags.beginToken || flags.ownRows) {
    throw new UsageError(`--${flags.ownRows ? 'own-rows' : 'begin-token'} belongs to --tasks`);
  }
  const path = modelPath(argument);
  const text = readTextFile(flags.text, '--text');
  const [{ HybridModel }, { evaluate }, { findArtifacts, thresholdsFor }] = await Promise.all([
    import('../index.js'),
    import('../evaluate/evaluate.js'),
    import('../profiler/find-plan.js'),
  ]);
  const load = loadOptions(context, flags);
  const model = await HybridModel.load(path, load);
  try {
    // Special tokens are no part of the text, as in the usual definition.
    const ids = model.tokenizer.encode(text, { addSpecial: false }).slice(0, flags.tokens);
    const result = await evaluate(model.engine, ids, {
      window: flags.window,
      compare: flags.dense,
      signal: context.signal,
      onProgress: (done, total) => context.progress.report({ stage: 'eval', done, total, unit: 'tokens' }),
    });
    context.progress.finish();
    if (result.layers.some((layer) => layer.mode === 'predicted')) {
      const { layers } = findArtifacts(model.engine.pack, flags).predictor!.artifact;
      const chosen =
        flags.recall === undefined
          ? layers.map((layer) => layer.threshold)
          : thresholdsFor(layers, flags.recall);
      for (const layer of result.layers) {
        if (layer.mode === 'predicted') layer.threshold = chosen[layer.layer] + (flags.thresholdShift ?? 0);
      }
    }
    if (context.json) context.printJson({ model: model.name, ffnMode: model.engine.ffn, ...result });
    else context.print(toText(result));
  } finally {
    await model.close();
  }
}

function toText(result: Evaluation): string {
  const share = (value: number | null): string => (value === null ? '-' : percent(value));
  const lines = [`perplexity ${result.perplexity.toFixed(4)} over ${result.tokens} scored tokens`];
  if (result.densePerplexity !== null) {
    const change = percent(result.perplexity / result.densePerplexity - 1);
    lines.push(
      `dense      ${result.densePerplexity.toFixed(4)} (change ${change}), ` +
        `KL divergence ${result.klDivergence!.toExponential(2)}, top-1 agreement ${percent(result.top1Agreement!)}`,
    );
  }
  const header = ['layer', 'mode', 'sparsity', 'predicted', 'recall', 'weighted', 'rank'];
  const rows = result.layers.map((layer) => [
    `${layer.layer}`,
    layer.mode,
    share(layer.sparsity),
    share(layer.predictedSparsity),
    share(layer.recall),
    share(layer.weightedRecall),
    layer.rank === null ? '-' : `${layer.rank}`,
  ]);
  const mean = [
    'mean',
    '',
    result.sparsity,
    result.predictedSparsity,
    result.recall,
    result.weightedRecall,
    '',
  ];
  rows.push(mean.map((cell) => (typeof cell === 'string' ? cell : share(cell))));
  return `${lines.join('\n')}\n\n${table(header, rows)}`;
}
