/**
 * A forward pass written from the description of a block alone (src/model/block.ts), in float64, with plain loops:
 * what the engine is compared with. It shares no code with src/engine. Checked against transformers' own logits
 * in test/model/architectures.test.ts.
 */
import { attentionScale, layerType, rotaryDims } from '../../src/model/block.js';
import type { ActivationCut } from '../../src/engine/ffn-plan.js';
import type { ActivationKind } from '../../src/kernels/kernels.js';
import { ropeTable } from '../../src/model/rope.js';
import type { LayerTensor, ModelConfig, TensorName, WeightSource } from '../../src/model/types.js';

type Vector = Float64Array;
type Rows = Vector[];

async function rows(source: WeightSource, name: TensorName): Promise<Rows> {
  const { shape } = source.tensors.get(name)!;
  const [n, cols] = shape.length === 1 ? [1, shape[0]] : shape;
  const flat = await source.readRows(name, 0, n);
  return Array.from({ length: n }, (_, r) => Float64Array.from(flat.subarray(r * cols, (r + 1) * cols)));
}

/** A vector that the model may not have. */
const vector = async (source: WeightSource, name: TensorName): Promise<Vector | null> =>
  source.tensors.has(name) ? (await rows(source, name))[0] : null;

// ---- the parts of the equations ----------------------------------------------------------------------------

const times = (w: Rows, x: Vector): Vector =>
  Float64Array.from(w, (row) => {
    let sum = 0;
    for (let i = 0; i < row.length; i++) sum += row[i] * x[i];
    return sum;
  });
const plus = (x: Vector, b: Vector | null): Vector => (b ? x.map((v, i) => v + b[i]) : x);
const scaled = (x: Vector, factor: number): Vector => x.map((v) => factor * v);

function rmsNorm(x: Vector, weight: Vector | null, epsilon: number): Vector {
  const mean = x.reduce((s, v) => s + v * v, 0) / x.length;
  return x.map((v, i) => (v / Math.sqrt(mean + epsilon)) * (weight ? weight[i] : 1));
}

function layerNorm(x: Vector, weight: Vector, bias: Vector | null, epsilon: number): Vector {
  const mean = x.reduce((s, v) => s + v, 0) / x.length;
  const variance = x.reduce((s, v) => s + (v - mean) ** 2, 0) / x.length;
  return plus(
    x.map((v, i) => ((v - mean) / Math.sqrt(variance + epsilon)) * weight[i]),
    bias,
  );
}

/** Softmax of the whole list. */
function softmax(values: readonly number[]): number[] {
  const top = Math.max(...values);
  const powers = values.map((v) => Math.exp(v - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((v) => v / sum);
}

/** The first dims of a head turn in pairs (i, i + dims / 2), by an angle that grows with the position. */
function rotate(head: Vector, position: number, frequencies: Vector, magnitude: number): Vector {
  const half = frequencies.length;
  const out = head.slice();
  for (let i = 0; i < half; i++) {
    const [cos, sin] = [Math.cos, Math.sin].map((f) => magnitude * f(position * frequencies[i]));
    out[i] = head[i] * cos - head[i + half] * sin;
    out[i + half] = head[i + half] * cos + head[i] * sin;
  }
  return out;
}

/** By Simpson's rule. */
function erf(x: number): number {
  const steps = 2000;
  const h = x / steps;
  let sum = 1 + Math.exp(-x * x);
  for (let i = 1; i < steps; i++) sum += (i % 2 ? 4 : 2) * Math.exp(-((i * h) ** 2));
  return (2 / Math.sqrt(Math.PI)) * (h / 3) * sum;
}

/** σ(g), with dReLU's up. */
function activate(kind: ActivationKind, threshold: number, g: number, u: number): number {
  if (kind === 'silu') return (g / (1 + Math.exp(-g))) * u;
  if (kind === 'gelu') return (g / 2) * (1 + erf(g / Math.SQRT2)) * u;
  if (kind === 'gelu_tanh')
    return (g / 2) * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (g + 0.044715 * g ** 3))) * u;
  if (kind === 'gelu_quick') return (g / (1 + Math.exp(-1.702 * g))) * u;
  if (kind === 'fatrelu') return g > threshold ? g * u : 0;
  if (kind === 'drelu') return Math.max(0, g) * Math.max(0, u);
  if (kind === 'relu2') return Math.max(0, g) ** 2 * u;
  return Math.max(0, g) * u;
}

// ---- the model ---------------------------------------------------------------------------------------------

/**
 * @param source a model, or packSource(pack)
 * @param roundFrequency of the rotation: for references whose program rounds them
 * @param cuts by layer: neurons below them count as zero
 * @param roundInput what q, k, v, o, gate, up and the head are multiplied with, of what they read
 * @returns logits [tokens][vocab] and the share of zero x1 per layer
 */
export async function plainForward(
  source: WeightSource,
  tokens: number[],
  roundFrequency: (f: number) => number = (f) => f,
  cuts: readonly ActivationCut[] | null = null,
  roundInput: (x: Float64Array) => Float64Array = (x) => x,
): Promise<{ logits: Float64Array[]; sparsity: number[] }> {
  const { config } = source;
  const { ends, block } = config;
  const embed = await rows(source, 'embed');
  const projectIn = ends.embeddingSize === null ? null : await rows(source, 'projectIn');
  const positions = ends.learnedPositions === null ? null : await rows(source, 'positions');
  let states: Rows = tokens.map((t, p) => {
    const x = scaled(projectIn ? times(projectIn, embed[t]) : embed[t], config.embeddingScale);
    return positions ? plus(x, positions[p + ends.learnedPositions!.offset]) : x;
  });

  const sparsity: number[] = [];
  for (let l = 0; l < config.layers; l++) {
    const layer = await Layer.load(source, l, roundFrequency);
    layer.cut = cuts?.[l] ?? null;
    layer.roundInput = roundInput;
    const { place } = block.norm;
    if (block.parallel) {
      const attention = layer.attention(states.map((x) => layer.norm('attn', x)));
      const ffn = layer.ffn(
        states.map((x) => layer.norm('ffn', x)),
        states,
      );
      states = states.map((x, t) => layer.add(layer.add(x, attention[t]), ffn[t]));
    } else {
      const before = states;
      const sublayer = (kind: 'attn' | 'ffn', f: (inputs: Rows) => Rows) => {
        const outputs = f(place === 'before' ? states.map((x) => layer.norm(kind, x)) : states);
        states = states.map((x, t) => {
          if (place === 'output') return layer.add(x, layer.norm(kind, outputs[t]));
          const sum = layer.add(x, outputs[t]);
          return place === 'sum' ? layer.norm(kind, sum) : sum;
        });
      };
      sublayer('attn', (inputs) => layer.attention(inputs));
      sublayer('ffn', (inputs) => layer.ffn(inputs, before));
    }
    sparsity.push(layer.zeros / (tokens.length * config.intermediateSize));
  }

  const outNorm = await vector(source, 'outNorm');
  const outNormBias = await vector(source, 'outNormBias');
  const projectOut = projectIn ? await rows(source, 'projectOut') : null;
  const lmHead = config.tiedEmbeddings ? embed : await rows(source, 'lmHead');
  const logits = states.map((x) => {
    let y = ends.finalNorm ? normOf(config, x, outNorm!, outNormBias) : x;
    if (projectOut) y = times(projectOut, y);
    return scaled(times(lmHead, roundInput(y)), config.logitScale);
  });
  return { logits, sparsity };
}

const normOf = (config: ModelConfig, x: Vector, weight: Vector, bias: Vector | null): Vector =>
  config.block.norm.kind === 'rms'
    ? plus(rmsNorm(x, weight, config.rmsEpsilon), bias)
    : layerNorm(x, weight, bias, config.rmsEpsilon);

// ---- one layer ---------------------------------------------------------------------------------------------

class Layer {
  /** x1 that were zero, inactive experts' included, over all tokens. */
  zeros = 0;
  cut: ActivationCut | null = null;
  roundInput = (x: Vector): Vector => x;

  private constructor(
    private readonly config: ModelConfig,
    private readonly index: number,
    private readonly matrices: ReadonlyMap<LayerTensor, Rows>,
    private readonly rope: ReturnType<typeof ropeTable>,
  ) {}

  static async load(
    source: WeightSource,
    index: number,
    roundFrequency: (f: number) => number,
  ): Promise<Layer> {
    const matrices = new Map<LayerTensor, Rows>();
    const prefix = `layers.${index}.`;
    for (const name of source.tensors.keys()) {
      if (name.startsWith(prefix))
        matrices.set(name.slice(prefix.length) as LayerTensor, await rows(source, name));
    }
    const rope = ropeTable(source.config);
    rope.frequencies = rope.frequencies.map(roundFrequency);
    return new Layer(source.config, index, matrices, rope);
  }

  private matrix(role: LayerTensor): Rows {
    const found = this.matrices.get(role);
    if (!found) throw new Error(`layer ${this.index} has no ${role}`);
    return found;
  }

  private vector(role: LayerTensor): Vector | null {
    return this.matrices.get(role)?.[0] ?? null;
  }

  /** x + what a sublayer says, MiniCPM's scale included. */
  add(x: Vector, y: Vector): Vector {
    return x.map((v, i) => v + this.config.residualScale * y[i]);
  }

  norm(kind: 'attn' | 'ffn', x: Vector): Vector {
    return normOf(this.config, x, this.vector(`${kind}Norm`)!, this.vector(`${kind}NormBias`));
  }

  /** @param inputs by position */
  attention(inputs: Rows): Rows {
    const { heads, kvHeads, headDim, block, rmsEpsilon } = this.config;
    const { rotates, window } = layerType(this.config, this.index);
    const cut = (x: Vector, count: number): Rows =>
      Array.from({ length: count }, (_, h) => x.slice(h * headDim, (h + 1) * headDim));
    const project = (role: 'q' | 'k', count: number, x: Vector, position: number): Rows => {
      const weight = this.vector(`${role}Norm`);
      let all = plus(times(this.matrix(role), this.roundInput(x)), this.vector(`${role}Bias`));
      if (block.attention.headNorm === 'all') all = rmsNorm(all, weight, rmsEpsilon);
      return cut(all, count).map((head) => {
        const normed = block.attention.headNorm === 'head' ? rmsNorm(head, weight, rmsEpsilon) : head;
        if (!rotates || rotaryDims(this.config) === 0) return normed;
        return rotate(normed, position, this.rope.frequencies, this.rope.magnitude);
      });
    };
    const qs = inputs.map((x, p) => project('q', heads, x, p));
    const ks = inputs.map((x, p) => project('k', kvHeads, x, p));
    const vs = inputs.map((x) =>
      cut(plus(times(this.matrix('v'), this.roundInput(x)), this.vector('vBias')), kvHeads),
    );

    return inputs.map((_, p) => {
      const first = window === null ? 0 : Math.max(0, p - window + 1);
      let joined: Vector = new Float64Array(heads * headDim);
      for (let h = 0; h < heads; h++) {
        const kv = Math.floor(h / (heads / kvHeads));
        const scores = Array.from(
          { length: p + 1 - first },
          (__, s) =>
            qs[p][h].reduce((sum, q, i) => sum + q * ks[first + s][kv][i], 0) * attentionScale(this.config),
        );
        softmax(scores).forEach((weight, s) => {
          for (let i = 0; i < headDim; i++) joined[h * headDim + i] += weight * vs[first + s][kv][i];
        });
      }
      if (block.attention.outputNorm) joined = rmsNorm(joined, this.vector('oNorm'), rmsEpsilon);
      return plus(times(this.matrix('o'), this.roundInput(joined)), this.vector('oBias'));
    });
  }

  /** @param inputs the FFN's  @param before the layer's own inputs, which some routers read */
  ffn(inputs: Rows, before: Rows): Rows {
    const { config } = this;
    const { gated, norm } = config.block.ffn;
    const { kind, threshold } = config.activation;
    return inputs.map((x, t) => {
      const g = plus(times(this.matrix('gate'), this.roundInput(x)), this.vector('gateBias'));
      const u = gated ? plus(times(this.matrix('up'), this.roundInput(x)), this.vector('upBias')) : null;
      const chosen = this.expertWeights(x, before[t]);
      const kept = (i: number, value: number): boolean => {
        if (!this.cut) return true;
        const norm = Math.hypot(...this.matrix('down').map((row) => row[i]));
        return (
          Math.abs(activate(kind, threshold, g[i], 1)) > this.cut.gate &&
          Math.abs(value) * norm >= this.cut.contribution
        );
      };
      let x1: Vector = g.map((gate, i) => {
        const value = activate(kind, threshold, gate, u ? u[i] : 1);
        return kept(i, value) ? chosen[i] * value : 0;
      });
      this.zeros += x1.filter((value) => value === 0).length;
      // The norm's weight is part of the down projection.
      if (norm) x1 = rmsNorm(x1, null, config.rmsEpsilon);
      return plus(times(this.matrix('down'), x1), this.vector('downBias'));
    });
  }

  /** By neuron: the weight of its expert, 0 when that was not chosen; 1 without experts. */
  private expertWeights(x: Vector, before: Vector): Vector {
    const { intermediateSize } = this.config;
    const { experts } = this.config.block.ffn;
    if (experts === null) return new Float64Array(intermediateSize).fill(1);
    const logits = [...times(this.matrix('router'), experts.routerInput === 'block' ? before : x)];
    const scores =
      experts.scoring === 'softmax' ? softmax(logits) : logits.map((v) => 1 / (1 + Math.exp(-v)));
    const order = logits.map((_, e) => e).sort((a, b) => logits[b] - logits[a]);
    const active = order.slice(0, experts.active);
    const sum = experts.normalized ? active.reduce((total, e) => total + scores[e], 0) : 1;
    const size = intermediateSize / experts.count;
    return Float64Array.from({ length: intermediateSize }, (_, i) => {
      const e = Math.floor(i / size);
      return active.includes(e) ? scores[e] / sum : 0;
    });
  }
}
