/**
 * From a placement (what lives on the GPU) to the graphs that hold it: one stateless graph a unit, built
 * from the pack when its turn comes.
 */
import type { GpuUnits, MailboxLayout } from '../engine/gpu-mailbox.js';
import { mailboxLayout } from '../engine/gpu-mailbox.js';
import type { ModelConfig } from '../model/types.js';
import type { PackHeader, PackSection } from '../pack/types.js';
import { matrixBytes, neuronBytes, type OnnxWeights } from '../profiler/gpu-bytes.js';
import type { GpuPlacement } from '../profiler/placement-costs.js';
import { ffnGraph, linearGraph, type UnitGraph } from './graph.js';
import { downMatrix, readRows, rowMatrix, type ReadAt } from './weights.js';

export type { GpuPlacement };

/** One graph: its work, its widths, its bytes. */
export type GpuUnit = { inputs: number; outputs: number; bytes: number } & (
  | { kind: 'lmHead' }
  | { kind: 'qkv'; layer: number }
  | { kind: 'o'; layer: number }
  | { kind: 'ffn'; layer: number; hotNeurons: Uint32Array }
);

/** The units of a placement, in the order a token meets them; a unit's index is its number in the mailbox. */
export function planUnits(header: PackHeader, placement: GpuPlacement): GpuUnit[] {
  const { config } = header;
  const { weights } = placement;
  const d = config.hiddenSize;
  const units: GpuUnit[] = [];
  const linear = (section: PackSection) => ({
    inputs: section.cols,
    outputs: section.rows,
    bytes: matrixBytes(weights, section.format, section.rows, section.cols),
  });
  placement.layers.forEach(({ qkv, o, hotNeurons }, layer) => {
    const sections = header.layers[layer];
    if (qkv) units.push({ kind: 'qkv', layer, ...linear(sections.qkv) });
    if (o) units.push({ kind: 'o', layer, ...linear(sections.o) });
    if (hotNeurons.length > 0) {
      const bytes = neuronBytes(weights, sections.ffn.format, hotNeurons.length, d, config.block.ffn.gated);
      units.push({ kind: 'ffn', layer, hotNeurons, inputs: d, outputs: d, bytes });
    }
  });
  if (placement.lmHead) units.push({ kind: 'lmHead', ...linear(header.lmHead ?? header.embed) });
  return units;
}

/** The graph of one unit, its weights read from the pack. */
export function buildUnit(read: ReadAt, header: PackHeader, unit: GpuUnit, weights: OnnxWeights): UnitGraph {
  const rows = (section: PackSection, ids: Uint32Array | null = null, at = 0) =>
    rowMatrix(readRows(read, section, ids, at), weights);
  if (unit.kind === 'lmHead') return linearGraph('lm_head', rows(header.lmHead ?? header.embed));

  const layer = header.layers[unit.layer];
  const name = `layer_${unit.layer}_${unit.kind}`;
  if (unit.kind === 'qkv') return linearGraph(name, rows(layer.qkv), readVector(read, layer.qkvBias));
  if (unit.kind === 'o') return linearGraph(name, rows(layer.o), readVector(read, layer.oBias));

  const { hotNeurons } = unit;
  const { gated } = header.config.block.ffn;
  const columns = readRows(read, layer.ffn, hotNeurons, gated ? layer.ffn.stride / 2 : 0);
  const biasOf = (section: PackSection | null): Float32Array | null => {
    const all = readVector(read, section);
    return all && Float32Array.from(hotNeurons, (id) => all[id]);
  };
  return ffnGraph(
    name,
    {
      gate: rows(layer.gate, hotNeurons),
      gateBias: biasOf(layer.gateBias),
      up: gated ? rows(layer.ffn, hotNeurons) : null,
      upBias: biasOf(layer.upBias),
      down: downMatrix(columns, weights),
    },
    header.config.activation,
  );
}

/** What the GPU's graphs do not compute of a model's FFNs; null: nothing. */
export function unsupportedFfn({ activation, block }: ModelConfig): string | null {
  if (activation.kind.startsWith('gelu')) return activation.kind;
  if (block.ffn.experts) return 'mixtures of experts';
  return block.ffn.norm ? 'a norm between x1 and the down projection' : null;
}

function readVector(read: ReadAt, section: PackSection | null): Float32Array | null {
  if (section === null) return null;
  const values = new Float32Array(section.cols);
  read(new Uint8Array(values.buffer), section.offset);
  return values;
}

/** Mailbox layout wide enough for every unit. */
export function unitsMailbox(units: readonly GpuUnit[], maxTokens: number): MailboxLayout {
  const widest = (of: (u: GpuUnit) => number) => Math.max(1, ...units.map(of));
  return mailboxLayout(
    maxTokens,
    widest((u) => u.inputs),
    widest((u) => u.outputs),
  );
}

/** What the lanes need to find the units. */
export function engineUnits(
  units: readonly GpuUnit[],
  placement: GpuPlacement,
  mailbox: GpuUnits['mailbox'],
): GpuUnits {
  const layers = placement.layers.map(() => ({ qkv: -1, o: -1, ffn: -1 }));
  let lmHead = -1;
  units.forEach((unit, number) => {
    if (unit.kind === 'lmHead') lmHead = number;
    else layers[unit.layer][unit.kind] = number;
  });
  return { mailbox, layers, lmHead, whole: -1, hotNeurons: placement.layers.map((l) => l.hotNeurons) };
}
