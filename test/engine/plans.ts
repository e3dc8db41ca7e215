/** Plans whose predictors are known by construction. */
import type { FfnCuts, FfnPlan, LayerPlan } from '../../src/engine/ffn-plan.js';
import { rowBytes } from '../../src/kernels/layout.js';
import { openModel } from '../../src/model/open-model.js';

/**
 * Every layer's own gate as its predictor, with cuts that let most active neurons through and miss some (none below
 * the activation's threshold); every eleventh neuron is always a candidate, every seventh never.
 */
export async function sketchPlan(folder: string, cut = 0.2, never = 7): Promise<FfnPlan> {
  const source = await openModel(folder);
  const { layers, hiddenSize: d, intermediateSize: nFf } = source.config;
  const all = Array.from({ length: nFf }, (_, i) => i);
  const always = Uint32Array.from(all.filter((i) => i % 11 === 0));
  const scored = Uint32Array.from(all.filter((i) => i % 11 !== 0 && i % never !== 0));
  const stride = rowBytes('f32', d);
  const plans: LayerPlan[] = [];
  for (let l = 0; l < layers; l++) {
    const gate = await source.readRows(`layers.${l}.gate`, 0, nFf);
    const bias = source.tensors.has(`layers.${l}.gateBias`)
      ? await source.readRows(`layers.${l}.gateBias`, 0, 1)
      : new Float32Array(nFf);
    const data = new Uint8Array(scored.length * stride);
    scored.forEach((id, i) => {
      data.set(new Uint8Array(gate.slice(id * d, (id + 1) * d).buffer), i * stride);
    });
    plans.push({
      mode: 'predicted',
      always,
      scored,
      frequency: Float32Array.from(all, (i) => ((i * 37) % nFf) / nFf),
      predictor: {
        rank: d,
        fc1: null,
        b1: null,
        fc2: { format: 'f32', rows: scored.length, cols: d, stride, data },
        cut: Float32Array.from(scored, (id) => cut - bias[id]),
      },
    });
  }
  await source.close();
  return { layers: plans };
}

/**
 * The matrix itself as a sketch, so that scores are contributions up to the norm of the down column.
 * @param cut of the scores; below 0 every neuron is a candidate
 * @param most what up is reckoned with where the gate comes first
 */
export async function contributionPlan(
  folder: string,
  cuts: FfnCuts,
  cut: number,
  most = 1e3,
): Promise<FfnPlan> {
  const source = await openModel(folder);
  const { layers, hiddenSize: d, intermediateSize: nFf } = source.config;
  const { gated } = source.config.block.ffn;
  const stride = rowBytes('f32', d);
  const rows = async (name: `layers.${number}.${'gate' | 'up'}`) => {
    const values = await source.readRows(name, 0, nFf);
    const data = new Uint8Array(nFf * stride);
    for (let i = 0; i < nFf; i++)
      data.set(new Uint8Array(values.slice(i * d, (i + 1) * d).buffer), i * stride);
    return { format: 'f32' as const, rows: nFf, cols: d, stride, data };
  };
  const plan: FfnPlan = { layers: [] };
  for (let l = 0; l < layers; l++) {
    plan.layers.push({
      mode: 'predicted',
      always: new Uint32Array(0),
      scored: Uint32Array.from({ length: nFf }, (_, i) => i),
      frequency: Float32Array.from({ length: nFf }, (_, i) => ((i * 37) % nFf) / nFf),
      cuts,
      predictor: {
        rank: d,
        fc1: null,
        b1: null,
        fc2: await rows(`layers.${l}.${gated ? 'up' : 'gate'}`),
        contribution: !gated,
        reach: gated ? new Float32Array(nFf).fill(most) : null,
        cut: new Float32Array(nFf).fill(cut),
      },
    });
  }
  await source.close();
  return plan;
}
