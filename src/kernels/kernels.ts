/**
 * The kernel interface: everything the engine does inside its inner loops. Three implementations
 * (`reference`, `wasm`, `native`) pass one conformance suite; the forward pass in engine/ is written once
 * against this interface. table.ts declares the kernels.
 *
 * A Kernels object is bound to one arena (a shared WebAssembly.Memory). Every `Ptr` is a byte offset into
 * that arena. Pointers to weights, activations and f32 vectors are multiples of 16 unless a line says
 * otherwise. Nothing here allocates.
 *
 * Within one backend (and variant of it) a result has the same bits whatever else its call computes: a row and
 * a token give the same product in `dot` with any number of rows and tokens and in `dotLists` with any lists; a
 * token's `sumLists` is that of a call for it alone; a head's `attention` is that of a group of one. So a
 * request's tokens do not depend on what runs beside it.
 */
import type { KernelFunctions } from './table.js';

/** Byte offset into the arena; 0 stands for "none" where a pointer is optional. */
export type Ptr = number;

/**
 * sigma of the FFN: `relu` max(g,0); `fatrelu` g if g > threshold else 0; `drelu` relu(gate)*relu(up);
 * `relu2` max(g,0)^2. The smooth ones have no zeros of their own: `silu` g*sigmoid(g); `gelu` g*Phi(g);
 * `gelu_tanh` its approximation g*sigmoid(2 sqrt(2/pi) (g + 0.044715 g^3)); `gelu_quick` g*sigmoid(1.702 g).
 */
export type ActivationKind =
  'relu' | 'fatrelu' | 'drelu' | 'relu2' | 'silu' | 'gelu' | 'gelu_tanh' | 'gelu_quick';
export const ACTIVATION_KINDS: readonly ActivationKind[] = [
  'relu',
  'fatrelu',
  'drelu',
  'relu2',
  'silu',
  'gelu',
  'gelu_tanh',
  'gelu_quick',
];

/** No zeros: a neuron is skipped only where a cut says that it is small (engine/ffn-plan.ts). */
export const isSmooth = (kind: ActivationKind): boolean =>
  kind === 'silu' || kind === 'gelu' || kind === 'gelu_tanh' || kind === 'gelu_quick';

/** A KV row: [headDim] f32, or [headDim] i8 with one f32 scale beside them. */
export type KvFormat = 'f32' | 'q8';
export const KV_FORMATS: readonly KvFormat[] = ['f32', 'q8'];

export interface Kernels extends KernelFunctions {
  /** What users see in reports, such as `native (avx512-vnni)` or `wasm (relaxed-simd)`. */
  readonly name: string;
}

export type KernelBackend = 'reference' | 'wasm' | 'native';
