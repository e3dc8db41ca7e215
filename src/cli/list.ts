/** `list`: the models in the Hugging Face cache that other commands take by name. */
import type { Command } from 'commander';
import { formatBytes } from '../io/progress.js';
import type { CliContext } from './context.js';
import { outputOptions } from './options.js';
import { table } from './table.js';

export function registerList(program: Command, context: CliContext): void {
  const command = program
    .command('list')
    .alias('ls')
    .description('List the models that were pulled from the Hugging Face Hub, by this program or others.');
  outputOptions(command).action(() => list(context));
}

async function list(context: CliContext): Promise<void> {
  const { listCache } = await import('../hub/cached.js');
  const found = listCache();
  if (context.json) return context.printJson(found);
  const rows = found.models.map((model) => [
    model.name,
    model.commit.slice(0, 8),
    model.kind,
    formatBytes(model.bytes),
    model.modified.slice(0, 10),
  ]);
  if (rows.length > 0) context.print(table(['model', 'commit', 'kind', 'size', 'modified'], rows));
  else context.note(`no models in ${found.cache}; get one with: hybrid-infer pull <owner/name>`);
  for (const { repository, bytes } of found.partial)
    context.note(`${repository}: ${formatBytes(bytes)} of an interrupted download; pull it again to go on`);
}
