/** What is measured on finished models: tasks, and what profile and bench say. */
import { HybridError } from '../errors.js';
import type { TaskResult } from '../tasks/evaluate-tasks.js';
import type { Comparison } from '../sparsify/compare.js';
import type { TextSource } from '../sparsify/prepare.js';
import type { SparsifyResult } from '../sparsify/sparsify.js';
import type { CliContext } from './context.js';

/** @returns by setting; under '' the original */
export async function tasksOf(
  context: CliContext,
  result: SparsifyResult,
  files: readonly string[],
): Promise<Map<string, TaskResult[]>> {
  const [{ readTasks }, { answerTasks, scoreTasks }, { HybridModel }] = await Promise.all([
    import('../tasks/samples.js'),
    import('../tasks/evaluate-tasks.js'),
    import('../index.js'),
  ]);
  const tasks = readTasks(files);
  const found = new Map<string, TaskResult[]>();
  const folders = [['', result.path], ...result.settings.map(({ setting, folder }) => [setting, folder])];
  for (const [name, folder] of folders) {
    const { signal, progress } = context;
    const model = await unlessUnsupported(context, () =>
      HybridModel.load(folder, { quant: 'f32', ffn: 'dense', signal }),
    );
    if (!model) continue;
    try {
      const answers = await answerTasks(model, tasks, { signal, onProgress: progress.report });
      found.set(name, scoreTasks(tasks, answers).tasks);
    } finally {
      await model.close();
    }
  }
  return found;
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

export async function comparisonsOf(
  context: CliContext,
  result: SparsifyResult,
  texts: readonly TextSource[],
  threads: number | undefined,
): Promise<Comparison[]> {
  const { Comparer } = await import('../sparsify/compare.js');
  const { signal, progress } = context;
  const options = { texts, threads, signal, onProgress: progress.report };
  const comparisons: Comparison[] = [];
  const comparer = await Comparer.start(result.config);
  for (const setting of result.settings) {
    const found = await unlessUnsupported(context, () => comparer.compare(setting, options));
    if (found) comparisons.push(found);
  }
  return comparisons;
}
