/** The table of `sparsify` for a terminal. */
import type { TaskResult } from '../tasks/evaluate-tasks.js';
import type { Comparison } from '../sparsify/compare.js';
import type { ShiftOnlyResult } from '../sparsify/shift-only.js';
import type { SparsifyResult } from '../sparsify/sparsify.js';
import { percent } from './stats-line.js';
import { table } from './table.js';

const fixed = (value: number | null | undefined, digits: number): string =>
  value === null || value === undefined ? '-' : value.toFixed(digits);
const shareOf = (value: number | null): string => (value === null ? '-' : percent(value));

export function sparsifyToText(
  result: SparsifyResult,
  tasks: ReadonlyMap<string, TaskResult[]> | null,
  comparisons: readonly Comparison[] | null,
  report: string | undefined,
): string {
  const { settings, original, training } = result;
  const columns = taskColumns(tasks);
  const header = ['setting', 'sparsity', 'perplexity', 'lambda', 'threshold', ...columns];
  const scores = (name: string): string[] => {
    const list = tasks?.get(name);
    return columns.map((column) => fixed(list && scoreIn(list, column), 4));
  };
  const rows = [
    ['before training', percent(original.sparsity), fixed(original.perplexity, 4), '-', '-', ...scores('')],
    ...settings.map((s) => [
      ...[s.title, percent(s.sparsity), fixed(s.perplexity, 4), s.lambda.toPrecision(3), `${s.threshold}`],
      ...scores(s.setting),
    ]),
  ];
  const lines = [
    `${result.model}: ${training.steps} steps of ${training.tokensPerStep} tokens` +
      (training.distill > 0 ? `, ${percent(training.distill)} of the loss from the original's logits` : ''),
    '',
    table(header, rows),
  ];
  if (comparisons) lines.push('', comparisonTable(comparisons));
  for (const { folder } of settings) lines.push(folder);
  if (report !== undefined) lines.push(report);
  return lines.join('\n');
}

function comparisonTable(comparisons: readonly Comparison[]): string {
  const header = [
    'setting',
    'recall',
    'predicted',
    'dense t/s',
    'exact',
    'predicted',
    'S2 µs',
    'x',
    'S3 µs',
    'x',
  ];
  return table(
    header,
    comparisons.map((c) => [
      ...[c.setting, shareOf(c.recall), shareOf(c.predictedSparsity), fixed(c.tokensPerSecond.dense, 0)],
      ...[fixed(c.tokensPerSecond.exact, 0), fixed(c.tokensPerSecond.predicted, 0)],
      ...[fixed(c.s2?.sparse, 2), fixed(c.s2?.times, 2), fixed(c.s3?.sparse, 2), fixed(c.s3?.times, 2)],
    ]),
  );
}

/** Every task and metric that some setting has, as `task metric`. */
export function taskColumns(tasks: ReadonlyMap<string, TaskResult[]> | null): string[] {
  const names = [...(tasks?.values() ?? [])].flatMap((list) =>
    list.flatMap(({ task, metrics }) => Object.keys(metrics).map((metric) => `${task} ${metric}`)),
  );
  return [...new Set(names)].filter((name) => !name.endsWith(' bypass'));
}

export function scoreIn(list: readonly TaskResult[], column: string): number | null {
  for (const { task, metrics } of list) {
    for (const [metric, value] of Object.entries(metrics)) if (`${task} ${metric}` === column) return value;
  }
  return null;
}

export function shiftToText({ model, before, chosen, points, folder }: ShiftOnlyResult): string {
  const change = percent(chosen.perplexity / before.perplexity - 1);
  return [
    `${model}: threshold ${before.threshold} -> ${chosen.threshold}, perplexity ${change}`,
    '',
    table(
      ['threshold', 'sparsity', 'perplexity', ''],
      points.map((p) => [
        ...[`${p.threshold}`, percent(p.sparsity), fixed(p.perplexity, 4)],
        p.threshold === chosen.threshold ? 'chosen' : '',
      ]),
    ),
    folder,
  ].join('\n');
}
