/** The HTML report of a profile. */
import { writeFileAtomic } from '../io/atomic-write.js';
import { formatBytes } from '../io/progress.js';
import type { PredictorArtifact } from '../predictor/artifact.js';
import type { ProfileResult } from '../profiler/profile.js';
import { heatMap, layerColor, reportCharts } from './charts.js';
import { chartSections, escape, htmlDocument, percent } from './document.js';

/** @throws HybridError IO_FAILED */
export function writeHtmlReport(path: string, result: ProfileResult): Promise<void> {
  return writeFileAtomic(path, htmlReport(result));
}

export function htmlReport(result: ProfileResult): string {
  const { profile, predictor } = result;
  const { model } = predictor;
  const charts = reportCharts(profile, predictor);
  return htmlDocument({
    title: `${model.name}: activation profile`,
    heading: model.name,
    lead: `${model.layers} layers of ${model.intermediateSize} neurons, hidden size ${model.hiddenSize}. ${origin(predictor)}`,
    body: `${summary(result)}
<h2>Layers</h2>
${layerRows(predictor)}
<p class="note">Recall, weighted recall and predicted sparsity of held-out samples; bytes of FFN weights one token reads in the chosen mode.</p>
${chartSections(charts)}
<section><h2>Hot and cold neurons</h2>${heatTable(result)}
<p class="note">Each row is a layer, its neurons from hottest to coldest; the darker, the more often they fire. Dead neurons never fired; always on: in at least 99 % of the tokens.</p></section>
<section><h2>Neurons that fire together</h2>${pairs(result)}</section>`,
    charts,
  });
}

/** Where the text came from. */
function origin({ provenance: p }: PredictorArtifact): string {
  const text = p.selfWritten ? 'text the model wrote itself' : p.texts.map((text) => text.name).join(', ');
  return (
    `Profiled on ${p.tokens} tokens of ${text}; ${p.samples} samples, ${p.heldOutSamples} of them held out; ` +
    `seed ${p.seed}, ${p.quant} weights, ${p.kernels}; ${p.createdAt}, hybrid-infer ${p.toolVersion}.`
  );
}

function summary({ predictor, evaluation, target }: ProfileResult): string {
  const { layers } = predictor;
  const mean = (values: number[]): number => values.reduce((a, b) => a + b, 0) / values.length;
  const ffn = layers.reduce((sum, { bytes, mode }) => sum + bytes[mode], 0);
  const exact = layers.reduce((sum, { bytes }) => sum + bytes.exact, 0);
  const change = evaluation.densePerplexity && evaluation.perplexity / evaluation.densePerplexity - 1;
  const tiles: [string, string][] = [
    ['true sparsity', percent(mean(layers.map(({ heldOut }) => heldOut.sparsity)))],
    ['predicted sparsity', percent(mean(layers.map(({ heldOut }) => heldOut.predictedSparsity)))],
    ['recall', percent(mean(layers.map(({ heldOut }) => heldOut.recall)))],
    ['weighted recall', percent(mean(layers.map(({ heldOut }) => heldOut.weightedRecall)))],
    ['FFN bytes per token', `${formatBytes(ffn)} (${percent(ffn / exact)} of exact)`],
    [
      'perplexity against dense',
      change === null ? '-' : `${change >= 0 ? '+' : ''}${(100 * change).toFixed(3)} %`,
    ],
    ['target', target],
  ];
  return `<dl class="tiles">${tiles
    .map(([name, value]) => `<div><dt>${escape(name)}</dt><dd>${escape(value)}</dd></div>`)
    .join('')}</dl>`;
}

/** Numbers stand to the right; mode and reason, after seven of them, are text. */
const FIRST_TEXT_CELL = 7;

function layerRows({ layers }: PredictorArtifact): string {
  const head = [
    'layer',
    'true sparsity',
    'recall',
    'weighted recall',
    'predicted sparsity',
    'threshold',
    'predictor',
    'bytes',
    'mode',
    'reason',
  ];
  const rows = layers.map(({ heldOut, threshold, predictor: p, bytes, mode, reason }, l) => {
    const kind = p.fc1 ? `${p.kind}, rank ${p.rank}, ${p.fc2.format}` : `${p.kind}, ${p.fc2.format}`;
    const cells = [
      percent(heldOut.sparsity),
      percent(heldOut.recall),
      percent(heldOut.weightedRecall),
      percent(heldOut.predictedSparsity),
      threshold.toFixed(2),
      `${kind}, ${formatBytes(bytes.predictor)}`,
      formatBytes(bytes[mode]),
      mode,
      reason,
    ];
    const swatch = `<span class="swatch" style="background:${layerColor(l, layers.length)}"></span>`;
    return `<tr><th>${swatch}${l}</th>${cells.map((cell, c) => `<td${c >= FIRST_TEXT_CELL ? ' class="text"' : ''}>${escape(cell)}</td>`).join('')}</tr>`;
  });
  return `<div class="scroll"><table><thead><tr>${head.map((h, c) => `<th${c > FIRST_TEXT_CELL ? ' class="text"' : ''}>${h}</th>`).join('')}</tr></thead><tbody>${rows.join('')}</tbody></table></div>`;
}

function heatTable({ profile }: ProfileResult): string {
  const rows = heatMap(profile).map((cells, l) => {
    const { dead, alwaysOn } = profile.layers[l];
    const boxes = cells.map((frequency) => {
      // The square root shows differences among the cold ones.
      const shade = Math.sqrt(frequency);
      return `<i style="background:hsl(${Math.round(40 - 35 * shade)} 85% ${Math.round(97 - 72 * shade)}%)" title="${percent(frequency)}"></i>`;
    });
    return `<div class="heat"><span>${l}</span><div>${boxes.join('')}</div><span>${dead} dead, ${alwaysOn} always on</span></div>`;
  });
  return rows.join('');
}

function pairs({ profile }: ProfileResult): string {
  const rows = profile.layers.map(({ coActivation: c }, l) => {
    const strongest = c.strongest
      .slice(0, 4)
      .map(({ a, b, jaccard }) => `${a} and ${b} (${percent(jaccard)})`)
      .join(', ');
    return `<tr><th>${l}</th><td>${percent(c.jaccard)}</td><td>${percent(c.independent)}</td><td class="text">${strongest}</td></tr>`;
  });
  return `<div class="scroll"><table><thead><tr><th>layer</th><th>mean overlap</th><th>if independent</th><th class="text">strongest pairs of neurons</th></tr></thead><tbody>${rows.join('')}</tbody></table></div>
<p class="note">Overlap of two neurons: tokens in which both fire, of those in which either does; among the 256 hottest that are not always on.</p>`;
}
