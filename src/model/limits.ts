/**
 * Upper bounds on what a model may claim about itself, checked before any allocation. Each is a multiple of
 * the largest model in public use, and small enough that products of two stay far below 2^53.
 */
export const MAX_LAYERS = 1024; // the largest public dense models have 126
export const MAX_HIDDEN = 1 << 17;
export const MAX_INTERMEDIATE = 1 << 20;
export const MAX_HEADS = 4096;
export const MAX_HEAD_DIM = 1 << 14;
export const MAX_VOCAB = 1 << 22; // largest in use: 262,144
/** In one layer; the largest in use have 512. */
export const MAX_EXPERTS = 4096;
export const MAX_CONTEXT = 1 << 27;

/** Tensors of language models have one or two dimensions; the formats allow at most this many here. */
export const MAX_DIMENSIONS = 4;
/** The largest public mixtures: 60 layers of 512 experts with 3 tensors each. */
export const MAX_TENSORS = 1 << 17;
export const MAX_TENSOR_NAME_BYTES = 1024;

/** Text files of a model folder. */
export const MAX_CONFIG_BYTES = 4 << 20;
/** The largest tokenizers in use (256k vocabularies with their merges) take 35 MB. */
export const MAX_TOKENIZER_BYTES = 64 << 20;
export const MAX_TEMPLATE_BYTES = 1 << 20;
/**
 * Safetensors headers of real models stay below 2 MB; the format's own limit is 100 MB. Parsed JSON takes
 * several times its text, and a hostile header must not cost more than 64 MiB beyond itself.
 */
export const MAX_SAFETENSORS_HEADER = 8 << 20;
