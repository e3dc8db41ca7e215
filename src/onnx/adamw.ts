/**
 * AdamW with gradient clipping as a graph, the way PyTorch computes it:
 *
 *     g = sum of the gradient sums * share          g *= min(1, clip / (norm + 1e-6))
 *     m = b1 m + (1 - b1) g                         v = b2 v + (1 - b2) g^2
 *     w = w (1 - lr decay) - lr / c1 * m / (sqrt(v) / sqrt(c2) + eps)      c = 1 - b^step
 */
import { GraphBuilder, int } from './graph-builder.js';

export interface AdamWOptions {
  beta1: number;
  beta2: number;
  epsilon: number;
  weightDecay: number;
  /** Largest norm of all gradients together. */
  clip: number;
}

export interface AdamWTensor {
  name: string;
  shape: readonly number[];
  decays: boolean;
}

/** The scalars of one step. */
export function adamWScalars(
  { beta1, beta2 }: AdamWOptions,
  step: number,
  learningRate: number,
): { rate: number; stepSize: number; rootCorrection: number } {
  return {
    rate: learningRate,
    stepSize: learningRate / (1 - beta1 ** step),
    rootCorrection: 1 / Math.sqrt(1 - beta2 ** step),
  };
}

/**
 * Inputs per tensor: `<name>`, `m:<name>`, `v:<name>`, `g<i>:<name>` for each of `parts` gradient sums; scalars rate,
 * stepSize, rootCorrection and share []. Outputs: `new:<name>`, `new_m:<name>`, `new_v:<name>`; norm []: of the
 * gradients before clipping.
 */
export function adamWGraph(
  tensors: readonly AdamWTensor[],
  parts: number,
  options: AdamWOptions,
): Uint8Array {
  const g = new GraphBuilder('adamw');
  const number = (value: number): string => g.constant('float32', value);
  const [rate, stepSize, rootCorrection, share] = ['rate', 'stepSize', 'rootCorrection', 'share'].map(
    (name) => g.input(name, 'float32', []),
  );
  const one = number(1);
  const [b1, b2] = [number(options.beta1), number(options.beta2)];
  const [rest1, rest2] = [number(1 - options.beta1), number(1 - options.beta2)];
  const epsilon = number(options.epsilon);
  const kept = g.op('Sub', [one, g.op('Mul', [rate, number(options.weightDecay)])]);

  const gradients = tensors.map(({ name, shape }) => {
    const sums = Array.from({ length: parts }, (_, i) => g.input(`g${i}:${name}`, 'float32', shape));
    return g.op('Mul', [sums.reduce((a, b) => g.op('Add', [a, b])), share]);
  });
  const squares = gradients.map((d) => g.op('ReduceSumSquare', [d], { keepdims: int(0) }));
  const norm = g.op('Sqrt', [squares.reduce((a, b) => g.op('Add', [a, b]))], {}, 'norm');
  const wanted = g.op('Div', [number(options.clip), g.op('Add', [norm, number(1e-6)])]);
  const factor = g.op('Min', [one, wanted]);

  tensors.forEach(({ name, shape, decays }, i) => {
    const [w, m, v] = [name, `m:${name}`, `v:${name}`].map((input) => g.input(input, 'float32', shape));
    const d = g.op('Mul', [gradients[i], factor]);
    const newM = g.op('Add', [g.op('Mul', [m, b1]), g.op('Mul', [d, rest1])], {}, `new_m:${name}`);
    const newV = g.op(
      'Add',
      [g.op('Mul', [v, b2]), g.op('Mul', [g.op('Mul', [d, d]), rest2])],
      {},
      `new_v:${name}`,
    );
    const root = g.op('Add', [g.op('Mul', [g.op('Sqrt', [newV]), rootCorrection]), epsilon]);
    const step = g.op('Mul', [g.op('Div', [newM, root]), stepSize]);
    g.op('Sub', [decays ? g.op('Mul', [w, kept]) : w, step], {}, `new:${name}`);
    for (const output of [`new:${name}`, `new_m:${name}`, `new_v:${name}`])
      g.output(output, 'float32', shape);
  });
  g.output(norm, 'float32', []);
  return g.build();
}
