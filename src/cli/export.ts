/** `export`: a model for other programs. */
import { Option, type Command } from 'commander';
import { UsageError } from '../errors.js';
import { GGUF_TYPES, type GgufType } from '../export/gguf-file.js';
import { formatBytes } from '../io/progress.js';
import type { WeightSource } from '../model/types.js';
import type { PredictorArtifact } from '../predictor/artifact.js';
import type { CliContext } from './context.js';
import { modelPath } from './model-argument.js';
import { outputOptions, threadsOption } from './options.js';

interface ExportFlags {
  gguf?: string;
  powerinfer?: string;
  type: GgufType;
  predictor?: string;
  threads?: number;
}

export function registerExport(program: Command, context: CliContext): void {
  const command = program
    .command('export')
    .description('Write a model for llama.cpp, or a model and its predictors for PowerInfer.')
    .argument('[model]', 'model folder, .gguf file or pack (default: the demo model)')
    .option('--gguf <file>', 'GGUF file for llama.cpp')
    .option('--powerinfer <file>', 'GGUF file with predictors for PowerInfer')
    .addOption(new Option('--type <type>', 'weights').choices(GGUF_TYPES).default('q4_0'))
    .option(
      '--predictor <file>',
      'predictor for --powerinfer (default: found by the name of the model, here or beside it)',
    )
    .addOption(threadsOption());
  outputOptions(command)
    .addHelpText('after', EXAMPLES)
    .action((model: string | undefined, flags: ExportFlags) =>
      exportCommand(context, modelPath(model), flags),
    );
}

const EXAMPLES = `
Examples:
  hybrid-infer export ./prosparse-7b --gguf prosparse-7b.q4_0.gguf
  hybrid-infer export ./prosparse-7b --powerinfer prosparse-7b.powerinfer.gguf --type f16`;

async function exportCommand(context: CliContext, path: string, flags: ExportFlags): Promise<void> {
  const { gguf, powerinfer, type, threads } = flags;
  if (gguf === undefined && powerinfer === undefined)
    throw new UsageError('export needs --gguf FILE or --powerinfer FILE');
  const source = await openSource(path);
  const options = { type, threads, signal: context.signal, onProgress: context.progress.report };
  const files: { path: string; format: string; bytes: number }[] = [];
  try {
    for (const warning of source.warnings) context.warn(warning);
    if (gguf !== undefined) {
      const { exportGguf } = await import('../export/export-gguf.js');
      files.push({ path: gguf, format: 'gguf', ...(await exportGguf(source, gguf, options)) });
    }
    if (powerinfer !== undefined) {
      const { exportPowerInfer } = await import('../export/export-powerinfer.js');
      const predictor = await predictorOf(source, flags.predictor);
      const { bytes } = await exportPowerInfer(source, predictor, powerinfer, options);
      files.push({ path: powerinfer, format: 'powerinfer', bytes });
    }
    context.progress.finish();
    if (context.json) context.printJson({ name: source.name, type, files });
    else
      for (const file of files)
        context.print(`${file.path}: ${source.name} in ${type}, ${formatBytes(file.bytes)}`);
  } finally {
    await source.close();
  }
}

async function predictorOf(source: WeightSource, path: string | undefined): Promise<PredictorArtifact> {
  const { findArtifacts } = await import('../profiler/find-plan.js');
  const header = { name: source.name, fingerprint: await source.fingerprint() };
  const found = findArtifacts({ header, path: source.path }, { predictor: path }).predictor;
  if (found) return found.artifact;
  throw new UsageError(
    `there is no predictor for ${source.name}`,
    'Make one with: hybrid-infer profile <model>, or name one with --predictor.',
  );
}

async function openSource(path: string): Promise<WeightSource> {
  const [{ looksLikePack, openPack }, { packSource }, { openModel }] = await Promise.all([
    import('../pack/reader.js'),
    import('../pack/pack-source.js'),
    import('../model/open-model.js'),
  ]);
  return looksLikePack(path) ? packSource(openPack(path)) : openModel(path);
}
