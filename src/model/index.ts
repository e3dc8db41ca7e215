/** What other rooms use of model/. */
export { ARCHITECTURES } from './architectures.js';
export { ChatTemplate, type ChatMessage } from './chat.js';
export { generationDefaults, type GenerationDefaults } from './generation-defaults.js';
export { openModel } from './open-model.js';
export { createTokenizer, type StreamDecoder, type Tokenizer } from './tokenizer.js';
