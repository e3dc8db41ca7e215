#!/usr/bin/env node
/**
 * Writes the tables of the docs from the files in docs/results/: whatever stands between
 *
 *   <!-- table results/NAME.json [VIEW] -->   and   <!-- end of table -->
 *
 * A result file says what was measured (`what`), where (`machine`), when its figures were written down (`recorded`), by
 * which `commands`, and holds the figures as `rows`. A view is a list of columns: `title`, `key` in the rows, `digits`
 * behind the point, `unit` ("%" turns a share into per cent), `group` for 12,345. A figure is a number, a text, `{value,
 * min, max}`, `{value, deviation}`, `{value, share}`, or a list of them. What is missing was not measured.
 *
 *   node tools/result-tables.mjs [--check]     --check changes nothing, exit code 1 where a table is not its file's
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import * as prettier from 'prettier';
import { root } from './pack-folder.mjs';

const PLACE = /<!-- table (results\/[\w.-]+\.json)(?: ([\w-]+))? -->[\s\S]*?<!-- end of table -->/g;

const { values } = parseArgs({ options: { check: { type: 'boolean', default: false } } });
const docs = path.join(root, 'docs');
const pages = readdirSync(docs).filter((name) => name.endsWith('.md'));
for (const file of [path.join(root, 'README.md'), ...pages.map((name) => path.join(docs, name))]) {
  const text = readFileSync(file, 'utf8');
  const wanted = await filled(text, file);
  if (wanted === text) continue;
  if (values.check) {
    console.error(`${path.relative(root, file)}: a table differs from its result file: npm run docs:tables`);
    process.exitCode = 1;
  } else writeFileSync(file, wanted);
}

async function filled(text, file) {
  const tables = text.replace(PLACE, (_, name, view = 'default') => {
    const opening = `<!-- table ${name}${view === 'default' ? '' : ` ${view}`} -->`;
    return `${opening}\n\n${table(JSON.parse(readFileSync(path.join(docs, name), 'utf8')), view)}\n\n<!-- end of table -->`;
  });
  if (tables === text) return text;
  return prettier.format(tables, { ...(await prettier.resolveConfig(file)), filepath: file });
}

function table({ views, rows }, view) {
  const columns = views[view];
  const lines = [
    columns.map(({ title }) => title),
    columns.map(() => '---'),
    ...rows.map((row) => columns.map((column) => cell(row[column.key], column))),
  ];
  return lines.map((cells) => `| ${cells.join(' | ')} |`).join('\n');
}

/** @param figure see the head of this file */
function cell(figure, column) {
  if (figure === undefined || figure === null) return '';
  if (typeof figure === 'string') return figure;
  if (typeof figure === 'number') return written(figure, column);
  if (Array.isArray(figure)) return figure.map((one) => cell(one, column)).join(' / ');
  const { value, min, max, deviation, share } = figure;
  const main = written(value, column);
  if (deviation !== undefined) return `${main} ± ${written(deviation, column)}`;
  if (share !== undefined) return `${main} (${share.toFixed(2)})`;
  return `${main} (${written(min, column)}–${written(max, column)})`;
}

function written(number, { digits = 0, unit = '', group = false }) {
  const shown = unit === '%' ? number * 100 : number;
  const text = shown.toLocaleString('en-US', {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
    useGrouping: group,
  });
  return unit === '' ? text : `${text} ${unit}`;
}
