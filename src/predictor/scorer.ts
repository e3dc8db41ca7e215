/** Scores of a predictor by the engine's own kernels on the rows as they are stored: what a run will do. */
import { activationBytes, alignUp } from '../kernels/layout.js';
import type { ActivationKind, Ptr } from '../kernels/kernels.js';
import { instantiateKernels, selectKernels } from '../kernels/select.js';
import type { LayerPredictor, RowMatrix } from './types.js';

/** What scores: fc2 has a row for each neuron that is. */
export type Network = Pick<LayerPredictor, 'fc1' | 'b1' | 'fc2'> & {
  kind?: LayerPredictor['kind'];
  /** Kind `up`: fc2 holds rows of the gate itself then, and this is the sketch that meets them. */
  up?: { rows: RowMatrix; reach: Float32Array } | null;
};

/** @param gates rows of the gate, for kind `up` */
export const networkOf = (predictor: LayerPredictor, gates: RowMatrix | null): Network =>
  predictor.kind === 'up'
    ? { kind: 'up', fc1: null, b1: null, fc2: gates!, up: { rows: predictor.fc2, reach: predictor.reach! } }
    : predictor;

/** What contributions need of the layer beside the sketches: biases by row of fc2, null where there are none. */
export interface Biases {
  activation: ActivationKind;
  gate: Float32Array | null;
  up: Float32Array | null;
}

/** Tokens scored together. */
const TOKENS = 64;

export class Scorer {
  private readonly memory: WebAssembly.Memory;
  private readonly kernels: ReturnType<typeof instantiateKernels>;
  private readonly at: Record<
    'x' | 'xq' | 'fc1' | 'b1' | 'hidden' | 'hiddenQ' | 'fc2' | 'up' | 'scores' | 'ups',
    Ptr
  >;

  /** The network in an arena of its own. */
  constructor(
    private readonly network: Network,
    private readonly d: number,
    private readonly biases: Biases | null = null,
  ) {
    const { fc1, b1, fc2 } = network;
    const up = network.up?.rows ?? null;
    const rank = fc2.cols;
    let end = 64; // pointer 0 means "none"
    const place = (bytes: number): Ptr => {
      const at = end;
      end += alignUp(bytes, 64);
      return at;
    };
    this.at = {
      x: place(alignUp(d, 32) * 4),
      xq: place(TOKENS * activationBytes('q8', d)),
      fc1: place((fc1?.data.length ?? 0) + 64),
      b1: b1 ? place(rank * 4) : 0,
      hidden: place(TOKENS * alignUp(rank, 32) * 4),
      hiddenQ: place(TOKENS * activationBytes('q8', rank)),
      fc2: place(fc2.data.length + 64),
      up: place((up?.data.length ?? 0) + 64),
      scores: place(TOKENS * fc2.rows * 4),
      ups: up ? place(TOKENS * fc2.rows * 4) : 0,
    };
    const pages = Math.ceil(end / 65536);
    this.memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    this.kernels = instantiateKernels(selectKernels('auto'), this.memory);
    const bytes = new Uint8Array(this.memory.buffer);
    if (fc1) bytes.set(fc1.data, this.at.fc1);
    if (b1) new Float32Array(this.memory.buffer, this.at.b1, rank).set(b1);
    bytes.set(fc2.data, this.at.fc2);
    if (up) bytes.set(up.data, this.at.up);
  }

  /**
   * Calls `visit` with the scores of a few tokens at a time, f32 [count][rows of fc2], overwritten afterwards.
   * @param inputs f32 [tokens][d]
   */
  each(inputs: Float32Array, visit: (scores: Float32Array, begin: number, count: number) => void): void {
    const { d, at, memory } = this;
    const { rows } = this.network.fc2;
    const tokens = inputs.length / d;
    const x = new Float32Array(memory.buffer, at.x, d);
    const bytes = activationBytes('q8', d);
    for (let begin = 0; begin < tokens; begin += TOKENS) {
      const count = Math.min(TOKENS, tokens - begin);
      for (let t = 0; t < count; t++) {
        x.set(inputs.subarray((begin + t) * d, (begin + t + 1) * d));
        this.kernels.quantize(at.x, at.xq + t * bytes, d);
      }
      this.score(count);
      visit(new Float32Array(memory.buffer, at.scores, count * rows), begin, count);
    }
  }

  /** The quantised inputs of `count` tokens to scores. */
  private score(count: number): void {
    const { at, kernels } = this;
    const { fc1, b1, fc2 } = this.network;
    if (!fc1) this.multiply(fc2, at.fc2, at.xq, count, at.scores, fc2.rows);
    if (this.biases) this.contributions(count);
    if (!fc1) return;
    const width = alignUp(fc1.rows, 32);
    const bytes = activationBytes('q8', fc1.rows);
    this.multiply(fc1, at.fc1, at.xq, count, at.hidden, width);
    for (let t = 0; t < count; t++) {
      if (b1) kernels.biasRelu(at.hidden + t * width * 4, at.b1, fc1.rows);
      kernels.quantize(at.hidden + t * width * 4, at.hiddenQ + t * bytes, fc1.rows);
    }
    this.multiply(fc2, at.fc2, at.hiddenQ, count, at.scores, fc2.rows);
  }

  /** Products with rows of the gate to |sigma(gate)|, or to |sigma(gate) up|. */
  private contributions(count: number): void {
    const { at, kernels, memory, biases } = this;
    const { fc2, up } = this.network;
    if (up) this.multiply(up.rows, at.up, at.xq, count, at.ups, up.rows.rows);
    const add = (bias: Float32Array | null | undefined, to: Ptr): void => {
      if (!bias) return;
      const values = new Float32Array(memory.buffer, to, count * bias.length);
      for (let i = 0; i < values.length; i++) values[i] += bias[i % bias.length];
    };
    add(biases?.gate, at.scores);
    if (up) {
      add(biases?.up, at.ups);
      const values = new Float32Array(memory.buffer, at.ups, count * fc2.rows);
      const { reach } = up;
      for (let i = 0; i < values.length; i++) {
        values[i] = Math.min(Math.abs(values[i]), reach[i % reach.length]);
      }
    }
    kernels.contribution(biases!.activation, at.scores, up ? at.ups : 0, count * fc2.rows);
  }

  private multiply(m: RowMatrix, weights: Ptr, x: Ptr, count: number, out: Ptr, outStride: number): void {
    const { format, stride, rows, cols } = m;
    this.kernels.dot(
      format,
      weights,
      stride,
      rows,
      x,
      activationBytes('q8', cols),
      count,
      out,
      outStride,
      cols,
    );
  }
}
