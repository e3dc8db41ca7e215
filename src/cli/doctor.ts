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
    .addHelpText('after', '\nExamples:\n  hybrid-infer doctor\n  hybrid-infer doctor --json')
    .action(() => doctor(context));
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
