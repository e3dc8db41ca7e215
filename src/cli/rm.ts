/** `rm`: a pulled model leaves the cache. */
import type { Command } from 'commander';
import { formatBytes } from '../io/progress.js';
import type { CliContext } from './context.js';
import { outputOptions } from './options.js';

export function registerRm(program: Command, context: CliContext): void {
  const command = program
    .command('rm')
    .description('Remove a pulled model from the Hugging Face cache, or one revision of it.')
    .argument('<repository>', 'owner/name: everything; owner/name@revision: that revision');
  outputOptions(command).action((repository: string) => remove(context, repository));
}

async function remove(context: CliContext, repository: string): Promise<void> {
  const { removePulled } = await import('../hub/cached.js');
  const removed = removePulled(repository);
  if (context.json) context.printJson(removed);
  else context.print(`${removed.repository}: removed, ${formatBytes(removed.freedBytes)} free`);
}
