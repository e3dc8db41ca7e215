/** Constrained decoding: JSON schemas to masks over a model's tokens. */
export { NodeFactory, type Node } from './grammar.js';
export { literal, textUntil, textWithout } from './machine.js';
export { TokenMasks, type Vocabulary } from './masks.js';
export { anyObject, compileSchema, finished, SchemaCompiler } from './schema.js';
export { ConstraintError, SchemaError } from './schema-error.js';
