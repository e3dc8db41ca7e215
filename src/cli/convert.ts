/** `convert`: a model folder or GGUF file becomes a pack. */
import { statSync } from 'node:fs';
import { Option, type Command } from 'commander';
import { HybridError, UsageError } from '../errors.js';
import { formatBytes } from '../io/progress.js';
import { WEIGHT_FORMATS, type WeightFormat } from '../kernels/layout.js';
import type { PackHeader } from '../pack/types.js';
import type { CliContext } from './context.js';
import { modelPath } from './model-argument.js';
import { outputOptions, threadsOption } from './options.js';

interface ConvertFlags {
  output: string;
  quant?: WeightFormat;
  threads?: number;
}

export function registerConvert(program: Command, context: CliContext): void {
  const command = program
    .command('convert')
    .description('Convert a model into a pack: one file of quantised, neuron-major weights.')
    .argument('<model>', 'model folder or .gguf file')
    .requiredOption('-o, --output <file>', 'the pack to write')
    .addOption(
      new Option(
        '--quant <format>',
        'weights (default: q4; of a quantised GGUF file what its types ask for: q8 above 4 bits)',
      ).choices(WEIGHT_FORMATS),
    )
    .addOption(threadsOption());
  outputOptions(command)
    .addHelpText('after', EXAMPLES)
    .action((model: string, flags: ConvertFlags) => convertCommand(context, model, flags));
}

const EXAMPLES = `
Examples:
  hybrid-infer convert ./prosparse-7b -o prosparse-7b.q4.hpack
  hybrid-infer convert model.gguf -o model.q8.hpack --quant q8`;

async function convertCommand(context: CliContext, model: string, flags: ConvertFlags): Promise<void> {
  refuseFolder(flags.output);
  const [{ openModel }, { convert }, { looksLikePack }] = await Promise.all([
    import('../model/open-model.js'),
    import('../pack/convert.js'),
    import('../pack/reader.js'),
  ]);
  const path = modelPath(model);
  if (looksLikePack(path)) {
    throw new UsageError(`${path} is a pack already`, 'Convert the original model folder or .gguf file.');
  }
  const source = await openModel(path);
  const began = performance.now();
  try {
    for (const warning of source.warnings) context.warn(warning);
    const header = await convert(source, flags.output, {
      quant: flags.quant ?? null,
      threads: flags.threads,
      signal: context.signal,
      onProgress: context.progress.report,
    });
    const seconds = (performance.now() - began) / 1000;
    if (context.json) {
      context.printJson({
        path: flags.output,
        name: header.name,
        quant: header.quant,
        converted: header.converted,
        fingerprint: header.fingerprint,
        bytes: header.fileBytes,
        seconds,
      });
    } else {
      context.progress.finish();
      context.print(
        `${flags.output}: ${header.name} in ${formatNames(header)}, ${formatBytes(header.fileBytes)}, ${seconds.toFixed(1)} s`,
      );
    }
  } finally {
    await source.close();
  }
}

/** `q4`, or `q4 and q8` where a quantised file asked for both. */
const formatNames = ({ converted }: PackHeader): string =>
  [...new Set(converted.filter(({ role }) => !OUTER_ROLES.has(role)).map(({ to }) => to))]
    .sort()
    .join(' and ');
/** Never in q4: they say nothing about what was asked for. */
const OUTER_ROLES: ReadonlySet<string> = new Set(['embed', 'lmHead']);

function refuseFolder(path: string): void {
  const found = statSync(path, { throwIfNoEntry: false });
  if (found?.isDirectory())
    throw new HybridError('USAGE', `--output ${path} is a folder, expected a file`, {});
}
