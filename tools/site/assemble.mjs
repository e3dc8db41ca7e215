#!/usr/bin/env node
/**
 * Lays out the pages of the documentation site in site/pages, which holds nothing else: docs/*.md as they are, README
 * and its neighbours with their links turned to where pages are, and the parts of the reference that the program
 * itself knows (commands, schemas, examples). TypeDoc adds the API, VitePress makes the site: `npm run docs:build`.
 */
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { root } from '../pack-folder.mjs';
import { commandPages } from './commands.mjs';
import { schemaPage } from './schemas.mjs';

const pages = path.join(root, 'site/pages');
/** Files beside README.md, and their pages. */
const NEIGHBOURS = {
  'README.md': 'index.md',
  'CONTRIBUTING.md': 'contributing.md',
  'SECURITY.md': 'security.md',
  'CHANGELOG.md': 'changelog.md',
};

rmSync(pages, { recursive: true, force: true });
cpSync(path.join(root, 'docs'), pages, { recursive: true });
for (const [file, page] of Object.entries(NEIGHBOURS))
  write(page, rehome(readFileSync(path.join(root, file), 'utf8')));
for (const { name, text } of await commandPages()) write(`reference/${name}.md`, text);
write('reference/schemas.md', await schemaPage());
write('reference/examples.md', examplesPage());
for (const page of readdirSync(pages).filter((name) => name.endsWith('.md')))
  write(page, outward(readFileSync(path.join(pages, page), 'utf8')));

function write(page, text) {
  const file = path.join(pages, page);
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, text);
}

/** Links of a file in the root folder, as its page needs them. */
function rehome(text) {
  return text.replace(/\]\(docs\//g, '](');
}

/** Links to files outside docs/, which have another name or another form as pages. */
function outward(text) {
  return text.replace(/\]\((?:\.\.\/)?(examples\b|[A-Z]+\.md)([^)]*)\)/g, (link, target, rest) => {
    const page = target === 'examples' ? 'reference/examples.md' : NEIGHBOURS[target];
    if (page === undefined) throw new Error(`no page for the link ${link}`);
    return `](${page}${rest.startsWith('#') ? rest : ''})`;
  });
}

function examplesPage() {
  const folder = path.join(root, 'examples');
  const parts = readdirSync(folder).map((name) => {
    const kind = path.extname(name).slice(1);
    return `## ${name}\n\n\`\`\`${kind === 'mjs' ? 'js' : kind}\n${readFileSync(path.join(folder, name), 'utf8')}\`\`\``;
  });
  return `# Examples\n\nThe programs of \`examples/\` as they are. Tests run them.\n\n${parts.join('\n\n')}\n`;
}
