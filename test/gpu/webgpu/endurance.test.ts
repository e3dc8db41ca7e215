/** Steps make nothing on the device that was not there: buffers, bindings and kernels are counted. */
import { afterAll, describe, expect, it } from 'vitest';
import { gpuStepLayout, MODE_NUMBER, RequestWord, stepShapeOf } from '../../../src/engine/gpu-step.js';
import { Wanted } from '../../../src/engine/step.js';
import { GpuDevice } from '../../../src/gpu/webgpu/device.js';
import { HybridUnits } from '../../../src/gpu/webgpu/hybrid-units.js';
import { WholeModel } from '../../../src/gpu/webgpu/whole-model.js';
import { planUnits } from '../../../src/gpu/hot-ffn.js';
import { openPack } from '../../../src/pack/reader.js';
import { writeTinyFolder } from '../../helpers/tiny-models.js';
import { packOf, removePacks } from '../../engine/open.js';
import { sketchPlan } from '../../engine/plans.js';
import { reason } from './adapter.js';

afterAll(removePacks);

const T = 2;
const STEPS = 24;
/** Rows 1 to T in each of three modes: from then on nothing is new. */
const FIRST = 3 * T;

/** How often the device was asked for something that stays. */
function countMade(gpu: GpuDevice): () => Record<string, number> {
  const made: Record<string, number> = {};
  for (const what of ['createBuffer', 'createBindGroup', 'createComputePipelineAsync'] as const) {
    const create = gpu.raw[what].bind(gpu.raw) as (argument: unknown) => never;
    made[what] = 0;
    gpu.raw[what] = (argument: unknown) => (made[what]++, create(argument));
  }
  return () => ({ ...made, bytes: gpu.allocatedBytes });
}

describe.skipIf(reason !== null)(`endurance on WebGPU${reason ? ` (skipped: ${reason})` : ''}`, () => {
  it('a whole model: any rows, modes and cuts', async () => {
    const folder = writeTinyFolder();
    const pack = openPack(await packOf(folder, 'q4'));
    const gpu = await GpuDevice.open();
    const made = countMade(gpu);
    const options = {
      ...{ header: pack.header, fd: pack.fd, packPath: pack.path, plan: await sketchPlan(folder) },
      ...{ batchTokens: T, contextLength: 64, slots: 1, kvPages: 3, kvFormat: 'q8' as const },
    };
    const model = await WholeModel.load(gpu, options);
    const { request: at, answer } = gpuStepLayout(stepShapeOf(options));
    let before = made();
    for (let i = 0; i < STEPS; i++) {
      if (i === FIRST) before = made();
      const rows = 1 + (i % T);
      const request = new Int32Array(at.words);
      const floats = new Float32Array(request.buffer);
      request.set([rows, rows, i % 60], at.header + RequestWord.ROWS);
      request.fill(Object.values(MODE_NUMBER)[Math.floor(i / T) % 3], at.modes, at.gateCuts);
      floats.fill(i / 1000, at.gateCuts, at.token);
      for (let t = 0; t < rows; t++) {
        request[at.position + t] = t;
        request[at.output + t] = t;
        request[at.wanted + t] = i % 2 ? Wanted.GREEDY : Wanted.LOGITS | Wanted.HIDDEN;
      }
      request.set([0, 1], at.tables);
      await model.run(0, rows, floats, new Float32Array(answer.words));
    }
    expect(made()).toEqual(before);
    await gpu.close();
    pack.close();
  }, 120_000);

  it('units of a model, with any rows', async () => {
    const pack = openPack(await packOf(writeTinyFolder(), 'q4'));
    const gpu = await GpuDevice.open();
    const made = countMade(gpu);
    const layer = { qkv: true, o: true, hotNeurons: Uint32Array.of(1, 5, 9, 40) };
    const units = planUnits(pack.header, { weights: 'rows', lmHead: true, layers: [layer, layer] });
    const options = { header: pack.header, fd: pack.fd, packPath: pack.path, units, maxTokens: T };
    const hybrid = await HybridUnits.load(gpu, options);
    const before = made();
    for (let i = 0; i < STEPS; i++) {
      const { inputs, outputs } = units[i % units.length];
      const rows = 1 + (i % T);
      await hybrid.run(
        i % units.length,
        rows,
        new Float32Array(rows * inputs),
        new Float32Array(rows * outputs),
      );
    }
    expect(made()).toEqual(before);
    await gpu.close();
    pack.close();
  }, 120_000);
});
