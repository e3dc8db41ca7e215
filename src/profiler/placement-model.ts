/**
 * What a placement on the GPU costs and gains. A token passes every layer's QKV projection, output projection and FFN, then the
 * lm_head; each may run on the GPU for its GPU time and one crossing:
 *
 *     QKV, O, lm_head   the lanes wait:         crossing + gpu         instead of cpu
 *     FFN               the lanes go on with the cold neurons meanwhile:
 *                       max(rest + the groups left on the CPU, crossing + groups * gpu)
 *
 * Hot neurons move in groups of 64, a layer's hottest first. Where the GPU computes them densely all groups of a
 * layer cost it the same; its sparse operators read the records of those that fire.
 */

/** QKV, O or lm_head. */
export interface UnitCost {
  /** On the device. */
  bytes: number;
  cpuSeconds: number;
  /** Without the crossing. */
  gpuSeconds: number;
}

export interface FfnCost {
  /** Device bytes of one group, and its time there: of every group, or of each where hot ones take longer. */
  groupBytes: number;
  groupGpuSeconds: number | readonly number[];
  /** CPU seconds a token that each group costs while it stays there, descending. */
  groupCpuSeconds: number[];
  /** CPU seconds that stay whatever moves: the predictor, neurons in no group. */
  restSeconds: number;
}

export interface PlacementProblem {
  layers: { qkv: UnitCost; o: UnitCost; ffn: FfnCost }[];
  lmHead: UnitCost;
  /** One posting of a unit to the GPU: copies, wake-ups, launch. */
  crossingSeconds: number;
  /** CPU seconds a token that nothing here changes: attention over the KV cache, norms, barriers. */
  otherSeconds: number;
}

/** `groups`: how many of the layer's hottest groups are on the GPU. */
export interface PlacementChoice {
  lmHead: boolean;
  layers: { qkv: boolean; o: boolean; groups: number }[];
}

// ---- the model: what a choice costs ------------------------------------------------------------------

export function choiceBytes(problem: PlacementProblem, choice: PlacementChoice): number {
  let bytes = choice.lmHead ? problem.lmHead.bytes : 0;
  choice.layers.forEach(({ qkv, o, groups }, l) => {
    const layer = problem.layers[l];
    bytes += (qkv ? layer.qkv.bytes : 0) + (o ? layer.o.bytes : 0) + groups * layer.ffn.groupBytes;
  });
  return bytes;
}

/** Seconds a token. */
export function choiceSeconds(problem: PlacementProblem, choice: PlacementChoice): number {
  const { crossingSeconds } = problem;
  const unit = (cost: UnitCost, onGpu: boolean) =>
    onGpu ? crossingSeconds + cost.gpuSeconds : cost.cpuSeconds;
  let seconds = problem.otherSeconds + unit(problem.lmHead, choice.lmHead);
  choice.layers.forEach(({ qkv, o, groups }, l) => {
    const layer = problem.layers[l];
    seconds += unit(layer.qkv, qkv) + unit(layer.o, o) + ffnSeconds(layer.ffn, groups, crossingSeconds);
  });
  return seconds;
}

export function ffnSeconds(ffn: FfnCost, groups: number, crossingSeconds: number): number {
  let cold = ffn.restSeconds;
  for (let k = groups; k < ffn.groupCpuSeconds.length; k++) cold += ffn.groupCpuSeconds[k];
  if (groups === 0) return cold;
  const each = ffn.groupGpuSeconds;
  const hot = typeof each === 'number' ? groups * each : each.slice(0, groups).reduce((a, b) => a + b, 0);
  return Math.max(cold, crossingSeconds + hot);
}

export const nothingPlaced = (problem: PlacementProblem): PlacementChoice => ({
  lmHead: false,
  layers: problem.layers.map(() => ({ qkv: false, o: false, groups: 0 })),
});
