#!/usr/bin/env node
/* global window, document, getComputedStyle */
/**
 * Looks at every page of the built site in Chromium at two widths and in both colour schemes, and reports what a reader
 * would stumble over: text with less contrast than WCAG AA asks (4.5, or 3 for large text), pages that scroll sideways,
 * headings that skip a level or come twice as h1, images without a text, controls without a name, a Tab key that shows
 * no focus or does not begin with the skip link. Exit code 1 when there is any.
 *
 *   npm run docs:build && node tools/site/look.mjs [--only install] [--chromium /usr/bin/chromium]
 *     [--shots FOLDER]
 */
import { createServer } from 'node:http';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { chromium } from 'playwright-core';
import { root } from '../pack-folder.mjs';
import { findings } from './findings.mjs';

const WIDTHS = [390, 1280];
/** Pages whose pictures are kept with --shots. */
const SHOTS = ['index.html', 'install.html', 'architecture.html', 'performance.html', 'reference/run.html'];
const TYPES = {
  html: 'text/html',
  js: 'text/javascript',
  css: 'text/css',
  svg: 'image/svg+xml',
  png: 'image/png',
};

const { values } = parseArgs({
  options: {
    chromium: { type: 'string', default: '/usr/bin/chromium' },
    shots: { type: 'string' },
    only: { type: 'string', default: '' },
  },
});
const dist = path.join(root, 'site/.vitepress/dist');
const pages = readdirSync(dist, { recursive: true }).filter(
  (name) => name.endsWith('.html') && name !== '404.html' && name.includes(values.only),
);

const server = createServer((request, response) => {
  const file = path.join(dist, decodeURIComponent(new URL(request.url, 'http://site').pathname));
  if (!file.startsWith(dist) || !existsSync(file) || statSync(file).isDirectory()) {
    response.writeHead(404).end();
    return;
  }
  response.writeHead(200, {
    'content-type': TYPES[path.extname(file).slice(1)] ?? 'application/octet-stream',
  });
  response.end(readFileSync(file));
});
await new Promise((done) => server.listen(0, '127.0.0.1', done));
const base = `http://127.0.0.1:${server.address().port}`;
const browser = await chromium.launch({ executablePath: values.chromium, args: ['--no-sandbox'] });
const found = new Map();
let lowest = Infinity;
try {
  for (const colorScheme of ['light', 'dark']) {
    for (const width of WIDTHS) await look(colorScheme, width);
  }
} finally {
  await browser.close();
  server.close();
}
for (const [finding, places] of found)
  console.log(`${finding}: ${places.length} times, first on ${places[0]}`);
console.log(
  `${pages.length} pages, ${WIDTHS.join(' and ')} wide, light and dark: ${found.size} kinds of findings, lowest contrast ${lowest.toFixed(2)}`,
);
if (found.size > 0) process.exitCode = 1;

async function look(colorScheme, width) {
  const context = await browser.newContext({ colorScheme, viewport: { width, height: 900 } });
  const tab = await context.newPage();
  const add = (finding, place) => found.set(finding, [...(found.get(finding) ?? []), place]);
  tab.on('pageerror', (error) => add(`script error: ${error.message}`, tab.url()));
  for (const page of pages) {
    const place = `${page} (${width}, ${colorScheme})`;
    await tab.goto(`${base}/${page}`, { waitUntil: 'load' });
    await tab.waitForFunction(() => document.querySelector('.VPSwitchAppearance')?.title);
    const { lines, contrast } = await tab.evaluate(findings);
    lowest = Math.min(lowest, contrast);
    for (const line of lines) add(line, place);
    if (page === 'index.html') for (const line of await keyboard(tab)) add(line, place);
    if (values.shots && SHOTS.includes(page)) {
      mkdirSync(values.shots, { recursive: true });
      const name = `${page.replace(/\W/g, '-')}-${width}-${colorScheme}.png`;
      await tab.evaluate(() => window.scrollTo(0, 0));
      await tab.screenshot({ path: path.join(values.shots, name) });
    }
  }
  await context.close();
}

/** The first stops of the Tab key: the skip link, then controls that show that they have the focus. */
async function keyboard(tab) {
  const lines = [];
  for (let i = 0; i < 6; i++) {
    await tab.keyboard.press('Tab');
    const { name, visible } = await tab.evaluate(() => {
      const at = document.activeElement;
      const { outlineStyle, outlineWidth } = getComputedStyle(at);
      const ring = outlineStyle !== 'none' && parseFloat(outlineWidth) >= 1;
      return { name: (at.textContent || at.ariaLabel || '').trim(), visible: ring };
    });
    if (i === 0 && !/^Skip/.test(name))
      lines.push(`the first stop of Tab is not the skip link but "${name}"`);
    if (!visible) lines.push(`no focus to be seen on "${name}"`);
  }
  return lines;
}
