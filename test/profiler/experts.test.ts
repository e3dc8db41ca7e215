/** `profile` of mixtures: figures counted again from raw recordings, bytes, experts that few tokens meet, refusals. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { bytesPerToken } from '../../src/engine/bytes.js';
import { Engine, type LogitsResult } from '../../src/engine/engine.js';
import { createTokenizer } from '../../src/model/tokenizer.js';
import { packFor } from '../../src/pack/cache.js';
import { openPack } from '../../src/pack/reader.js';
import { readPredictor, type PredictorLayer } from '../../src/predictor/artifact.js';
import { unpackRows } from '../../src/predictor/rows.js';
import { readProfile } from '../../src/profiler/artifact.js';
import { findPlan } from '../../src/profiler/find-plan.js';
import { mergeProfiles } from '../../src/profiler/merge.js';
import { downNorms } from '../../src/profiler/pack-rows.js';
import { splitPassages } from '../../src/profiler/passages.js';
import { sizesOf } from '../../src/profiler/plan.js';
import { profile, profileHot, type ProfileResult } from '../../src/profiler/profile.js';
import { baseConfig, randomTensors, writeModel } from '../helpers/any-model.js';
import { ownCache } from '../helpers/own-cache.js';
import { random } from '../helpers/tiny-models.js';

const folder = ownCache('experts');
process.env.SOURCE_DATE_EPOCH = '1700000000';

const WINDOW = 32;
const EXPERTS = 4;
const ACTIVE = 2;
const SIZE = 48;
const D = 32;
const next = random(7);
const text = Array.from({ length: 6000 }, () => String.fromCharCode(97 + Math.floor(next() * 26))).join('');
const options = {
  texts: [{ name: 'letters.txt', text }],
  window: WINDOW,
  threads: 1,
  seed: 5,
  target: { recall: 0.97 },
};
const config = baseConfig('MixtralForCausalLM', {
  num_local_experts: EXPERTS,
  num_experts_per_tok: ACTIVE,
});
const model = writeModel(config);
let result: ProfileResult;
beforeAll(async () => {
  result = await profile(model, join(folder, 'out'), 'q8', options);
});

const openExact = async (): Promise<Engine> =>
  Engine.open(openPack(await packFor(model, 'q8')), { ffn: 'exact', threads: 1, contextLength: WINDOW });

describe('the profile of a mixture', () => {
  it('is read as it was written, the tokens of every expert too', () => {
    expect(readPredictor(result.artifacts.predictor)).toEqual(result.predictor);
    const stored = readProfile(result.artifacts.profile);
    expect(stored).toEqual(result.profile);
    for (const { routed } of stored.layers) {
      expect(routed).toHaveLength(EXPERTS);
      expect(routed!.reduce((a, b) => a + b, 0)).toBe(ACTIVE * stored.tokens);
    }
  });

  it('reports what a count over raw recordings gives', async () => {
    const engine = await openExact();
    try {
      const ids = createTokenizer(engine.pack.header.tokenizer).encode(text, { addSpecial: false });
      const { windows, chooseFrom, reportFrom } = splitPassages([ids], WINDOW, 65_536, 5);
      const traced = async (of: readonly (readonly number[])[]): Promise<LogitsResult[]> => {
        const traces: LogitsResult[] = [];
        for (const tokens of of) {
          traces.push(await engine.logits({ tokens, trace: { inputs: true, activations: true } }));
        }
        return traces;
      };
      const [training, report] = [await traced(windows.slice(0, chooseFrom)), await traced(windows.slice(reportFrom))]; // prettier-ignore
      for (const [l, layer] of result.predictor.layers.entries()) {
        const counted = countByHand(layer, l, report, downNorms(engine.pack, l));
        expect(counted.sparsity).toBeCloseTo(layer.heldOut.sparsity, 6);
        // Scores near a cut fall on the other side: ours are f64, the kernels' inputs are 8 bits.
        for (const figure of ['recall', 'weightedRecall', 'predictedSparsity'] as const) {
          expect(Math.abs(counted[figure] - layer.heldOut[figure]), figure).toBeLessThan(0.01);
        }
        const counts = new Uint32Array(EXPERTS * SIZE);
        for (const trace of training) eachActive(trace, l, (_, neuron) => counts[neuron]++);
        expect(result.profile.layers[l].counts).toEqual(counts);
      }
    } finally {
      await engine.close();
    }
  });

  it('is refused where it counts other experts than the model has', async () => {
    const pack = openPack(await packFor(model, 'q8'));
    pack.close();
    const { routed } = result.profile.layers[0];
    expect(sizesOf(pack.header, 0, routed).routed).toHaveLength(EXPERTS);
    expect(() => sizesOf(pack.header, 0, routed!.subarray(1))).toThrow(
      /tokens of 3 experts a layer, the model has 4/,
    );
  });

  it('holds for the run with the plan: the engine measures the same on the same text', () => {
    for (const [l, { heldOut }] of result.predictor.layers.entries()) {
      const measured = result.evaluation.layers[l];
      expect(measured.sparsity).toBeCloseTo(heldOut.sparsity, 2);
      if (measured.recall === null) continue;
      expect(measured.recall).toBeCloseTo(heldOut.recall, 2);
      expect(measured.predictedSparsity).toBeCloseTo(heldOut.predictedSparsity, 2);
    }
  });

  it('plans with the bytes that a token reads: of its experts and their candidates', async () => {
    const pack = openPack(await packFor(model, 'q8'));
    const plan = findPlan(pack, { predictor: result.artifacts.predictor })!;
    plan.layers.forEach((layer) => (layer.mode = 'predicted'));
    const engine = await Engine.open(pack, { plan, threads: 1, contextLength: WINDOW });
    try {
      const tokens = createTokenizer(pack.header.tokenizer).encode(text).slice(0, WINDOW);
      const { layers, experts } = await engine.logits({ tokens, trace: { activations: true } });
      const { gate, ffn } = engine.layout.layers[0];
      const bytes = bytesPerToken(engine.layout, layers, 10);
      let scored = 0;
      result.predictor.layers.forEach(({ predictor: { scoredIds } }, l) => {
        for (const e of experts!.ids.subarray(l * WINDOW * ACTIVE, (l + 1) * WINDOW * ACTIVE)) {
          scored += scoredIds.filter((id) => Math.floor(id / SIZE) === e).length / WINDOW;
        }
      });
      const row = result.predictor.layers[0].predictor.fc2.stride + 4;
      expect(bytes.predictor).toBeCloseTo(scored * row);
      expect(bytes.gate).toBeCloseTo(
        layers.reduce((sum, { candidates }) => sum + candidates * gate.stride, 0),
      );
      expect(bytes.upDown).toBeCloseTo(layers.reduce((sum, { gated }) => sum + gated * ffn.stride, 0));
      for (const { candidates } of layers) expect(candidates).toBeLessThan(ACTIVE * SIZE);
      const planned = result.predictor.layers.reduce((sum, layer) => sum + layer.bytes.predicted, 0);
      expect(Math.abs((bytes.predictor + bytes.gate + bytes.upDown) / planned - 1)).toBeLessThan(0.05);
    } finally {
      await engine.close();
    }
  });

  it('has the same bytes when it was stopped while recording and while fitting', async () => {
    const wanted = readFileSync(result.artifacts.predictor);
    for (const stage of ['record', 'fit']) {
      const abort = new AbortController();
      const to = join(folder, `stopped-${stage}`);
      const stopped = profile(model, to, 'q8', {
        ...options,
        signal: abort.signal,
        onProgress: (progress) => progress.stage === stage && abort.abort(),
      });
      await expect(stopped).rejects.toThrow(/stopped|aborted/);
      const { artifacts } = await profile(model, to, 'q8', options);
      expect(readFileSync(artifacts.predictor).equals(wanted), stage).toBe(true);
    }
  });

  it('counts experts too when only frequencies are wanted, and merges them', async () => {
    const { texts, window, threads, seed } = options;
    const { profile: hot } = await profileHot(model, join(folder, 'hot'), 'q8', {
      texts,
      window,
      threads,
      seed,
    });
    const [own] = hot.layers;
    expect(own.routed!.every((tokens, e) => tokens >= result.profile.layers[0].routed![e])).toBe(true);
    const merged = mergeProfiles([
      { path: 'a', profile: hot },
      { path: 'b', profile: hot },
    ]);
    expect(merged.layers[0].routed).toEqual(own.routed!.map((tokens) => 2 * tokens));
  });
});

/** Calls `visit(place of the activation, neuron in the layer's numbering)`. */
function eachActive(
  { activations, experts }: LogitsResult,
  l: number,
  visit: (at: number, neuron: number) => void,
): void {
  const met = ACTIVE * SIZE;
  for (let at = l * WINDOW * met; at < (l + 1) * WINDOW * met; at++) {
    if (activations![at] !== 0) visit(at, experts!.ids[Math.floor(at / SIZE)] * SIZE + (at % SIZE));
  }
}

/** Recall and the rest by plain loops over numbers, from the stored predictor. */
function countByHand(
  { predictor: p, threshold }: PredictorLayer,
  l: number,
  traces: readonly LogitsResult[],
  norms: Float32Array,
): PredictorLayer['heldOut'] {
  const fc2 = unpackRows(p.fc2);
  let [active, hit, weight, hitWeight, candidates] = [0, 0, 0, 0, 0];
  for (const trace of traces) {
    const { inputs, experts, activations } = trace;
    const found: Set<number>[] = [];
    for (let t = 0; t < WINDOW; t++) {
      const from = l * WINDOW + t;
      const chosen = experts!.ids.subarray(from * ACTIVE, (from + 1) * ACTIVE);
      const met = (id: number): boolean => chosen.includes(Math.floor(id / SIZE));
      const x = inputs!.subarray(from * D, (from + 1) * D);
      const candidate = new Set([...p.always].filter(met));
      p.scoredIds.forEach((id, i) => {
        const score = x.reduce((sum, v, c) => sum + v * fc2[i * D + c], 0);
        if (met(id) && score >= p.cut[i] + threshold * p.cutScale[i]) candidate.add(id);
      });
      candidates += candidate.size;
      found.push(candidate);
    }
    eachActive(trace, l, (at, neuron) => {
      const place = Math.floor(at / SIZE);
      const size = Math.abs(activations![at]) * experts!.weights[place] * norms[neuron];
      active++;
      weight += size;
      if (!found[Math.floor(place / ACTIVE) - l * WINDOW].has(neuron)) return;
      hit++;
      hitWeight += size;
    });
  }
  const decisions = traces.length * WINDOW * EXPERTS * SIZE;
  return {
    sparsity: 1 - active / decisions,
    predictedSparsity: 1 - candidates / decisions,
    recall: hit / active,
    weightedRecall: hitWeight / weight,
  };
}

describe('an expert that hardly any token meets', () => {
  it('has no predictor: all its neurons are candidates, and that is told', async () => {
    const one = { ...config, num_experts_per_tok: 1 };
    const tensors = randomTensors(one);
    // A logit of 0 wins where the three others are below it.
    for (const [name, { data }] of tensors) if (name.includes('moe.gate')) data.fill(0, 3 * D);
    const notes: string[] = [];
    const { predictor } = await profile(writeModel(one, tensors), join(folder, 'rare'), 'q8', {
      ...options,
      texts: [{ name: 'letters.txt', text: text.slice(0, 600) }],
      onNote: (note) => notes.push(note),
    });
    const few = predictor.layers.flatMap(({ predictor: p }, l) =>
      Array.from({ length: EXPERTS }, (_, e) => e)
        .filter((e) => p.always.filter((id) => Math.floor(id / SIZE) === e).length === SIZE)
        .map((e) => `${l}.${e}`),
    );
    expect(few).toContain('0.3');
    expect(few.length).toBeLessThan(2 * EXPERTS);
    expect(notes.join('\n')).toContain('Layer.expert (tokens): 0.3 (');
    for (const { mode, reason } of predictor.layers) {
      if (mode === 'predicted') expect(reason).toMatch(/no predictor for experts? .*3/);
    }
  });
});

describe('an expert that no token meets', () => {
  // A twin of the first expert's router row: of equal logits the first wins.
  const one = { ...config, num_experts_per_tok: 1 };
  const [last, rest] = [
    EXPERTS - 1,
    { ...options, texts: [{ name: 'letters.txt', text: text.slice(0, 2400) }] },
  ];
  const profiled = async (hidden_act: string, more: object): Promise<ProfileResult> => {
    const tensors = randomTensors({ ...one, hidden_act });
    for (const [name, { data }] of tensors) {
      if (name.includes('moe.gate')) data.copyWithin(last * D, 0, D);
    }
    const source = writeModel({ ...one, hidden_act }, tensors);
    const made = await profile(source, join(folder, hidden_act), 'q8', { ...rest, ...more });
    for (const { routed } of made.profile.layers) expect(routed![last]).toBe(0);
    return made;
  };
  const inLast = (ids: Uint32Array): number => ids.filter((id) => Math.floor(id / SIZE) === last).length;

  it('keeps all its neurons as candidates', async () => {
    const { predictor } = await profiled('relu', {});
    for (const { predictor: p } of predictor.layers)
      expect([inLast(p.always), inLast(p.scoredIds)]).toEqual([SIZE, 0]);
  });

  it('has its rows and cuts all the same where contributions are cut', async () => {
    const { predictor } = await profiled('silu', { target: undefined, sparsify: 0.02 });
    for (const { predictor: p } of predictor.layers) {
      expect(inLast(p.scoredIds)).toBe(SIZE);
      expect(p.cut.every(Number.isFinite) && p.cutScale.every(Number.isFinite)).toBe(true);
    }
  });
});

describe('profile of a mixture', () => {
  it.each([{ predictor: 'mlp' as const }, { predictor: 'lowrank' as const }, { rank: 32 }])(
    'refuses %o by name',
    async (asked) => {
      const work = profile(model, join(folder, 'refused'), 'q8', { ...options, ...asked });
      await expect(work).rejects.toMatchObject({ code: 'MODEL_UNSUPPORTED', message: /experts are predicted by sketches/ }); // prettier-ignore
    },
  );

  it('without zeros finds what can be left out of its experts', async () => {
    const silu = writeModel({ ...config, hidden_act: 'silu' });
    const { target: _, ...rest } = options;
    const { sparsified, predictor } = await profile(silu, join(folder, 'silu'), 'q8', {
      ...rest,
      sparsify: 0.02,
    });
    const [dense, gate, , predicted] = sparsified!.alternatives;
    expect(dense.skipped).toBeCloseTo(1 - ACTIVE / EXPERTS);
    for (const way of [gate, predicted]) {
      expect(way.skipped).toBeGreaterThan(dense.skipped);
      expect(way.ffnBytes).toBeLessThan(dense.ffnBytes);
    }
    for (const { predictor: p } of predictor.layers) {
      expect(p.kind).toBe('up');
      expect(p.scoredIds).toHaveLength(EXPERTS * SIZE);
    }
    const pack = openPack(await packFor(silu, 'q8'));
    pack.close();
    const [{ gate: rows }] = pack.header.layers;
    expect(dense.ffnBytes).toBe(2 * ACTIVE * SIZE * 3 * rows.stride);
  });
});
