/** Tables of measured figures are what their files in docs/results/ say. */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { expect, it } from 'vitest';

const results = readdirSync('docs/results');

it('every table is written from its result file', () => {
  execFileSync(process.execPath, ['tools/result-tables.mjs', '--check'], { stdio: 'pipe' });
});

it.each(results)('%s says what was measured, where, when, by which command, and is shown', (name) => {
  const file = JSON.parse(readFileSync(`docs/results/${name}`, 'utf8')) as Record<string, unknown>;
  expect(file).toMatchObject({
    what: expect.stringMatching(/\w/) as string,
    // Figures that are computed come from no machine.
    machine: expect.stringMatching(/cores|computed/) as string,
    recorded: expect.stringMatching(/^\d{4}-\d\d-\d\d$/) as string,
    commands: expect.arrayContaining([expect.any(String)]) as string[],
  });
  const pages = readdirSync('docs').filter((page) => page.endsWith('.md'));
  const text = pages.map((page) => readFileSync(`docs/${page}`, 'utf8')).join('');
  expect(text).toContain(`<!-- table results/${name}`);
});
