/** What is measured on finished models: tasks, and what profile and bench say. */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { HybridError } from '../errors.js';
import { WorkFolder } from '../profiler/work-folder.js';
import type { Task } from '../tasks/samples.js';
import type { TaskResult } from '../tasks/evaluate-tasks.js';
import type { Comparison } from '../sparsify/compare.js';
import type { TextSource } from '../sparsify/prepare.js';
import type { SparsifyResult } from '../sparsify/sparsify.js';
import type { CliContext } from './context.js';

export interface ExtrasOptions {
  texts: readonly TextSource[];
  tasks: readonly Task[] | null;
  profile: boolean;
  /** Profiles of fewer samples. */
  quick: boolean;
  threads: number | undefined;
}

export interface Extras {
  /** By setting; under '' the original. */
  tasks: Map<string, TaskResult[]> | null;
  comparisons: Comparison[] | null;
}

/** What was measured is kept until all of it is there: a stop in between measures only the rest. */
export async function measureExtras(
  context: CliContext,
  result: SparsifyResult,
  options: ExtrasOptions,
): Promise<Extras> {
  const folder = await WorkFolder.open(identity(result, options), 'compared');
  const once = async <T>(name: string, work: () => Promise<T>): Promise<T> => {
    const file = `${name}.json`;
    const kept = folder.readJson<{ value: T }>(file);
    if (kept) return kept.value;
    const value = await work();
    await folder.writeJson(file, { value });
    return value;
  };
  try {
    const tasks = options.tasks && (await tasksOf(context, result, options.tasks, once));
    const comparisons = options.profile ? await comparisonsOf(context, result, options, once) : null;
    folder.remove();
    return { tasks, comparisons };
  } finally {
    folder.release();
  }
}

type Once = <T>(name: string, work: () => Promise<T>) => Promise<T>;

async function tasksOf(
  context: CliContext,
  result: SparsifyResult,
  tasks: readonly Task[],
  once: Once,
): Promise<Map<string, TaskResult[]>> {
  const [{ answerTasks, scoreTasks }, { HybridModel }] = await Promise.all([
    import('../tasks/evaluate-tasks.js'),
    import('../index.js'),
  ]);
  const { signal, progress } = context;
  const found = new Map<string, TaskResult[]>();
  const folders = [['', result.path], ...result.settings.map(({ setting, folder }) => [setting, folder])];
  for (const [name, folder] of folders) {
    const scores = await once(`tasks-${name}`, () =>
      unlessUnsupported(context, async () => {
        const model = await HybridModel.load(folder, { quant: 'f32', ffn: 'dense', signal });
        try {
          const answers = await answerTasks(model, tasks, { signal, onProgress: progress.report });
          return scoreTasks(tasks, answers).tasks;
        } finally {
          await model.close();
        }
      }),
    );
    if (scores) found.set(name, scores);
  }
  return found;
}

async function comparisonsOf(
  context: CliContext,
  result: SparsifyResult,
  { texts, threads, quick }: ExtrasOptions,
  once: Once,
): Promise<Comparison[]> {
  const { Comparer } = await import('../sparsify/compare.js');
  const { signal, progress } = context;
  const options = { texts, threads, quick, signal, onProgress: progress.report };
  const comparisons: Comparison[] = [];
  const comparer = await Comparer.start(result.config);
  for (const setting of result.settings) {
    const found = await once(`profile-${setting.setting}`, () =>
      unlessUnsupported(context, () => comparer.compare(setting, options)),
    );
    if (found) comparisons.push(found);
  }
  return comparisons;
}

/** transformers reads every result; this runtime may not know yet what one of them needs. */
async function unlessUnsupported<T>(context: CliContext, work: () => Promise<T>): Promise<T | null> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof HybridError) || error.code !== 'MODEL_UNSUPPORTED') throw error;
    context.warn(`not measured: ${error.message}`);
    return null;
  }
}

/** Everything the figures depend on, beside the machine. */
function identity({ path, settings }: SparsifyResult, { texts, tasks, ...options }: ExtrasOptions): unknown {
  const digest = (...contents: (string | Buffer)[]): string => {
    const hash = createHash('sha256');
    for (const content of contents) hash.update(content);
    return hash.digest('hex');
  };
  return {
    original: path,
    models: settings.map(({ setting, folder }) => [
      setting,
      folder,
      digest(...['config.json', 'model.safetensors'].map((file) => readFileSync(join(folder, file)))),
    ]),
    texts: texts.map(({ text, weight }) => [digest(text), weight]),
    tasks: tasks && digest(JSON.stringify(tasks)),
    ...options,
  };
}
