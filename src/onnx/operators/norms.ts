/** Normalisation over the last axis, with a learned scale (and shift). */
import { float, int } from '../graph-builder.js';
import type { Operator, Value } from '../tape.js';
import { add, mean, mul, sub, sumTo } from './arithmetic.js';

/**
 * y = x / sqrt(mean(x^2) + epsilon) * w.
 * With n = x r and r = 1 / sqrt(...): dw = sum dy n, dx = r (dn - n mean(dn n)) where dn = dy w.
 */
export const rmsNorm = (epsilon: number): Operator => ({
  name: 'RMS norm',
  shapes: ([x]) => [[...x], [...x.slice(0, -1), 1]],
  emit(g, inputs, [x]) {
    const outputs = ['rms', 'rms_r'].map((stem) => g.name(stem));
    // onnxruntime's own operator; its second output is r.
    g.node('SimplifiedLayerNormalization', inputs, outputs, {
      axis: int(x.length - 1),
      epsilon: float(epsilon),
    });
    return outputs;
  },
  gradient(t, { inputs: [x, w], outputs: [, r] }, dy) {
    const n = lazy(() => t.apply(mul, x, r));
    return [
      () => {
        const dn = t.apply(mul, dy, w);
        const along = t.apply(mean([-1], true), t.apply(mul, dn, n()));
        return t.apply(mul, r, t.apply(sub, dn, t.apply(mul, n(), along)));
      },
      () => sumTo(t, t.apply(mul, dy, n()), w.shape),
    ];
  },
});

/**
 * y = (x - mean) r w + b with r = 1 / sqrt(variance + epsilon).
 * dx = r (dn - mean(dn) - n mean(dn n)) where n = (x - mean) r, dn = dy w.
 */
export const layerNorm = (epsilon: number): Operator => ({
  name: 'LayerNormalization',
  shapes: ([x]) => [[...x], [...x.slice(0, -1), 1], [...x.slice(0, -1), 1]],
  emit(g, inputs, [x]) {
    const outputs = ['norm', 'norm_mean', 'norm_r'].map((stem) => g.name(stem));
    g.node('LayerNormalization', inputs, outputs, { axis: int(x.length - 1), epsilon: float(epsilon) });
    return outputs;
  },
  gradient(t, { inputs: [x, w, b], outputs: [, centre, r] }, dy) {
    const n = lazy(() => t.apply(mul, t.apply(sub, x, centre), r));
    return [
      () => {
        const dn = t.apply(mul, dy, w);
        const along = t.apply(mean([-1], true), t.apply(mul, dn, n()));
        const level = t.apply(mean([-1], true), dn);
        const spread = t.apply(add, level, t.apply(mul, n(), along));
        return t.apply(mul, r, t.apply(sub, dn, spread));
      },
      () => sumTo(t, t.apply(mul, dy, n()), w.shape),
      ...(b ? [() => sumTo(t, dy, b.shape)] : []),
    ];
  },
});

/** Written once, where it is first needed. */
function lazy(write: () => Value): () => Value {
  let made: Value | null = null;
  return () => (made ??= write());
}
