/** `doctor`: what this machine offers, what is missing, and how to get it. */
import type { Command } from 'commander';
import type { DoctorReport } from '../gpu/doctor.js';
import type { ProviderProbe } from '../gpu/providers.js';
import { formatBytes } from '../io/progress.js';
import type { CliContext } from './context.js';
import { outputOptions } from './options.js';

export function registerDoctor(program: Command, context: CliContext): void {
  const command = program
    .command('doctor')
    .description('Show cores, memory, kernels, GPU providers, what is missing and how to get it.');
  outputOptions(command)
    .option('--tune-gpu', "time the WebGPU kernels' work-groups on this GPU and keep the best")
    .addHelpText(
      'after',
      '\nExamples:\n  hybrid-infer doctor\n  hybrid-infer doctor --json\n  hybrid-infer doctor --tune-gpu',
    )
    .action(({ tuneGpu }: { tuneGpu?: true }) => (tuneGpu ? tune(context) : doctor(context)));
}

/** Results do not depend on what is found here, only speed does. */
async function tune(context: CliContext): Promise<void> {
  const [{ GpuDevice }, { tuneDevice }, { keepTuning }] = await Promise.all([
    import('../gpu/webgpu/device.js'),
    import('../gpu/webgpu/tune.js'),
    import('../gpu/webgpu/tuning.js'),
  ]);
  const gpu = await GpuDevice.open();
  try {
    const { facts } = gpu;
    const report = await tuneDevice(gpu, (choice) => {
      context.signal.throwIfAborted();
      context.note(`timing ${choice} ...`);
    });
    const path = await keepTuning(facts, report.tuning);
    if (context.json) {
      context.printJson({ adapter: facts.name, software: facts.software, path, ...report });
      return;
    }
    const note = facts.software ? ' (software: these times say nothing about a GPU)' : '';
    const tried = report.tried.map((t) => `${t.microseconds.toFixed(1).padStart(12)} µs  ${t.choice}`);
    context.print(
      [`${facts.name}${note}`, ...tried, `kept in ${path}: ${JSON.stringify(report.tuning)}`].join('\n'),
    );
  } finally {
    await gpu.close();
  }
}

async function doctor(context: CliContext): Promise<void> {
  const [{ runDoctor }, { BandwidthProbe }, { selectKernels }] = await Promise.all([
    import('../gpu/doctor.js'),
    import('../bench/bandwidth.js'),
    import('../kernels/select.js'),
  ]);
  const report = await runDoctor({
    memoryBandwidth: () => BandwidthProbe.measure(selectKernels('auto')),
    onStep: (step) => {
      context.signal.throwIfAborted();
      context.note(`checking ${step} ...`);
    },
  });
  if (context.json) context.printJson(report);
  else context.print(toText(report));
}

function toText(r: DoctorReport): string {
  const bandwidth = r.memoryBandwidthGBps === null ? '' : `, reads ${r.memoryBandwidthGBps.toFixed(1)} GB/s`;
  const facts: [string, string][] = [
    ['node', `${r.node} on ${r.platform}`],
    ['cpu', `${r.cpu}, ${r.cores} cores${r.kernels.simd.length ? ` (${r.kernels.simd.join(' ')})` : ''}`],
    ['memory', `${formatBytes(r.memoryBytes)}, ${formatBytes(r.availableMemoryBytes)} available${bandwidth}`],
    ['kernels', r.kernels.name],
    ...r.kernels.reasons.map((reason): [string, string] => ['', `not ${reason}`]),
    ['wasm', r.kernels.wasm],
    ['onnxruntime', onnxruntimeFacts(r.onnxruntime)],
    ...r.providers.map((p): [string, string] => [
      `gpu ${p.provider}`,
      p.ok ? providerFacts(p) : `no: ${p.reason}`,
    ]),
    ['gpu auto', r.chosenProvider ?? 'none: everything runs on the CPU'],
    ...r.installCuda.map((step, i): [string, string] => [i === 0 ? 'for cuda' : '', step]),
  ];
  const width = Math.max(...facts.map(([name]) => name.length));
  return facts.map(([name, value]) => `${name.padEnd(width)}  ${value}`).join('\n');
}

function onnxruntimeFacts({ installed, version, add }: DoctorReport['onnxruntime']): string {
  if (installed) return version ?? 'installed';
  if (version !== null) return `${version} has no binding for this platform`;
  return `not installed: no GPU, profile and sparsify. Add it with \`${add}\``;
}

function providerFacts({ reason, report }: ProviderProbe): string {
  const speed = report?.bytesPerSecond ? `, weights at ${(report.bytesPerSecond / 1e9).toFixed(1)} GB/s` : '';
  const crossing = report ? `, ${report.crossingUs.toFixed(0)} µs a crossing` : '';
  return `works${speed}${crossing} (${reason})`;
}
