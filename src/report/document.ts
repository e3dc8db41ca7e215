/** What every report is: one HTML file that opens without a network, with uPlot and the charts' numbers inside. */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import type { Chart } from './charts.js';
import { PAGE_SCRIPT, PAGE_STYLE } from './page.js';

export interface ReportDocument {
  title: string;
  heading: string;
  /** Text under the heading. */
  lead: string;
  /** HTML; charts are drawn into `<div class="chart" id="...">`. */
  body: string;
  charts: readonly Chart[];
}

export function htmlDocument({ title, heading, lead, body, charts }: ReportDocument): string {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escape(title)}</title>
<style>
${asset('uPlot.min.css')}
${PAGE_STYLE}
</style>
</head>
<body>
<h1>${escape(heading)}</h1>
<p class="lead">${escape(lead)}</p>
${body}
<script>${asset('uPlot.iife.min.js')}</script>
<script id="charts" type="application/json">${json(charts)}</script>
<script>${PAGE_SCRIPT}</script>
</body>
</html>
`;
}

export const chartSections = (charts: readonly Chart[]): string =>
  charts
    .map(
      ({ id, title }) => `<section><h2>${escape(title)}</h2><div class="chart" id="${id}"></div></section>`,
    )
    .join('\n');

/** First column of names, the others numbers. */
export function htmlTable(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const head = header.map((title) => `<th>${escape(title)}</th>`).join('');
  const body = rows.map(([name, ...cells]) => {
    return `<tr><th>${escape(name)}</th>${cells.map((cell) => `<td>${escape(cell)}</td>`).join('')}</tr>`;
  });
  return `<div class="scroll"><table><thead><tr>${head}</tr></thead><tbody>${body.join('')}</tbody></table></div>`;
}

export const percent = (value: number): string => `${(100 * value).toFixed(2)} %`;

const ENTITIES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};
/** Names of models and files are text, whatever they contain. */
export const escape = (text: string): string => text.replace(/[&<>"']/g, (c) => ENTITIES[c]);

/** JSON that cannot end the script element it stands in. */
const json = (value: unknown): string => JSON.stringify(value).replace(/</g, '\\u003c');

const uplot = join(dirname(createRequire(import.meta.url).resolve('uplot/package.json')), 'dist');
const asset = (name: string): string => readFileSync(join(uplot, name), 'utf8');
