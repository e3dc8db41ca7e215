/** The site: which pages there are and in which order. Pages come from tools/site/assemble.mjs. */
import { readdirSync, readFileSync } from 'node:fs';
import { defineConfig, type DefaultTheme } from 'vitepress';

const version = (JSON.parse(readFileSync('package.json', 'utf8')) as { version: string }).version;

const link = (text: string, path: string): DefaultTheme.SidebarItem => ({ text, link: `/${path}` });
const commands = readdirSync('src/cli')
  .map((file) => file.replace(/\.ts$/, ''))
  .filter((name) => readdirSync('site/pages/reference').includes(`${name}.md`))
  .map((name) => link(name, `reference/${name}`));

/** As GitHub makes anchors of headings: the same links work in both places. */
const slugify = (heading: string): string =>
  heading
    .trim()
    .toLowerCase()
    .replace(/[^\p{L}\p{N}\p{M}\s_-]/gu, '')
    .replace(/\s/g, '-');

export default defineConfig({
  srcDir: 'pages',
  title: 'hybrid-infer',
  description:
    'Runs language models whose FFNs are sparse, in Node.js, and computes only the neurons that fire.',
  lang: 'en',
  cleanUrls: false,
  metaChunk: true,
  // The index of the search is one chunk.
  vite: { build: { chunkSizeWarningLimit: 4000 } },
  markdown: {
    anchor: { slugify },
    toc: { slugify },
    headers: { slugify },
    // Indented code gets the box of fenced code: it scrolls in itself.
    config(md) {
      md.renderer.rules.code_block = (tokens, i, options, env, self) => {
        tokens[i].info = 'text';
        return md.renderer.rules.fence!(tokens, i, options, env, self);
      };
    },
    theme: { light: 'github-light-high-contrast', dark: 'github-dark-high-contrast' },
  },
  themeConfig: {
    search: { provider: 'local' },
    outline: { level: [2, 3] },
    docFooter: { prev: 'Before', next: 'Next' },
    nav: [
      link('Install', 'install'),
      link('Guides', 'running'),
      link('Design', 'architecture'),
      link('Reference', 'reference/commands'),
      { text: version, link: '/changelog' },
    ] as DefaultTheme.NavItem[],
    sidebar: [
      { text: 'Start', items: [link('What it is', ''), link('Install', 'install')] },
      {
        text: 'Guides',
        items: [
          link('Run a model', 'running'),
          link('Make a model sparse', 'sparsify'),
          link('Profile a model', 'profiling'),
          link('Serve and chat', 'serve'),
          link('Hot neurons on the GPU', 'gpu'),
          link('Benchmark honestly', 'benchmarking'),
          link('Models from the Hub', 'hub'),
          link('Export', 'exports'),
          link('Synthetic models', 'synthetic-models'),
        ],
      },
      {
        text: 'Design',
        items: [
          link('Architecture', 'architecture'),
          link('Predictors', 'predictors'),
          link('The pack', 'pack-format'),
          link('Performance', 'performance'),
          link('Beside others', 'comparison'),
        ],
      },
      {
        text: 'Reference',
        items: [
          link('Command line', 'cli'),
          { text: 'Commands', link: '/reference/commands', collapsed: true, items: commands },
          link('JSON output', 'json'),
          link('JSON schemas', 'reference/schemas'),
          link('Models', 'models'),
          link('Library', 'api'),
          link('Types of the library', 'reference/api/'),
          link('Examples', 'reference/examples'),
        ],
      },
      {
        text: 'Project',
        items: [
          link('Contributing', 'contributing'),
          link('Security', 'security'),
          link('Changes', 'changelog'),
        ],
      },
    ],
  },
});
