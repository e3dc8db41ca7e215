/* global performance */
/** hybrid-infer as one side of the comparison: loads a pack once, then runs the FFN mode it is asked for. */
import { decodeSpeed, serve } from './peer-protocol.mjs';

const dist = new URL('../../dist/', import.meta.url);
const { Engine } = await import(new URL('engine/engine.js', dist));
const { GREEDY } = await import(new URL('engine/sampler.js', dist));
const { openPack } = await import(new URL('pack/reader.js', dist));
const { findPlan } = await import(new URL('profiler/find-plan.js', dist));

// profiles/ and predictors/ are found beside the pack.
const [packPath, threads, contextLength, slots, kernels] = process.argv.slice(2);
const pack = openPack(packPath);
const plan = findPlan(pack);
const engine = await Engine.open(pack, {
  threads: Number(threads),
  contextLength: Number(contextLength),
  slots: Number(slots),
  kernels,
  plan,
});
const planned = engine.modes;
const { vocabSize } = pack.header.config;

serve(`hybrid-infer ${engine.kernelsName}`, async ({ prompt, generate, ffn, sequences = 1 }) => {
  await engine.setModes(planned.map((mode) => (ffn === 'predicted' ? mode : ffn)));
  const runs = await Promise.all(
    Array.from({ length: sequences }, async (_, s) => {
      const at = [];
      const run = await engine.generate({
        prompt: Array.from({ length: prompt }, (_, i) => (i * 977 + 3 + s) % vocabSize),
        maxTokens: generate + 1,
        sampling: GREEDY,
        cachePrompt: false,
        onTokens: (tokens) => void at.push(...tokens.map(() => performance.now())),
      });
      return { at, stats: run.stats };
    }),
  );
  const { promptTokensPerSecond, bytesPerToken } = runs[0].stats;
  return {
    promptTokensPerSecond: sequences === 1 ? promptTokensPerSecond : null,
    decodeTokensPerSecond: decodeSpeed(runs.map((run) => run.at)),
    bytesPerToken: sequences === 1 ? bytesPerToken : undefined,
  };
});
