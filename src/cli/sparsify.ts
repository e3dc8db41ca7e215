/** `sparsify`: from a SiLU model to sparse ones, with the table that compares them. */
import { existsSync } from 'node:fs';
import { Option, type Command } from 'commander';
import { UsageError } from '../errors.js';
import { createAtomic } from '../io/atomic-write.js';
import type { TaskResult } from '../tasks/evaluate-tasks.js';
import type { Comparison } from '../sparsify/compare.js';
import type { FileType } from '../sparsify/final-weights.js';
import type { TextSource } from '../sparsify/prepare.js';
import { parseStages, type Stage } from '../sparsify/schedule.js';
import { SETTINGS, type SettingName } from '../sparsify/settings.js';
import type { SparsifyResult } from '../sparsify/sparsify.js';
import type { CliContext } from './context.js';
import { modelPath } from './model-argument.js';
import { outputOptions, threadsOption } from './options.js';
import { byteSize, collect, decimal, list, oneOf, share, wholeNumber } from './parse.js';
import type { Extras } from './sparsify-extras.js';
import { shiftToText, sparsifyToText } from './sparsify-text.js';
import { readTextFile } from './text-file.js';

interface SparsifyFlags {
  text: string[];
  heldOut?: string;
  out: string;
  settings: SettingName[];
  steps?: number;
  stages?: Stage[];
  fixedLambda?: number;
  shiftBy?: number;
  targetSparsity?: number;
  maxPplIncrease?: number;
  thresholds?: number[];
  shiftOnly?: boolean;
  batchTokens?: number;
  window?: number;
  microBatch?: number;
  lr?: number;
  warmup?: number;
  weightDecay?: number;
  distill?: number | true;
  train: 'ffn' | 'all';
  adapters: number;
  seed?: number;
  evalEvery?: number;
  checkpointEvery?: number;
  dtype?: 'f16' | 'bf16' | 'f32';
  memory?: number;
  threads?: number;
  report?: string;
  profile?: boolean;
  quick?: boolean;
  tasks?: string[];
}

/** The share of the loss that `--distill` without a value means: text still has its say. */
const DISTILL = 0.9;

export function registerSparsify(program: Command, context: CliContext): void {
  const whole = (flags: string, help: string, name: string, min: number, max: number): Option =>
    new Option(flags, help).argParser(wholeNumber(name, min, max));
  const number = (flags: string, help: string, name: string, min: number, max: number): Option =>
    new Option(flags, help).argParser(decimal(name, min, max));
  const command = program
    .command('sparsify')
    .description('Train a SiLU model to a sparse one (ProSparse), or raise the threshold of a ReLU model.')
    .argument('<model>', 'Hugging Face folder')
    .requiredOption('--text <file>', 'text to train on, or FILE=WEIGHT; may be repeated', collect)
    .option('--held-out <file>', 'text to measure on (default: the end of every text)')
    .requiredOption('-o, --out <folder>', 'where the model goes; with several settings, their folders')
    .addOption(
      new Option('--settings <names>', `${SETTINGS.join(', ')}, or all`)
        .argParser((text) => (text === 'all' ? [...SETTINGS] : list(oneOf('--settings', SETTINGS))(text)))
        .default(['prosparse'], 'prosparse'),
    )
    .addOption(whole('--steps <n>', 'steps of training (default: 400)', '--steps', 1, 1e8))
    .addOption(
      new Option(
        '--stages <list>',
        "LAMBDA:END, ..., such as '0:5000, 5e-3:6000' (default: ProSparse's, by --steps)",
      ).argParser(parseStages),
    )
    .addOption(
      number('--fixed-lambda <x>', 'lambda of setting fixed (default: 0.02)', '--fixed-lambda', 0, 1e3),
    )
    .addOption(
      number('--shift-by <x>', 'b of setting shifted, max(g - b, 0) (default: 0.1)', '--shift-by', 0, 100),
    )
    .addOption(
      new Option('--target-sparsity <share>', 'adapt lambda to end at this sparsity')
        .argParser(share('--target-sparsity', 0, 0.999))
        .conflicts('stages'),
    )
    .addOption(
      new Option('--max-ppl-increase <share>', 'what the threshold may cost (default: 0.25%)').argParser(
        share('--max-ppl-increase'),
      ),
    )
    .addOption(
      new Option('--thresholds <list>', 'thresholds to try').argParser(list(decimal('--thresholds', 0, 100))),
    )
    .option('--shift-only', 'no training: choose a threshold for a model that has a ReLU')
    .addOption(whole('--batch-tokens <n>', 'tokens of a step (default: 4096)', '--batch-tokens', 1, 1e8))
    .addOption(whole('--window <n>', 'tokens of a window (default: 256)', '--window', 2, 2 ** 24))
    .addOption(whole('--micro-batch <n>', 'windows computed at once by a thread', '--micro-batch', 1, 65_536))
    .addOption(number('--lr <x>', 'highest learning rate (default: by size)', '--lr', 0, 10))
    .addOption(
      whole('--warmup <n>', 'steps of rising learning rate (default: an eighth)', '--warmup', 0, 1e8),
    )
    .addOption(number('--weight-decay <x>', 'on matrices (default: 0.1)', '--weight-decay', 0, 10))
    .addOption(
      new Option(
        '--distill [share]',
        `learn from the original's logits: their share of the loss (without a value: ${DISTILL})`,
      ).argParser(share('--distill')),
    )
    .addOption(new Option('--train <part>', 'what is trained').choices(['ffn', 'all']).default('all'))
    .addOption(
      whole(
        '--adapters <rank>',
        'train low-rank adapters in place of the matrices',
        '--adapters',
        0,
        4096,
      ).default(0, 'none'),
    )
    .addOption(whole('--seed <n>', 'same seed, same bytes (default: 1)', '--seed', 0, 2 ** 32 - 1))
    .addOption(
      whole('--eval-every <n>', 'steps between measurements (default: a quarter)', '--eval-every', 1, 1e8),
    )
    .addOption(
      whole(
        '--checkpoint-every <n>',
        'steps between checkpoints (default: one a minute)',
        '--checkpoint-every',
        1,
        1e8,
      ),
    )
    .addOption(
      new Option('--dtype <type>', 'of the written weights (default: as they were)').choices([
        'f16',
        'bf16',
        'f32',
      ]),
    )
    .addOption(
      new Option('--memory <size>', 'memory to stay within (default: what is free)').argParser(
        byteSize('--memory'),
      ),
    )
    .addOption(threadsOption())
    .option('--report <file>', 'write an HTML report')
    .option('--profile', 'profile and bench every result: recall, predicted sparsity, speed')
    .option('--quick', 'with --profile: fewer samples, sketches only')
    .option('--tasks <files...>', 'score every result on files of lm_eval --log_samples');
  outputOptions(command)
    .addHelpText('after', EXAMPLES)
    .action((model: string, flags: SparsifyFlags) =>
      flags.shiftOnly ? shiftOnlyCommand(context, model, flags) : sparsifyCommand(context, model, flags),
    );
}

const EXAMPLES = `
An interrupted run goes on where it was when it is started again, and ends with the same bytes.

Examples:
  hybrid-infer sparsify ./tales-4m-silu --text train.txt --held-out valid.txt -o tales-sparse
  hybrid-infer sparsify ./llama --text wiki.txt=3 --text code.txt --train ffn --distill -o llama-sparse
  hybrid-infer sparsify ./tales-4m-silu --text train.txt --settings all --profile --report table.html -o settings
  hybrid-infer sparsify ./relu-llama --shift-only --text valid.txt -o fat-llama`;

async function sparsifyCommand(context: CliContext, argument: string, flags: SparsifyFlags): Promise<void> {
  const texts = textsOf(flags.text);
  const path = modelPath(argument);
  const { sparsify } = await import('../sparsify/sparsify.js');
  const { measureExtras } = await import('./sparsify-extras.js');
  const tasksToRun = flags.tasks ? (await import('../tasks/samples.js')).readTasks(flags.tasks) : null;
  if (flags.report !== undefined) requireWritable(flags.report);
  let extras: Extras = { tasks: null, comparisons: null };
  const result = await sparsify(path, flags.out, {
    ...trainingOptions(flags),
    texts,
    heldOut: flags.heldOut === undefined ? null : readTextFile(flags.heldOut, '--held-out'),
    settings: [...new Set(flags.settings)],
    stages: flags.stages,
    fixedLambda: flags.fixedLambda,
    shiftBy: flags.shiftBy,
    targetSparsity: flags.targetSparsity,
    maxIncrease: flags.maxPplIncrease,
    thresholds: flags.thresholds,
    dtype: flags.dtype ? (flags.dtype.toUpperCase() as FileType) : null,
    memoryBytes: flags.memory,
    checkpointEvery: flags.checkpointEvery,
    signal: context.signal,
    onProgress: context.progress.report,
    onNote: (line) => context.note(line),
    whenWritten: async (written) => {
      if (!tasksToRun && !flags.profile) return;
      extras = await measureExtras(context, written, {
        ...{ texts, tasks: tasksToRun, threads: flags.threads },
        ...{ profile: flags.profile ?? false, quick: flags.quick ?? false },
      });
    },
  });
  const { tasks, comparisons } = extras;
  context.progress.finish();
  if (flags.report !== undefined) {
    const { writeSparsifyReport } = await import('../sparsify/report-html.js');
    await writeSparsifyReport(flags.report, result, tasks, comparisons);
  }
  if (context.json) context.printJson(toJson(result, tasks, comparisons, flags));
  else context.print(sparsifyToText(result, tasks, comparisons, flags.report));
}

async function shiftOnlyCommand(context: CliContext, argument: string, flags: SparsifyFlags): Promise<void> {
  const { shiftOnly } = await import('../sparsify/shift-only.js');
  const result = await shiftOnly(modelPath(argument), flags.out, {
    ...trainingOptions(flags),
    texts: textsOf(flags.text),
    maxIncrease: flags.maxPplIncrease,
    thresholds: flags.thresholds,
    signal: context.signal,
    onProgress: (done, total) => context.progress.report({ stage: 'shift', done, total, unit: 'steps' }),
  });
  context.progress.finish();
  const { chosen, folder, ...rest } = result;
  if (context.json) context.printJson({ ...rest, ...chosen, artifacts: { model: folder, report: null } });
  else context.print(shiftToText(result));
}

/** Found out before a training of hours, not after it. @throws HybridError IO_FAILED */
const requireWritable = (path: string): void => createAtomic(path).discard();

function trainingOptions(flags: SparsifyFlags) {
  return {
    steps: flags.steps,
    batchTokens: flags.batchTokens,
    window: flags.window,
    microBatch: flags.microBatch,
    learningRate: flags.lr,
    warmup: flags.warmup,
    weightDecay: flags.weightDecay,
    distill: flags.distill === true ? DISTILL : flags.distill,
    part: flags.train,
    adapterRank: flags.adapters,
    seed: flags.seed,
    evaluateEvery: flags.evalEvery,
    threads: flags.threads,
  };
}

/** `FILE`, or `FILE=WEIGHT` where no file has that whole name. */
function textsOf(values: readonly string[]): TextSource[] {
  return values.map((value) => {
    const match = /^(.*)=(\d+\.?\d*|\.\d+)$/s.exec(value);
    if (!match || existsSync(value)) return { name: value, text: readTextFile(value, '--text'), weight: 1 };
    const weight = Number(match[2]);
    if (weight > 0) return { name: match[1], text: readTextFile(match[1], '--text'), weight };
    throw new UsageError(`--text ${value}: the weight is 0`, 'Leave the text out instead.');
  });
}

function toJson(
  result: SparsifyResult,
  tasks: ReadonlyMap<string, TaskResult[]> | null,
  comparisons: readonly Comparison[] | null,
  flags: SparsifyFlags,
): object {
  return {
    model: result.model,
    original: result.original,
    training: result.training,
    memory: result.memory,
    settings: result.settings.map(({ history: _, ...setting }) => ({
      ...setting,
      tasks: tasks?.get(setting.setting) ?? null,
      profile: comparisons?.find((c) => c.setting === setting.setting) ?? null,
    })),
    originalTasks: tasks?.get('') ?? null,
    history: result.settings.flatMap(({ setting, history }) =>
      history.map((point) => ({ setting, ...point })),
    ),
    artifacts: { model: flags.out, report: flags.report ?? null },
  };
}
