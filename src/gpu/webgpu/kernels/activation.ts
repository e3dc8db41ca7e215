/**
 * The FFN's activations in WGSL:
 *
 *     fn sigma(g: f32, threshold: f32) -> f32
 *     fn passes(value: f32, threshold: f32) -> bool       does the neuron go on, value = sigma(g)
 *
 * NaN passes and stays: WGSL lets a compiler assume that there is none, so it is looked for in the bits.
 */
import { isSmooth, type ActivationKind } from '../../../kernels/kernels.js';

/** fn is_nan(value: f32) -> bool */
export const IS_NAN = `
fn is_nan(value: f32) -> bool { return (bitcast<u32>(value) & 0x7fffffffu) > 0x7f800000u; }`;

/** Beyond it exp(-x) would be infinite; the quotient is nothing already. */
const MOST = '87.0';

/**
 * gelu: g Phi(g) = max(g, 0) - |g| / 2 erfc(|g| / sqrt 2); erfc by Abramowitz and Stegun 7.1.26, absolute error
 * 1.5e-7, as in the other kernels.
 */
const SIGMA: Record<ActivationKind, string> = {
  relu: 'select(g, 0.0, g <= 0.0)',
  drelu: 'select(g, 0.0, g <= 0.0)',
  fatrelu: 'select(g, 0.0, g <= threshold)',
  relu2: 'select(g * g, 0.0, g <= 0.0)',
  silu: `g / (1.0 + exp(min(-g, ${MOST})))`,
  gelu: 'max(g, 0.0) - 0.5 * abs(g) * erfc(abs(g))',
  gelu_tanh: `g / (1.0 + exp(min(-1.5957691216 * (g + 0.044715 * g * g * g), ${MOST})))`,
  gelu_quick: `g / (1.0 + exp(min(-1.702 * g, ${MOST})))`,
};

/** erfc(size / sqrt 2) for size >= 0. */
const ERFC = `
fn erfc(size: f32) -> f32 {
  let t = 1.0 / (1.0 + 0.3275911 * 0.70710678 * size);
  let p = fma(fma(fma(fma(1.061405429, t, -1.453152027), t, 1.421413741), t, -0.284496736), t, 0.254829592);
  return p * t * exp(max(-0.5 * size * size, -${MOST}));
}`;

export function activationText(kind: ActivationKind): string {
  return `${IS_NAN}${kind === 'gelu' ? ERFC : ''}
fn sigma(g: f32, threshold: f32) -> f32 {
  if (is_nan(g)) { return g; }
  return ${SIGMA[kind]};
}
fn passes(value: f32, threshold: f32) -> bool {
  return is_nan(value) || ${isSmooth(kind) ? 'abs(value) > threshold' : 'value != 0.0'};
}`;
}
