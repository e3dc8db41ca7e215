/**
 * What a WebGPU device keeps: memory over a long text, and over many models opened and closed, on a tiny model.
 *
 *     npm run build && node tools/gpu-endurance.mjs [--model models/tales-4m-relu] [--tokens 2000] [--models 100]
 *         [--json FILE]
 *
 * Prints this process's resident memory (device memory too where the adapter is software) as it goes. Exit code 1
 * when it grew by more than GROWTH after the first tenth.
 */
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { fileURLToPath } from 'node:url';
import { join } from 'node:path';

const root = fileURLToPath(new URL('..', import.meta.url));
const dist = (path) => import(join(root, 'dist', path));
const { values } = parseArgs({
  options: {
    model: { type: 'string', default: join(root, 'models/tales-4m-relu') },
    tokens: { type: 'string', default: '2000' },
    models: { type: 'string', default: '100' },
    json: { type: 'string' },
  },
});
/** Share of the first figure by which a later one may be larger: allocators keep some. */
const GROWTH = 0.2;
const SETTINGS = { threads: 1, batchTokens: 8, contextLength: 256, slots: 2, ffn: 'exact' };

const { packFor } = await dist('pack/cache.js');
const { openPack } = await dist('pack/reader.js');
const { Engine } = await dist('engine/engine.js');
const { resolveOptions } = await dist('engine/options.js');
const { GREEDY } = await dist('engine/sampler.js');
const { GpuHost } = await dist('gpu/gpu-host.js');

const path = await packFor(values.model, 'q8', {});
const residentMiB = () => Math.round(process.memoryUsage().rss / 2 ** 20);

async function open() {
  const pack = openPack(path);
  const { batchTokens, contextLength, slots, kvPages, kvFormat } = resolveOptions(pack.header, SETTINGS);
  const placement = { whole: { contextLength, slots, kvPages, kvFormat } };
  const host = await GpuHost.start({ pack, provider: 'webgpu', placement, maxTokens: batchTokens, lanes: 1 });
  const { engine: units, device, bytes } = host;
  const gpu = { units, provider: 'webgpu', device, bytes, onFailure: 'error' };
  const engine = await Engine.open(pack, { ...SETTINGS, gpu });
  return { engine, bytes, close: async () => (await engine.close(), host.close()) };
}

const generate = (engine, maxTokens) =>
  engine.generate({ prompt: [1, 2, 3], maxTokens, sampling: GREEDY, stopIds: [], cachePrompt: false });

const report = { tokens: [], models: [] };
const tokens = Number(values.tokens);
if (tokens > 0) {
  const { engine, bytes, close } = await open();
  console.error(`device memory: ${(bytes / 2 ** 20).toFixed(1)} MiB`);
  for (let done = 0, next = tokens / 10; done < tokens;) {
    done += (await generate(engine, 200)).tokens.length;
    if (done < next) continue;
    next += tokens / 10;
    report.tokens.push({ done, residentMiB: residentMiB() });
    console.log(`${done} tokens: ${residentMiB()} MiB`);
  }
  await close();
}
const models = Number(values.models);
for (let i = 1; i <= models; i++) {
  const { engine, close } = await open();
  await generate(engine, 2);
  await close();
  if (i % Math.ceil(models / 10) > 0) continue;
  report.models.push({ opened: i, residentMiB: residentMiB() });
  console.log(`${i} models opened and closed: ${residentMiB()} MiB`);
}
if (values.json) writeFileSync(values.json, JSON.stringify(report, null, 2));
const grew = ([first, ...rest]) => rest.some(({ residentMiB: r }) => r > first.residentMiB * (1 + GROWTH));
process.exit([report.tokens, report.models].some((part) => part.length > 1 && grew(part)) ? 1 : 0);
