/** `inspect`: what a model or pack is made of. Reads headers only. */
import type { Command } from 'commander';
import { formatBytes } from '../io/progress.js';
import type { Description } from '../pack/inspect.js';
import type { CliContext } from './context.js';
import { modelPath } from './model-argument.js';
import { outputOptions } from './options.js';
import { table } from './table.js';

export function registerInspect(program: Command, context: CliContext): void {
  const command = program
    .command('inspect')
    .description('Show shapes, formats, bytes per part and what sparsity can do.')
    .argument('[model]', 'model folder, .gguf file or pack (default: the demo model)');
  outputOptions(command)
    .addHelpText(
      'after',
      '\nExamples:\n  hybrid-infer inspect ./prosparse-7b\n  hybrid-infer inspect model.hpack --json',
    )
    .action((model: string | undefined) => inspect(context, modelPath(model)));
}

async function inspect(context: CliContext, path: string): Promise<void> {
  const description = await describe(path);
  if (context.json) context.printJson(description);
  else context.print(toText(description));
}

async function describe(path: string): Promise<Description> {
  const [{ looksLikePack, openPack }, { describePack, describeSource }, { openModel }] = await Promise.all([
    import('../pack/reader.js'),
    import('../pack/inspect.js'),
    import('../model/open-model.js'),
  ]);
  if (looksLikePack(path)) {
    const pack = openPack(path);
    pack.close();
    return describePack(pack);
  }
  const source = await openModel(path);
  await source.close();
  return describeSource(source);
}

function toText(d: Description): string {
  const { config: c, sparsity: s } = d;
  const facts: [string, string][] = [
    ['model', `${d.name} (${d.kind}${d.quant ? `, ${d.quant}` : ''})`],
    ['path', d.path],
    ['architecture', c.architecture],
    ['shape', `${c.layers} layers, d ${c.hiddenSize}, nFf ${c.intermediateSize}, vocabulary ${c.vocabSize}`],
    ['attention', `${c.heads} heads, ${c.kvHeads} KV heads, head dimension ${c.headDim}`],
    [
      'context',
      `${c.maxContext} positions` +
        (c.ends.learnedPositions
          ? ''
          : `, rope theta ${c.ropeTheta}${c.ropeScaling ? `, ${c.ropeScaling.type} scaling` : ''}`),
    ],
    [
      'activation',
      s.activation.kind +
        (s.activation.kind === 'fatrelu'
          ? `, threshold ${Number(s.activation.threshold.toPrecision(7))}`
          : ''),
    ],
    ...d.block.map((phrase): [string, string] => ['layers', phrase]),
    ['FFN modes', s.ffnModes.join(', ') + (s.reason ? ` (${s.reason})` : '')],
    [
      'neuron',
      `${c.block.ffn.gated ? 'gate' : 'fc1'} row ${formatBytes(s.gateRowBytes)}, ` +
        `${c.block.ffn.gated ? 'up row and down column' : 'down column'} ${formatBytes(s.recordBytes)}`,
    ],
    [
      'read per token',
      `${formatBytes(d.bytesPerTokenDense)} in FFN mode dense` +
        (c.block.ffn.experts ? ', of the chosen experts' : ''),
    ],
  ];
  if (d.fingerprint) facts.push(['fingerprint', d.fingerprint]);
  const width = Math.max(...facts.map(([name]) => name.length));
  const total = ['total', '', d.parameters, d.bytes, d.bitsPerWeight] as const;
  const rows = [
    ...d.parts.map((p) => [p.part, p.formats.join(' '), p.parameters, p.bytes, p.bitsPerWeight] as const),
    total,
  ];
  return [
    ...facts.map(([name, value]) => `${name.padEnd(width)}  ${value}`),
    '',
    table(
      ['part', 'format', 'parameters', 'bytes', 'bits/weight'],
      rows.map(([part, format, n, bytes, bits]) => [
        part,
        format,
        count(n),
        formatBytes(bytes),
        bits.toFixed(2),
      ]),
    ),
    '',
    ...conversionLines(d),
    ...d.warnings.map((warning) => `warning: ${warning}`),
  ].join('\n');
}

/** `Q4_K -> q4: gate 4, up 4`: what became (or becomes) of what, one line for each pair of types. */
function conversionLines({ converted, kind }: Description): string[] {
  const lines = new Map<string, string[]>();
  for (const { role, from, to, tensors } of converted) {
    const pair = `${from} -> ${to}`;
    lines.set(pair, [...(lines.get(pair) ?? []), `${role} ${tensors}`]);
  }
  const verb = kind === 'pack' ? 'converted' : 'converts';
  return [...lines].map(([pair, roles]) => `${verb} ${pair}: ${roles.join(', ')}`);
}

/** 4521984 -> `4.52 M` */
function count(n: number): string {
  if (n < 1e3) return `${n}`;
  const [scale, unit] = n < 1e6 ? [1e3, 'k'] : n < 1e9 ? [1e6, 'M'] : [1e9, 'G'];
  return `${(n / scale).toFixed(2)} ${unit}`;
}
