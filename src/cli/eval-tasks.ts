/** `eval --tasks`: lm-eval's requests on a model, in the chosen FFN mode and in dense. */
import { createHash } from 'node:crypto';
import type { HybridModel } from '../api/hybrid-model.js';
import { HybridError } from '../errors.js';
import type { TaskAnswers, TaskResult } from '../tasks/evaluate-tasks.js';
import type { Parity } from '../tasks/parity.js';
import type { Answer, Task } from '../tasks/samples.js';
import type { WorkFolder } from '../profiler/work-folder.js';
import type { CliContext } from './context.js';
import { modelPath } from './model-argument.js';
import { loadOptions, type EngineFlags, type PlanFlags } from './options.js';
import { percent } from './stats-line.js';
import { table } from './table.js';

export interface EvalTasksFlags extends EngineFlags, PlanFlags {
  tasks: string[];
  dense: boolean;
  beginToken?: boolean;
  ownRows?: boolean;
}

/** Answers are kept this often; a stop in between asks for them again. */
const SAVE_MS = 5000;

export async function evalTasksCommand(
  context: CliContext,
  argument: string | undefined,
  flags: EvalTasksFlags,
): Promise<void> {
  const path = modelPath(argument);
  const [{ readTasks }, { scoreTasks }, { HybridModel }] = await Promise.all([
    import('../tasks/samples.js'),
    import('../tasks/evaluate-tasks.js'),
    import('../index.js'),
  ]);
  const tasks = readTasks(flags.tasks);
  const model = await HybridModel.load(path, loadOptions(context, flags));
  try {
    const mine = await answered(context, model, tasks, flags);
    let dense: TaskAnswers | null = null;
    if (flags.dense && model.engine.modes.some((mode) => mode !== 'dense')) {
      await model.engine.setModes(model.engine.modes.map(() => 'dense'));
      dense = await answered(context, model, tasks, flags);
    }
    context.progress.finish();
    const { tasks: results, parity } = scoreTasks(tasks, mine, dense);
    const ffnMode = model.engine.ffn;
    if (context.json) context.printJson({ model: model.name, ffnMode, tasks: results, parity });
    else context.print(toText(results, parity, ffnMode));
  } finally {
    await model.close();
  }
}

/** Answers of the model as it is now; those of a stopped run are taken over. */
async function answered(
  context: CliContext,
  model: HybridModel,
  tasks: readonly Task[],
  flags: EvalTasksFlags,
): Promise<TaskAnswers> {
  const { answerTasks } = await import('../tasks/evaluate-tasks.js');
  const { WorkFolder } = await import('../profiler/work-folder.js');
  const folder = await WorkFolder.open(await identity(model, tasks, flags), 'tasks');
  const known = new Map(folder.readJson<[string, Answer][]>(ANSWERS) ?? []);
  let saved = Date.now();
  const save = (): Promise<void> => folder.writeJson(ANSWERS, [...known]);
  try {
    const answers = await answerTasks(model, tasks, {
      beginToken: flags.beginToken,
      ownRows: flags.ownRows,
      signal: context.signal,
      onProgress: context.progress.report,
      known: new Map(known),
      onAnswer: async (key, answer) => {
        known.set(key, answer);
        if (Date.now() - saved < SAVE_MS) return;
        await save();
        saved = Date.now();
      },
    });
    folder.remove();
    return answers;
  } catch (error) {
    await keep(folder, save);
    if (context.signal.aborted) {
      throw new HybridError('ABORTED', 'the tasks were stopped', {
        hint: 'The same command goes on where it was.',
      });
    }
    throw error;
  }
}

const ANSWERS = 'answers.json';

async function keep(folder: WorkFolder, save: () => Promise<void>): Promise<void> {
  try {
    await save();
  } finally {
    folder.release();
  }
}

/** Everything an answer depends on. */
async function identity(
  { engine }: HybridModel,
  tasks: readonly Task[],
  flags: EvalTasksFlags,
): Promise<unknown> {
  const { fingerprint, quant } = engine.pack.header;
  const requests = createHash('sha256');
  for (const { samples } of tasks)
    for (const sample of samples) requests.update(JSON.stringify(sample.requests));
  const predicted = engine.modes.includes('predicted');
  const { findArtifacts } = await import('../profiler/find-plan.js');
  const artifact = predicted ? findArtifacts(engine.pack, flags).predictor?.artifact : undefined;
  return {
    ...{ fingerprint, quant, requests: requests.digest('hex') },
    ...{ modes: engine.modes, kernels: engine.kernelsName, threads: engine.threads, gpu: flags.gpu },
    ...{
      context: engine.layout.contextLength,
      kvCache: flags.kvCache,
      beginToken: flags.beginToken,
      ownRows: flags.ownRows,
    },
    ...{ recall: flags.recall, thresholdShift: flags.thresholdShift },
    predictor: artifact && [artifact.provenance, artifact.layers.map(({ threshold }) => threshold)],
  };
}

// ---- output ----------------------------------------------------------------------------------------------

function toText(results: readonly TaskResult[], parity: Parity | null, ffnMode: string): string {
  const compared = results.some(({ change }) => change !== null);
  const header = [
    'task',
    'filter',
    'n',
    'metric',
    ffnMode,
    '±',
    ...(compared ? ['dense', 'change', '±'] : []),
  ];
  const rows = results.flatMap((result) =>
    Object.entries(result.metrics).map(([metric, value]) => {
      const change = result.change?.[metric];
      return [
        ...[result.task, result.filter, `${result.n}`, metric, number(value), number(result.stderr[metric])],
        ...(compared ? [number(change?.other), signed(change?.value), number(change?.stderr)] : []),
      ];
    }),
  );
  const notes = results.flatMap(({ task, filter, unscored }) =>
    unscored.map(({ metric, reason }) => `${task} (${filter}): ${metric} is not scored: ${reason}`),
  );
  const shown = rows.length > 0 ? [table(header, rows)] : [];
  return [...shown, ...notes, ...(parity ? ['', parityLine(parity)] : [])].join('\n');
}

function parityLine({ requests, maxLogLikelihoodDifference: d, sameGreedy, sameText }: Parity): string {
  const parts = [
    d === null ? null : `largest log-likelihood difference ${d.toExponential(1)}`,
    sameGreedy === null ? null : `same greedy flag in ${percent(sameGreedy)}`,
    sameText === null ? null : `same text in ${percent(sameText)}`,
  ];
  return `against lm-eval's own answers (${requests} requests): ${parts.filter((p) => p !== null).join(', ')}`;
}

const number = (value: number | null | undefined): string =>
  value === null || value === undefined ? '-' : Math.abs(value) >= 1000 ? value.toFixed(1) : value.toFixed(4);
const signed = (value: number | undefined): string =>
  value === undefined ? '-' : `${value >= 0 ? '+' : ''}${number(value)}`;
