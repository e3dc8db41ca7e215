/** `estimate`: what a GPU budget would hold and how fast decoding would be, from headers alone. */
import { isSmooth } from '../kernels/kernels.js';
import { Option, type Command } from 'commander';
import { HybridError } from '../errors.js';
import { GPU_CHOICES, type GpuChoice } from '../gpu/providers.js';
import { formatBytes } from '../io/progress.js';
import { describeBlock } from '../model/block.js';
import type { KvFormat } from '../kernels/kernels.js';
import type { WeightFormat } from '../kernels/layout.js';
import type { WeightSource } from '../model/types.js';
import type { PackHeader } from '../pack/types.js';
import type { Estimate, LayerActivity, PlacementHardware } from '../profiler/placement-costs.js';
import type { CliContext } from './context.js';
import { modelPath } from './model-argument.js';
import { kvCacheOption, outputOptions, quantOption } from './options.js';
import { byteSize, decimal, wholeNumber } from './parse.js';

interface EstimateFlags {
  gpuMemory: number;
  gpu: GpuChoice;
  quant?: WeightFormat;
  kvCache?: KvFormat;
  contextTokens: number;
  cpuBandwidth?: number;
  gpuBandwidth?: number;
  crossing?: number;
}

const DEFAULT_CONTEXT_TOKENS = 256;
/** Of a graph launch with its two copies, where no device is there to measure it. */
const TYPICAL_CROSSING_US = 60;

export function registerEstimate(program: Command, context: CliContext): void {
  const command = program
    .command('estimate')
    .description('Estimate what a GPU budget holds, tokens per second and memory, before anything is loaded.')
    .argument('[model]', 'model folder, .gguf file or pack (default: the demo model)')
    .addOption(
      new Option('--gpu-memory <size>', 'budget, such as 4GiB')
        .argParser(byteSize('--gpu-memory'))
        .makeOptionMandatory(),
    )
    .addOption(new Option('--gpu <provider>', 'provider to measure').choices(GPU_CHOICES).default('auto'))
    .addOption(quantOption())
    .addOption(kvCacheOption())
    .addOption(
      new Option('--context-tokens <n>', 'positions that attention reads')
        .argParser(wholeNumber('--context-tokens', 1, 2 ** 24))
        .default(DEFAULT_CONTEXT_TOKENS),
    )
    .addOption(bandwidthOption('--cpu-bandwidth', 'memory bandwidth of the CPU in GB/s (default: measured)'))
    .addOption(bandwidthOption('--gpu-bandwidth', 'weight bandwidth of the GPU in GB/s (default: measured)'))
    .addOption(
      new Option('--crossing <us>', 'microseconds a GPU call costs (default: measured)').argParser(
        decimal('--crossing', 0, 1e6),
      ),
    );
  outputOptions(command)
    .addHelpText('after', EXAMPLES)
    .action((model: string | undefined, flags: EstimateFlags) => estimate(context, modelPath(model), flags));
}

const bandwidthOption = (name: string, help: string): Option =>
  new Option(`${name} <GB/s>`, help).argParser(decimal(name, 0.001, 1e5));

const EXAMPLES = `
Examples:
  hybrid-infer estimate ./prosparse-7b --quant q4 --gpu-memory 4GiB
  hybrid-infer estimate model.hpack --gpu-memory 8GiB --gpu-bandwidth 900 --cpu-bandwidth 40`;

async function estimate(context: CliContext, path: string, flags: EstimateFlags): Promise<void> {
  const header = await headerOf(path, flags.quant);
  const [{ estimatePlacement }, { unsupportedFfn }] = await Promise.all([
    import('../profiler/placement-costs.js'),
    import('../gpu/hot-ffn.js'),
  ]);
  // What `run` refuses is not planned: then nothing goes to the GPU, and none is needed.
  const unsupported = unsupportedFfn(header.config);
  if (unsupported !== null) {
    context.warn(`the GPU does not compute ${unsupported}: estimated for the CPU alone`);
  }
  const hardware = await measureHardware(context, flags, unsupported === null);
  const model = {
    header,
    activity: expertActivity(header),
    contextTokens: flags.contextTokens,
    kvFormat: flags.kvCache,
  };
  const result = await estimatePlacement(model, hardware, unsupported === null ? flags.gpuMemory : 0);
  if (context.json) {
    const { cpuOnly, hybrid, placed } = result;
    const { method, optimal } = result.result;
    context.printJson({
      model: header.name,
      quant: header.quant,
      block: describeBlock(header.config),
      budgetBytes: flags.gpuMemory,
      hardware: unsupported === null ? hardware : { cpuBytesPerSecond: hardware.cpuBytesPerSecond },
      cpuOnly,
      hybrid,
      placed,
      method,
      optimal,
    });
  } else {
    context.print(toText(header, flags.gpuMemory, hardware, result, unsupported === null));
  }
}

/** Of a pack its own header; of a model the one its pack would have. */
async function headerOf(path: string, quant: WeightFormat | undefined): Promise<PackHeader> {
  const [{ looksLikePack, openPack }, { openModel }] = await Promise.all([
    import('../pack/reader.js'),
    import('../model/open-model.js'),
  ]);
  if (looksLikePack(path)) {
    const pack = openPack(path);
    pack.close();
    return pack.header;
  }
  const source = await openModel(path);
  await source.close();
  return plannedHeader(source, quant ?? null);
}

/** The header that a model's pack would have: config and formats decide it, no weights are read. */
export async function plannedHeader(source: WeightSource, quant: WeightFormat | null): Promise<PackHeader> {
  const { planPackOf } = await import('../pack/convert.js');
  return planPackOf(source, '0'.repeat(64), quant, 'q8').header;
}

/**
 * Neurons of a mixture: those of the chosen experts are candidates, half of them active where the activation has
 * zeros (as estimates assume elsewhere). Which experts is not known, so all are equally likely.
 */
export function expertActivity(header: PackHeader): LayerActivity[] {
  const { block, activation, intermediateSize } = header.config;
  const { experts } = block.ffn;
  if (experts === null) return [];
  const chosen = experts.active / experts.count;
  const active = isSmooth(activation.kind) ? chosen : chosen / 2;
  const filled = (share: number) => new Float32Array(intermediateSize).fill(share);
  return header.layers.map(({ router }) => ({
    mode: 'predicted',
    frequency: filled(active),
    candidateRate: filled(chosen),
    predictorBytes: router?.bytes ?? 0,
  }));
}

/** @param withGpu false: nothing is placed there, so its speed is not asked for */
async function measureHardware(
  context: CliContext,
  flags: EstimateFlags,
  withGpu: boolean,
): Promise<PlacementHardware> {
  let { cpuBandwidth, gpuBandwidth, crossing } = flags;
  if (cpuBandwidth === undefined) {
    context.note('measuring memory bandwidth ...');
    const [{ BandwidthProbe }, { selectKernels }] = await Promise.all([
      import('../bench/bandwidth.js'),
      import('../kernels/select.js'),
    ]);
    cpuBandwidth = await BandwidthProbe.measure(selectKernels('auto'));
  }
  if (!withGpu) gpuBandwidth = cpuBandwidth;
  if (gpuBandwidth === undefined) {
    context.note('measuring the GPU ...');
    const { selectProvider } = await import('../gpu/providers.js');
    const { chosen, tried } = await selectProvider(flags.gpu, { measure: true });
    const report = chosen?.report;
    if (!report?.bytesPerSecond) {
      const why = tried.map((p) => `${p.provider}: ${p.reason}`).join('; ') || 'no provider was asked for';
      throw new HybridError('GPU_UNAVAILABLE', `no GPU to measure (${why})`, {
        hint: 'Give --gpu-bandwidth (and --crossing) of the device you have in mind.',
      });
    }
    gpuBandwidth = report.bytesPerSecond / 1e9;
    crossing ??= report.crossingUs;
  }
  return {
    cpuBytesPerSecond: cpuBandwidth * 1e9,
    gpuBytesPerSecond: gpuBandwidth * 1e9,
    crossingSeconds: (crossing ?? TYPICAL_CROSSING_US) / 1e6,
  };
}

function toText(
  header: PackHeader,
  budget: number,
  hardware: PlacementHardware,
  e: Estimate,
  withGpu: boolean,
): string {
  const { layers, intermediateSize } = header.config;
  const speed = (tokensPerSecond: number): string => `${tokensPerSecond.toFixed(1)} tokens/s`;
  const facts: [string, string][] = [
    ['model', `${header.name}, ${header.quant}, ${formatBytes(header.fileBytes)}`],
    ...describeBlock(header.config).map((phrase): [string, string] => ['layers', phrase]),
    [
      'hardware',
      `CPU ${(hardware.cpuBytesPerSecond / 1e9).toFixed(1)} GB/s` +
        (withGpu
          ? `, GPU ${(hardware.gpuBytesPerSecond / 1e9).toFixed(1)} GB/s, ` +
            `${(hardware.crossingSeconds * 1e6).toFixed(0)} µs a crossing`
          : ''),
    ],
    ['CPU only', `${speed(e.cpuOnly.tokensPerSecond)}, ${formatBytes(e.cpuOnly.cpuBytes)} of memory`],
  ];
  const ofBoth: [string, string][] = [
    [
      'hybrid',
      `${speed(e.hybrid.tokensPerSecond)}, ${formatBytes(e.hybrid.cpuBytes)} of memory, ` +
        `${formatBytes(e.hybrid.gpuBytes)} of ${formatBytes(budget)} on the GPU`,
    ],
    [
      'placed',
      `${e.placed.hotNeurons} of ${layers * intermediateSize} neurons (${(100 * e.placed.hotShare).toFixed(1)} %), ` +
        `QKV of ${e.placed.qkvLayers} and O of ${e.placed.oLayers} of ${layers} layers` +
        (e.placed.lmHead ? ', the output head' : ''),
    ],
    ['solved by', `${e.result.method}${e.result.optimal ? ', proven best' : ''}`],
  ];
  const shown = withGpu ? [...facts, ...ofBoth] : facts;
  return shown.map(([name, value]) => `${name.padEnd(9)}  ${value}`).join('\n');
}
