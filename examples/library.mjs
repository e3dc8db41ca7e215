/** The library: load a model, read its text piece by piece, look at what was skipped. `node examples/library.mjs` */
import { fileURLToPath } from 'node:url';
import { HybridModel } from 'hybrid-infer';

const demo = new URL('models/tales-4m-relu', import.meta.resolve('hybrid-infer/package.json'));
const model = await HybridModel.load(fileURLToPath(demo));
const generation = model.generate('Once upon a time', { maxTokens: 40, seed: 7 });
for await (const piece of generation) process.stdout.write(piece);
const { stats } = await generation;
console.log(`\n\nFFN ${stats.ffnMode}: ${(100 * stats.sparsity).toFixed(1)} % of the neurons were zero`);
await model.close();
