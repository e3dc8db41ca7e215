/** A GGUF file in llama.cpp's CPU build that node-llama-cpp ships. */
import { getLlama, LlamaLogLevel } from 'node-llama-cpp';

export async function loadLlama(modelPath, threads) {
  const llama = await getLlama({
    gpu: false,
    build: 'never',
    maxThreads: threads,
    logLevel: LlamaLogLevel.error,
  });
  return llama.loadModel({ modelPath });
}
