/** `pull`: a model from the Hugging Face Hub into the cache, with an estimate before the download. */
import { isSmooth } from '../kernels/kernels.js';
import { totalmem } from 'node:os';
import { Option, type Command } from 'commander';
import { UsageError } from '../errors.js';
import { formatHubName, parseHubName } from '../hub/repository.js';
import { formatBytes } from '../io/progress.js';
import { WEIGHT_FORMATS, type WeightFormat } from '../kernels/layout.js';
import type { WeightSource } from '../model/types.js';
import type { CliContext } from './context.js';
import { expertActivity, plannedHeader } from './estimate.js';
import { outputOptions } from './options.js';
import { oneOf } from './parse.js';

interface PullFlags {
  file?: string;
  quant: WeightFormat;
  estimate?: boolean;
  force?: boolean;
}

/** An estimate needs no more: whoever wants exact figures runs `bench`. */
const ESTIMATE_SAMPLES = 2;

/** What `pull` says about a model before its weights come. */
interface PullEstimate {
  quant: WeightFormat;
  packBytes: number;
  memoryBytes: number;
  fits: boolean;
  cpuBytesPerSecond: number;
  tokensPerSecond: number;
}

export function registerPull(program: Command, context: CliContext): void {
  const command = program
    .command('pull')
    .description(
      'Download a model from the Hugging Face Hub into its cache; an interrupted download is resumed.',
    )
    .argument('<repository>', 'owner/name, with @revision where wanted')
    .option('--file <name>', 'the GGUF file to take, by part of its name, such as Q4_K_M')
    .addOption(
      new Option('--quant <format>', 'weights that the estimate is for')
        .argParser(oneOf('--quant', WEIGHT_FORMATS))
        .default('q8'),
    )
    .option('--estimate', 'say what it needs and how fast it will be, and download no weights')
    .option('--force', 'download also what this program cannot load');
  outputOptions(command)
    .addHelpText('after', EXAMPLES)
    .action((repository: string, flags: PullFlags) => pullCommand(context, repository, flags));
}

const EXAMPLES = `
HF_TOKEN is sent to the Hub only; HF_ENDPOINT names another one; HF_HOME moves the
cache; HTTP_PROXY, HTTPS_PROXY and NO_PROXY are respected.

Examples:
  hybrid-infer pull SparseLLM/prosparse-llama-2-7b --estimate --quant q4
  hybrid-infer pull owner/name-GGUF --file Q4_K_M
  hybrid-infer run hf:owner/name-GGUF "Once upon a time"`;

async function pullCommand(context: CliContext, repository: string, flags: PullFlags): Promise<void> {
  const name = parseHubName(repository);
  if (name.file !== null && flags.file !== undefined)
    throw new UsageError('the file is named twice', 'Leave out --file.');
  const wanted = { ...name, file: flags.file ?? name.file };
  if (flags.file !== undefined) parseHubName(formatHubName(wanted)); // the same rules for both ways to name it
  const [{ pull }, { hubToken }] = await Promise.all([import('../hub/pull.js'), import('../hub/token.js')]);
  let estimate: PullEstimate | null = null;
  const result = await pull(wanted, {
    token: hubToken(),
    signal: context.signal,
    force: flags.force,
    onProgress: context.progress.report,
    onNote: (line) => context.note(line),
    onWait: (line) => context.warn(line),
    onModel: async (model) => {
      estimate = await estimateModel(context, model, flags.quant);
      context.note(sentence(estimate));
      return !flags.estimate;
    },
  });
  if (context.json) return context.printJson({ ...result, estimate });
  context.progress.finish();
  if (!result.complete)
    return context.print(`${formatBytes(result.bytes)} to download; the weights were left where they are`);
  context.print(`${result.path}: ${formatBytes(result.bytes)} in ${result.files.length} files`);
  context.note(`run it with: hybrid-infer run ${formatHubName(wanted)} "..."`);
}

async function estimateModel(
  context: CliContext,
  model: WeightSource,
  quant: WeightFormat,
): Promise<PullEstimate> {
  context.note('measuring memory bandwidth ...');
  const [{ BandwidthProbe }, { selectKernels }, { estimatePlacement, planActivity }] = await Promise.all([
    import('../bench/bandwidth.js'),
    import('../kernels/select.js'),
    import('../profiler/placement-costs.js'),
  ]);
  const header = await plannedHeader(model, quant);
  const cpuBytesPerSecond = 1e9 * (await BandwidthProbe.measure(selectKernels('auto'), ESTIMATE_SAMPLES));
  const dense = isSmooth(header.config.activation.kind);
  const experts = expertActivity(header);
  const activity = experts.length > 0 ? experts : planActivity(null, header, dense ? 'dense' : 'exact');
  const hardware = { cpuBytesPerSecond, gpuBytesPerSecond: cpuBytesPerSecond, crossingSeconds: 1 };
  const { cpuOnly } = await estimatePlacement({ header, activity }, hardware, 0);
  const memoryBytes = totalmem();
  return {
    quant,
    packBytes: header.fileBytes,
    memoryBytes,
    fits: cpuOnly.cpuBytes < memoryBytes,
    cpuBytesPerSecond,
    tokensPerSecond: cpuOnly.tokensPerSecond,
  };
}

const sentence = (e: PullEstimate): string =>
  `in ${e.quant} it takes ${formatBytes(e.packBytes)} of memory and ${e.fits ? 'fits' : 'does not fit'} into ` +
  `${formatBytes(e.memoryBytes)}; about ${e.tokensPerSecond.toFixed(1)} tokens/s at ` +
  `${(e.cpuBytesPerSecond / 1e9).toFixed(1)} GB/s before a profile makes it faster`;
