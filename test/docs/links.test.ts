/** Links of the Markdown files as GitHub shows them: to files that are there, and to headings that are in them. */
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { expect, it } from 'vitest';

const files = [
  ...['README.md', 'CONTRIBUTING.md', 'SECURITY.md', 'CHANGELOG.md'],
  ...readdirSync('docs')
    .filter((name) => name.endsWith('.md'))
    .map((name) => join('docs', name)),
];

/** Text without what only looks like Markdown. */
const prose = (file: string): string =>
  readFileSync(file, 'utf8')
    .replace(/^```[\s\S]*?^```/gm, '')
    .replace(/`[^`\n]*`/g, (code) => code.replace(/[[\]()]/g, ' '));

/** Anchors as GitHub makes them; a heading that comes again gets a number. */
function anchors(file: string): string[] {
  const seen = new Map<string, number>();
  const text = readFileSync(file, 'utf8').replace(/^```[\s\S]*?^```/gm, '');
  return [...text.matchAll(/^#+ (.*)$/gm)].map(([, heading]) => {
    const anchor = heading
      .replace(/[`*]|\]\([^)]*\)/g, '')
      .trim()
      .toLowerCase()
      .replace(/[^\p{L}\p{N}\p{M}\s_-]/gu, '')
      .replace(/\s/g, '-');
    const times = seen.get(anchor) ?? 0;
    seen.set(anchor, times + 1);
    return times === 0 ? anchor : `${anchor}-${times}`;
  });
}

function problem(file: string, target: string): string | null {
  const [path, anchor] = target.split('#');
  const at = path === '' ? file : join(dirname(file), path);
  if (!existsSync(at)) return `${file}: ${target}: no such file`;
  if (anchor === undefined || statSync(at).isDirectory()) return null;
  return anchors(at).includes(anchor) ? null : `${file}: ${target}: no such heading`;
}

it.each(files)('%s has no broken link', (file) => {
  const targets = [...prose(file).matchAll(/\]\(([^)\s]+)\)/g)].map(([, target]) => target);
  const inside = targets.filter((target) => !/^[a-z]+:/.test(target));
  expect(inside.map((target) => problem(file, target)).filter((found) => found !== null)).toEqual([]);
});

it('every page is reached from the README, and stands in the menu of the site', () => {
  const reached = new Set(['README.md']);
  for (const file of reached) {
    for (const [, target] of prose(file).matchAll(/\]\(([^)#\s]+\.md)[^)]*\)/g))
      if (!/^[a-z]+:/.test(target)) reached.add(relative('.', join(dirname(file), target)));
  }
  const pages = files.filter((file) => file.startsWith('docs'));
  expect(pages.filter((page) => !reached.has(page))).toEqual([]);
  const menu = readFileSync('site/.vitepress/config.ts', 'utf8');
  expect(pages.filter((page) => !menu.includes(`'${page.slice('docs/'.length, -'.md'.length)}'`))).toEqual(
    [],
  );
});
