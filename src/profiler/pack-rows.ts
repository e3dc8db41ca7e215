/** Weights of a pack as numbers: what predictors are fitted to. */
import type { Pack, PackSection } from '../pack/types.js';
import { readSync } from 'node:fs';
import { PackError } from '../errors.js';
import { paddedCols, rowBytes } from '../kernels/layout.js';
import { instantiateKernels, selectKernels } from '../kernels/select.js';

/** Rows decoded at a time. */
const BLOCK_ROWS = 256;
const WASM_PAGE = 65536;
/** Pointer 0 means "none" to the kernels. */
const FIRST_BYTE = 64;

/** Neurons [begin, end) of a layer. */
export interface NeuronRange {
  begin: number;
  end: number;
}

/** W_gate of these neurons, f32 [neurons][d], as the engine computes with it. @param neurons default: all */
export function gateRows(pack: Pack, layer: number, neurons?: NeuronRange): Float32Array {
  const { gate } = pack.header.layers[layer];
  return rowsOf(pack, gate, gate.cols, neurons);
}

/** W_up of these neurons, f32 [neurons][d]; null in a model without a gate. */
export function upRows(pack: Pack, layer: number, neurons?: NeuronRange): Float32Array | null {
  const { hiddenSize: d, block } = pack.header.config;
  return block.ffn.gated ? rowsOf(pack, pack.header.layers[layer].ffn, d, neurons) : null;
}

/** The first `cols` values of each row. */
function rowsOf(pack: Pack, section: PackSection, cols: number, neurons?: NeuronRange): Float32Array {
  const { begin, end } = neurons ?? { begin: 0, end: section.rows };
  const out = new Float32Array((end - begin) * cols);
  eachRow(pack, section, 0, cols, (row, values) => out.set(values, (row - begin) * cols), begin, end);
  return out;
}

/** A layer's bias by neuron, f32 [nFf]; null where there is none. */
export function neuronBias(pack: Pack, section: PackSection | null): Float32Array | null {
  if (!section) return null;
  const bias = new Float32Array(section.cols);
  fill(pack, new Uint8Array(bias.buffer), section.offset);
  return bias;
}

/** What W_gate x must exceed for a neuron to be active: the activation's threshold less the bias of the gate. */
export function gateThresholds(pack: Pack, layer: number): Float32Array | number {
  const { gateBias } = pack.header.layers[layer];
  const { threshold } = pack.header.config.activation;
  return neuronBias(pack, gateBias)?.map((b) => threshold - b) ?? threshold;
}

/** ||W_down[:, i]|| of every neuron, f32 [nFf]. */
export function downNorms(pack: Pack, layer: number): Float32Array {
  const { ffn } = pack.header.layers[layer];
  const d = pack.header.config.hiddenSize;
  const out = new Float32Array(ffn.rows);
  const { gated } = pack.header.config.block.ffn;
  eachRow(pack, ffn, gated ? rowBytes(ffn.format, d) : 0, d, (row, values) => {
    let sum = 0;
    for (const v of values) sum += v * v;
    out[row] = Math.sqrt(sum);
  });
  return out;
}

/** Decodes the row at `inside` of the section's records [first, end). */
function eachRow(
  pack: Pack,
  section: PackSection,
  inside: number,
  cols: number,
  visit: (row: number, values: Float32Array) => void,
  first = 0,
  end = section.rows,
): void {
  const { format, stride } = section;
  const decoded = paddedCols(format, cols) * 4;
  const bytes = FIRST_BYTE + BLOCK_ROWS * stride + decoded + 64;
  const pages = Math.ceil(bytes / WASM_PAGE);
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
  const kernels = instantiateKernels(selectKernels('auto'), memory);
  const at = (FIRST_BYTE + BLOCK_ROWS * stride + 63) & ~63;
  const values = new Float32Array(memory.buffer, at, cols);
  // A SharedArrayBuffer is no target for readSync everywhere: read beside it, then copy.
  const block = Buffer.alloc(BLOCK_ROWS * stride);
  for (let begin = first; begin < end; begin += BLOCK_ROWS) {
    const count = Math.min(BLOCK_ROWS, end - begin);
    fill(pack, block.subarray(0, count * stride), section.offset + begin * stride);
    new Uint8Array(memory.buffer, FIRST_BYTE, count * stride).set(block.subarray(0, count * stride));
    for (let r = 0; r < count; r++) {
      kernels.dequantizeRow(format, FIRST_BYTE + r * stride + inside, at, cols);
      visit(begin + r, values);
    }
  }
}

function fill(pack: Pack, into: Uint8Array, position: number): void {
  let done = 0;
  while (done < into.length) {
    const n = readSync(pack.fd, into, done, into.length - done, position + done);
    if (n === 0)
      throw new PackError('PACK_INVALID', `${pack.path}: the file ended at ${position + done} while in use`);
    done += n;
  }
}
