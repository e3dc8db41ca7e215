/** What a drawing names is in the code: a renamed function is found here. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';

const sources = readdirSync('src', { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.ts'))
  .map((name) => readFileSync(join('src', name), 'utf8'))
  .join('\n');

it.each(readdirSync('docs/drawings'))('%s names what the code defines, and says what it shows', (name) => {
  const svg = readFileSync(join('docs/drawings', name), 'utf8');
  const names = [...svg.matchAll(/<text class="name"[^>]*>([^<]+)</g)].map(([, text]) => text);
  expect(names.length).toBeGreaterThan(3);
  const defined = (word: string): boolean =>
    new RegExp(`\\b(function|class|interface|const) ${word}\\b|^  ${word}\\(`, 'm').test(sources) ||
    sources.includes(`/${word}.js'`);
  expect(names.filter((word) => !defined(word))).toEqual([]);
  expect(svg).toMatch(/<title id="title">.+<\/title>\s*<desc id="desc">.+<\/desc>/);
});
