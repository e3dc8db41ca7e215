/** `bench`: how fast, against what the machine's memory allows. */
import { canSkip, type FfnPlan } from '../engine/ffn-plan.js';
import { Option, type Command } from 'commander';
import type { BenchConfiguration, BenchRow, ModelBench } from '../bench/model.js';
import type { Machine } from '../bench/machine.js';
import { UsageError } from '../errors.js';
import { GPU_CHOICES, type GpuChoice } from '../gpu/providers.js';
import { formatBytes } from '../io/progress.js';
import type { KernelBackend, KvFormat } from '../kernels/kernels.js';
import { WEIGHT_FORMATS, type WeightFormat } from '../kernels/layout.js';
import type { Pack } from '../pack/types.js';
import { benchKernelsCommand } from './bench-kernels.js';
import type { CliContext } from './context.js';
import { modelPath } from './model-argument.js';
import {
  FFN_CHOICES,
  KERNEL_CHOICES,
  kvCacheOption,
  loadOptions,
  outputOptions,
  type EngineFlags,
} from './options.js';
import { byteSize, list, oneOf, wholeNumber } from './parse.js';
import { table } from './table.js';
import { readTextFile } from './text-file.js';

type FfnChoice = (typeof FFN_CHOICES)[number];

interface BenchFlags {
  ffn: FfnChoice[] | null;
  kernels?: (KernelBackend | 'auto')[] | true;
  threads: (number | undefined)[];
  quant: (WeightFormat | undefined)[];
  kvCache?: KvFormat;
  promptTokens?: number;
  generateTokens?: number;
  rounds: number;
  gpu?: GpuChoice;
  gpuMemory?: number;
  text?: string;
}

export function registerBench(program: Command, context: CliContext): void {
  const command = program
    .command('bench')
    .description('Measure speed: configurations take turns, medians are compared with the memory bandwidth.')
    .argument('[models...]', 'model folders, .gguf files or packs (default: the demo model)')
    .addOption(
      new Option('--ffn <modes>', 'FFN modes to compare')
        .argParser(list(oneOf('--ffn', FFN_CHOICES)))
        .default(null, 'dense,exact, and predicted where there is a predictor'),
    )
    .addOption(
      new Option(
        '--kernels [backends]',
        'backends to compare; without a value: measure the kernels alone',
      ).argParser(list(oneOf('--kernels', KERNEL_CHOICES))),
    )
    .addOption(
      new Option('-t, --threads <counts>', 'thread counts to compare')
        .argParser(list(wholeNumber('--threads', 1, 256)))
        .default([undefined], 'one per core'),
    )
    .addOption(
      new Option('--quant <formats>', 'weight formats to compare')
        .argParser(list(oneOf('--quant', WEIGHT_FORMATS)))
        .default([undefined], 'q8, or what a pack holds'),
    )
    .addOption(kvCacheOption())
    .addOption(
      new Option('-p, --prompt-tokens <n>', 'length of the prompt (default: 128)').argParser(
        wholeNumber('--prompt-tokens', 1, 2 ** 24),
      ),
    )
    .addOption(
      new Option('-n, --generate-tokens <n>', 'tokens to generate after it (default: 64)').argParser(
        wholeNumber('--generate-tokens', 1, 2 ** 24),
      ),
    )
    .addOption(
      new Option('-r, --rounds <n>', 'turns of each configuration')
        .argParser(wholeNumber('--rounds', 1, 1000))
        .default(5),
    )
    .addOption(new Option('--gpu <provider>', 'where hot neurons live').choices(GPU_CHOICES).default('off'))
    .addOption(
      new Option('--gpu-memory <size>', 'bytes of GPU memory for weights, such as 4GiB').argParser(
        byteSize('--gpu-memory'),
      ),
    )
    .option('--text <file>', 'text the prompt is cut from');
  outputOptions(command)
    .addHelpText('after', EXAMPLES)
    .action((models: string[], flags: BenchFlags) => bench(context, models, flags));
}

const EXAMPLES = `
Options with several values are multiplied out: --ffn dense,exact --threads 1,2 makes four configurations. Several
models take turns too.

Examples:
  hybrid-infer bench
  hybrid-infer bench ./prosparse-7b --quant q4 --ffn dense,exact,predicted
  hybrid-infer bench a.q4.hpack b.q4.hpack --ffn predicted
  hybrid-infer bench --kernels native,wasm --ffn exact
  hybrid-infer bench --kernels`;

async function bench(context: CliContext, models: string[], flags: BenchFlags): Promise<void> {
  if (flags.kernels === true) {
    if (models.length > 0)
      throw new UsageError('--kernels without a value measures kernels and no model', 'Leave the model out, or name backends.'); // prettier-ignore
    const threads = flags.threads.filter((n) => n !== undefined);
    const formats = flags.quant.filter((f) => f !== undefined);
    return benchKernelsCommand(context, {
      threads: threads.length > 0 ? threads : undefined,
      formats: formats.length > 0 ? formats : undefined,
    });
  }
  const [{ benchModel }, { HybridModel, findPlan }, { packFor }, { openPack }] = await Promise.all([
    import('../bench/model.js'),
    import('../index.js'),
    import('../pack/cache.js'),
    import('../pack/reader.js'),
  ]);
  const { signal, progress } = context;
  const configurations: BenchConfiguration[] = [];
  let maxContext = Infinity;
  for (const argument of models.length > 0 ? models : [undefined]) {
    const path = modelPath(argument);
    const pack = openPack(
      await packFor(path, flags.quant[0] ?? null, { signal, onProgress: progress.report }),
    );
    maxContext = Math.min(maxContext, pack.header.config.maxContext);
    const modes = flags.ffn ?? defaultModes(pack, findPlan(pack));
    pack.close();
    for (const combination of combinations(flags, modes)) {
      configurations.push({
        name: models.length > 1 ? argument : undefined,
        load: (contextLength) =>
          HybridModel.load(path, { ...loadOptions(context, combination), contextLength, onProgress: undefined }), // prettier-ignore
      });
    }
  }
  const result = await benchModel({
    configurations,
    maxContext,
    promptTokens: flags.promptTokens,
    generateTokens: flags.generateTokens,
    rounds: flags.rounds,
    text: flags.text === undefined ? undefined : readTextFile(flags.text, '--text'),
    signal,
    onProgress: (done, total) => progress.report({ stage: 'bench', done, total, unit: 'steps' }),
    onReload: () =>
      context.warn('the configurations do not fit in memory together: each is loaded for its turns'),
  });
  progress.finish();
  if (context.json) context.printJson(result);
  else context.print(toText(result));
}

/** What the model can do, compared. */
function defaultModes(pack: Pack, plan: FfnPlan | null): FfnChoice[] {
  if (!canSkip(pack.header.config.activation.kind, plan)) return ['dense'];
  const predicted = plan?.layers.some((layer) => layer.predictor) ?? false;
  return predicted ? ['dense', 'exact', 'predicted'] : ['dense', 'exact'];
}

function combinations(flags: BenchFlags, modes: readonly FfnChoice[]): EngineFlags[] {
  const backends = flags.kernels === undefined || flags.kernels === true ? [undefined] : flags.kernels;
  return flags.quant.flatMap((quant) =>
    backends.flatMap((kernels) =>
      flags.threads.flatMap((threads) =>
        modes.map((ffn) => ({
          quant,
          kernels,
          threads,
          ffn,
          kvCache: flags.kvCache,
          gpu: flags.gpu,
          gpuMemory: flags.gpuMemory,
        })),
      ),
    ),
  );
}

function toText({ machine, rows }: ModelBench): string {
  const compared = rows.some((row) => row.ratioToFirst !== 1);
  const header = [
    'model',
    'size',
    'quant',
    'kernels',
    'threads',
    'FFN',
    'test',
    'tokens/s',
    '',
    'bytes/token',
    'GB/s',
    'of floor',
  ];
  if (compared) header.push('x first');
  const cells = (row: BenchRow): string[] => [
    row.model,
    formatBytes(row.size),
    row.quant,
    row.kernels,
    `${row.threads}`,
    row.ffnMode,
    row.test,
    digits(row.tokensPerSecond),
    `± ${digits(row.deviation)}`,
    row.bytesPerToken === null ? '-' : formatBytes(row.bytesPerToken),
    row.achievedGBps === null ? '-' : row.achievedGBps.toFixed(1),
    row.shareOfFloor === null ? '-' : `${(100 * row.shareOfFloor).toFixed(0)} %`,
    ...(compared ? [row.ratioToFirst.toFixed(2)] : []),
  ];
  const gpus = new Set(rows.map(({ gpu }) => gpu && `${gpu.provider}, ${gpu.device}, ${formatBytes(gpu.bytes)} on it`)); // prettier-ignore
  const gpuLines = [...gpus].map((gpu) => (gpu ? `\nGPU: ${gpu}` : '')).join('');
  const wrong = rows.some((row) => row.aboveFloor)
    ? '\nA share of the floor above 105 % is a mistake of measurement: something else ran beside. Run it again.'
    : '';
  return `${machineLine(machine)}${gpuLines}\n\n${table(header, rows.map(cells))}${wrong}`;
}

export function machineLine(machine: Machine): string {
  const bandwidth = machine.memoryBandwidthGBps;
  const read = bandwidth === null ? '' : `, reads ${bandwidth.toFixed(1)} GB/s`;
  return `${machine.cpu}, ${machine.cores} cores, ${formatBytes(machine.memoryBytes)}${read}, Node ${machine.node}`;
}

const digits = (value: number): string => value.toFixed(value < 100 ? 2 : value < 1000 ? 1 : 0);
