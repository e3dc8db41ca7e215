/** The report of `sparsify`: curves of every setting, and the model card's three tables for this model. */
import type { TaskResult } from '../tasks/evaluate-tasks.js';
import { writeFileAtomic } from '../io/atomic-write.js';
import type { HistoryPoint } from './checkpoint.js';
import type { Comparison } from './compare.js';
import type { SettingResult, SparsifyResult } from './sparsify.js';
import { layerColor, type Chart, type Columns } from '../report/charts.js';
import { chartSections, htmlDocument, htmlTable, percent } from '../report/document.js';

type Tasks = ReadonlyMap<string, TaskResult[]> | null;

/** @throws HybridError IO_FAILED */
export function writeSparsifyReport(
  path: string,
  result: SparsifyResult,
  tasks: Tasks,
  comparisons: readonly Comparison[] | null,
): Promise<void> {
  return writeFileAtomic(path, sparsifyReport(result, tasks, comparisons));
}

export function sparsifyReport(
  result: SparsifyResult,
  tasks: Tasks,
  comparisons: readonly Comparison[] | null,
): string {
  const { training, settings } = result;
  const charts = sparsifyCharts(settings);
  const distilled =
    training.distill > 0 ? `; ${percent(training.distill)} of the loss from its own logits` : '';
  return htmlDocument({
    title: `${result.model}: made sparse`,
    heading: result.model,
    lead:
      `${training.steps} steps of ${training.tokensPerStep} tokens, learning rate ${training.learningRate}, ` +
      `seed ${training.seed}${distilled}. Perplexity and sparsity on held-out text.`,
    body: [
      `<h2>Quality</h2>${qualityTable(result, tasks)}`,
      `<h2>Sparsity of the layers</h2>${layerTable(settings)}`,
      ...stageSections(settings),
      ...(comparisons ? [`<h2>Predictors and speed</h2>${speedTable(comparisons)}`, SPEED_NOTE] : []),
      chartSections(charts),
    ].join('\n'),
    charts,
  });
}

const SPEED_NOTE =
  '<p class="note">Recall and predicted sparsity of the trained predictors on held-out text; tokens per second of ' +
  "each FFN mode. S2 (up rows) and S3 (down rows): one token in one layer, from the kernels' measured speeds.</p>";

// ---- tables -----------------------------------------------------------------------------------------------

function qualityTable({ original, settings }: SparsifyResult, tasks: Tasks): string {
  const columns = [...(tasks?.values() ?? [])]
    .flatMap((list) =>
      list.flatMap((t) => Object.keys(t.metrics).map((metric) => ({ task: t.task, metric }))),
    )
    .filter(({ metric }) => metric !== 'bypass')
    .filter((c, i, all) => all.findIndex((o) => o.task === c.task && o.metric === c.metric) === i);
  const scores = (name: string): string[] =>
    columns.map(({ task, metric }) => {
      const found = tasks?.get(name)?.find((t) => t.task === task);
      if (found?.metrics[metric] === undefined) return '-';
      const error = found.stderr[metric];
      return found.metrics[metric].toFixed(4) + (error === null ? '' : ` ± ${error.toFixed(4)}`);
    });
  return htmlTable(
    [
      'setting',
      'sparsity',
      'perplexity',
      'λ at the end',
      'threshold',
      ...columns.map((c) => `${c.task} ${c.metric}`),
    ],
    [
      [
        'before training',
        percent(original.sparsity),
        original.perplexity.toFixed(3),
        '-',
        '-',
        ...scores(''),
      ],
      ...settings.map((s) => [
        ...[s.title, percent(s.sparsity), s.perplexity.toFixed(3), s.lambda.toPrecision(3), `${s.threshold}`],
        ...scores(s.setting),
      ]),
    ],
  );
}

function layerTable(settings: readonly SettingResult[]): string {
  const layers = settings[0].layers.map((_, l) => `layer ${l}`);
  return htmlTable(
    ['setting', ...layers],
    settings.map(({ title, layers: values }) => [title, ...values.map(percent)]),
  );
}

/** The card's table of stages and its search for the threshold. */
function stageSections(settings: readonly SettingResult[]): string[] {
  return settings.flatMap((s) => {
    const measured = s.history.filter(({ perplexity }) => perplexity !== null);
    const along = htmlTable(
      ['step', 'λ', 'loss', 'L1', 'sparsity', 'perplexity'],
      measured.map((p) => [
        ...[`${p.step}`, p.lambda.toPrecision(3), p.loss?.toFixed(4) ?? '-', p.l1?.toFixed(2) ?? '-'],
        ...[percent(p.sparsity!), p.perplexity!.toFixed(3)],
      ]),
    );
    const shift =
      s.shift &&
      htmlTable(
        ['threshold', 'sparsity', 'perplexity'],
        s.shift.map((p) => [
          p.threshold === s.threshold ? `${p.threshold} (chosen)` : `${p.threshold}`,
          ...[percent(p.sparsity), p.perplexity.toFixed(3)],
        ]),
      );
    return [
      `<h2>${s.title}: along the training</h2>${along}`,
      ...(shift ? [`<h3>Threshold</h3>${shift}`] : []),
    ];
  });
}

function speedTable(comparisons: readonly Comparison[]): string {
  const share = (value: number | null): string => (value === null ? '-' : percent(value));
  const rate = (value: number | null): string => (value === null ? '-' : value.toFixed(0));
  return htmlTable(
    [
      ...['setting', 'sparsity', 'recall', 'predicted sparsity', 'dense t/s', 'exact t/s', 'predicted t/s'],
      ...['S2 dense µs', 'S2 µs', 'S2 ×', 'S3 dense µs', 'S3 µs', 'S3 ×'],
    ],
    comparisons.map((c) => [
      ...[c.setting, share(c.sparsity), share(c.recall), share(c.predictedSparsity)],
      ...[c.tokensPerSecond.dense, c.tokensPerSecond.exact, c.tokensPerSecond.predicted].map(rate),
      ...[c.s2, c.s3].flatMap((step) =>
        step ? [step.dense, step.sparse, step.times].map((v) => v.toFixed(2)) : ['-', '-', '-'],
      ),
    ]),
  );
}

// ---- charts -----------------------------------------------------------------------------------------------

export function sparsifyCharts(settings: readonly SettingResult[]): Chart[] {
  const line = (
    id: string,
    title: string,
    yLabel: string,
    pick: (p: HistoryPoint) => number | null,
  ): Chart => ({
    ...{ id, title, yLabel, xLabel: 'step', yRange: null },
    series: settings.map(({ title: label }, i) => ({
      label,
      color: layerColor(i, settings.length),
      // Measured at few steps: points show where.
      points: id === 'perplexity' || id === 'sparsity',
    })),
    columns: columnsOf(settings, pick),
  });
  return [
    line('loss', 'Loss', 'loss', (p) => p.loss),
    line('lambda', 'λ', 'λ', (p) => p.lambda),
    line('batch-sparsity', 'Gates that are not above zero, in the batches', 'share', (p) => p.batchSparsity),
    line('sparsity', 'Sparsity on held-out text', 'sparsity', (p) => p.sparsity),
    line('perplexity', 'Perplexity on held-out text', 'perplexity', (p) => p.perplexity),
  ];
}

function columnsOf(settings: readonly SettingResult[], pick: (p: HistoryPoint) => number | null): Columns {
  const steps = [...new Set(settings.flatMap(({ history }) => history.map(({ step }) => step)))].sort(
    (a, b) => a - b,
  );
  return [
    steps,
    ...settings.map(({ history }) => {
      const byStep = new Map(history.map((p) => [p.step, pick(p)]));
      return steps.map((step) => byStep.get(step) ?? null);
    }),
  ];
}
