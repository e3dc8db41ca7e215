/** All operators with a gradient. */
export * from './activations.js';
export * from './arithmetic.js';
export * from './linear.js';
export * from './norms.js';
export * from './pieces.js';
