#!/usr/bin/env node
/**
 * Every link of the built site that stays inside it leads to a page, a file or a heading that is there. Exit code 1
 * otherwise. Links to other hosts are counted, not followed: a build must not need the network.
 */
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { root } from '../pack-folder.mjs';

const dist = path.join(root, 'site/.vitepress/dist');
const files = readdirSync(dist, { recursive: true }).map((name) => name.split(path.sep).join('/'));
const pages = files.filter((name) => name.endsWith('.html'));
const anchors = new Map(
  pages.map((page) => [
    page,
    new Set([...html(page).matchAll(/\sid="([^"]+)"/g)].map(([, id]) => decode(id))),
  ]),
);

let inside = 0;
const outside = new Set();
const broken = [];
for (const page of pages) {
  for (const [, attribute] of html(page).matchAll(/\s(?:href|src)="([^"]*)"/g)) {
    const url = new URL(decode(attribute), `http://site/${page}`);
    if (url.host !== 'site') {
      outside.add(url.href);
      continue;
    }
    inside++;
    const reason = problem(url);
    if (reason !== null) broken.push(`${page}: ${attribute}: ${reason}`);
  }
}

for (const line of broken) console.error(line);
console.log(
  `${pages.length} pages, ${inside} links inside the site, ${outside.size} addresses outside, ${broken.length} broken`,
);
if (broken.length > 0) process.exitCode = 1;

/** Why a link inside the site leads nowhere, or null. */
function problem({ pathname, hash }) {
  const asked = decodeURIComponent(pathname.slice(1));
  const file = asked === '' || asked.endsWith('/') ? `${asked}index.html` : asked;
  if (!files.includes(file)) return 'no such page';
  const anchor = decodeURIComponent(hash.slice(1));
  if (anchor === '' || !file.endsWith('.html') || anchors.get(file).has(anchor)) return null;
  return 'no such heading';
}

function html(page) {
  return readFileSync(path.join(dist, page), 'utf8');
}

function decode(text) {
  return text
    .replace(/&#x([0-9a-f]+);/gi, (_, code) => String.fromCodePoint(parseInt(code, 16)))
    .replace(
      /&(amp|quot|lt|gt|#39);/g,
      (_, name) => ({ amp: '&', quot: '"', lt: '<', gt: '>', '#39': "'" })[name],
    );
}
