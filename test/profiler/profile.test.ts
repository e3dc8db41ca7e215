/** `profile` on a tiny model: its figures counted again from raw recordings, its refusals, its plan in use. */
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { LogitsResult } from '../../src/engine/engine.js';
import { HybridModel } from '../../src/index.js';
import { acquireLock } from '../../src/io/lock.js';
import { openPack } from '../../src/pack/reader.js';
import { packFor } from '../../src/pack/cache.js';
import { readPredictor, type PredictorLayer } from '../../src/predictor/artifact.js';
import { unpackRows } from '../../src/predictor/rows.js';
import { readProfile } from '../../src/profiler/artifact.js';
import { findArtifacts, findPlan, predictorPath, profilePath } from '../../src/profiler/find-plan.js';
import { mergeProfileFiles } from '../../src/profiler/merge.js';
import { splitPassages } from '../../src/profiler/passages.js';
import { profile, profileHot, type ProfileResult } from '../../src/profiler/profile.js';
import { downNorms } from '../../src/profiler/pack-rows.js';
import { random, writeTinyFolder } from '../helpers/tiny-models.js';

const NFF = 96;
const D = 64;
const WINDOW = 32;
const folder = mkdtempSync(join(tmpdir(), 'hybrid-infer-profile-'));
const before = { cache: process.env.HYBRID_INFER_CACHE, epoch: process.env.SOURCE_DATE_EPOCH };
process.env.HYBRID_INFER_CACHE = join(folder, 'cache');
process.env.SOURCE_DATE_EPOCH = '1700000000';
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  for (const [name, value] of [
    ['HYBRID_INFER_CACHE', before.cache],
    ['SOURCE_DATE_EPOCH', before.epoch],
  ] as const) {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
});

const next = random(7);
const text = Array.from({ length: 6000 }, () => String.fromCharCode(97 + Math.floor(next() * 26))).join('');
const options = {
  texts: [{ name: 'letters.txt', text }],
  window: WINDOW,
  threads: 1,
  seed: 5,
  target: { recall: 0.97 },
};
let model: string;
let out: string;
let result: ProfileResult;
beforeAll(async () => {
  model = writeTinyFolder();
  out = join(folder, 'out');
  result = await profile(model, out, 'q8', options);
});

describe('profile', () => {
  it('writes both artifacts, and nothing else stays', () => {
    expect(readPredictor(result.artifacts.predictor)).toEqual(result.predictor);
    expect(readProfile(result.artifacts.profile)).toEqual(result.profile);
    expect(readdirSync(join(out, 'predictors'))).toHaveLength(1);
    expect(readdirSync(join(out, 'profiles'))).toHaveLength(1);
    expect(readdirSync(join(folder, 'cache', 'profiling'))).toEqual([]);
    expect(result.memory.peakBytes).toBeGreaterThan(1e6);
  });

  it('reaches the recall it was asked for, on text it did not train on', () => {
    const { layers, provenance } = result.predictor;
    expect(provenance.heldOutSamples).toBeGreaterThan(200);
    const mean = layers.reduce((sum, { heldOut }) => sum + heldOut.recall, 0) / layers.length;
    expect(mean).toBeGreaterThanOrEqual(0.97);
  });

  it('reports what a count over raw recordings gives', async () => {
    const loaded = await HybridModel.load(model, { quant: 'q8', ffn: 'exact', threads: 1 });
    try {
      const ids = loaded.tokenizer.encode(text, { addSpecial: false });
      const { windows, chooseFrom, reportFrom } = splitPassages([ids], WINDOW, 65_536, 5);
      // The figures are those of the windows that chose nothing.
      const seen = windows.slice(reportFrom);
      const traces: LogitsResult[] = [];
      for (const tokens of seen) {
        traces.push(await loaded.engine.logits({ tokens, trace: { inputs: true, activations: true } }));
      }
      const norms = [0, 1].map((l) => downNorms(loaded.engine.pack, l));
      const training: LogitsResult[] = [];
      for (const tokens of windows.slice(0, chooseFrom)) {
        training.push(await loaded.engine.logits({ tokens, trace: { activations: true } }));
      }
      result.predictor.layers.forEach((layer, l) => {
        const slice = (all: Float32Array, width: number): Float32Array =>
          all.subarray(l * WINDOW * width, (l + 1) * WINDOW * width);
        const counted = countByHand(
          layer,
          traces.map(({ inputs, activations }) => [slice(inputs!, D), slice(activations!, NFF)]),
          norms[l],
        );
        // Scores near a cut fall on the other side: ours are f64, the kernels' inputs are 8 bits.
        expect(counted.sparsity).toBeCloseTo(layer.heldOut.sparsity, 6);
        expect(Math.abs(counted.recall - layer.heldOut.recall)).toBeLessThan(0.01);
        expect(Math.abs(counted.weightedRecall - layer.heldOut.weightedRecall)).toBeLessThan(0.01);
        expect(Math.abs(counted.predictedSparsity - layer.heldOut.predictedSparsity)).toBeLessThan(0.01);
        // The profile counts activations of the training windows, exactly.
        const counts = new Uint32Array(NFF);
        for (const { activations } of training) {
          slice(activations!, NFF).forEach((x1, i) => x1 !== 0 && counts[i % NFF]++);
        }
        expect(result.profile.layers[l].counts).toEqual(counts);
      });
    } finally {
      await loaded.close();
    }
  });

  it('gives the same bytes again with the same seed', async () => {
    const again = await profile(model, join(folder, 'again'), 'q8', options);
    for (const kind of ['profile', 'predictor'] as const) {
      const [a, b] = [result, again].map(({ artifacts }) => readFileSync(artifacts[kind]));
      expect(a.equals(b), kind).toBe(true);
    }
  });

  it('lets the model write its own text', async () => {
    const own = await profile(model, join(folder, 'own'), 'q8', {
      ...options,
      texts: undefined,
      tokens: 1024,
    });
    expect(own.predictor.provenance.selfWritten).toBe(true);
    expect(own.predictor.provenance.tokens).toBe(1024);
  });

  it('stopped while layers are fitted ends at once, without a warning, and goes on later', async () => {
    const warnings: string[] = [];
    const listen = ({ name }: Error): unknown => warnings.push(name);
    process.on('warning', listen);
    const abort = new AbortController();
    const to = join(folder, 'stopped');
    const stopped = profile(model, to, 'q8', {
      ...options,
      signal: abort.signal,
      onProgress: ({ stage }) => stage === 'fit' && setTimeout(() => abort.abort(), 200),
    });
    const outcome = await stopped.then(
      () => 'finished',
      ({ code }: { code: string }) => code,
    );
    expect(outcome).toBe('ABORTED');
    const { artifacts } = await profile(model, to, 'q8', options);
    expect(readFileSync(artifacts.predictor).equals(readFileSync(result.artifacts.predictor))).toBe(true);
    process.off('warning', listen);
    expect(warnings).toEqual([]);
  });

  it('tells what it considered, what that took, and what it may use', () => {
    expect(result.attempts.every((of) => of.some(({ from }) => from === 'all'))).toBe(true);
    expect(Object.keys(result.fitSeconds)).toEqual(expect.arrayContaining(['read', 'moments', 'curve']));
    expect(result.memory.plannedBytes).toBeLessThanOrEqual(result.memory.limitBytes);
    expect(result.recordTokensPerSecond).toBeGreaterThan(0);
  });

  it('counts frequencies alone when only they are wanted', async () => {
    const { texts, window, threads, seed } = options;
    const hot = await profileHot(model, join(folder, 'hot'), 'q8', { texts, window, threads, seed });
    const stored = readProfile(hot.artifacts.profile);
    expect(stored).toEqual(hot.profile);
    expect(existsSync(join(folder, 'hot', 'predictors'))).toBe(false);
    // Every window counts, those that choose and report elsewhere too.
    expect(stored.tokens).toBe(result.predictor.provenance.tokens);
    stored.layers.forEach(({ counts }, l) => {
      expect(counts.every((count, i) => count >= result.profile.layers[l].counts[i])).toBe(true);
    });
  });

  it('chooses by perplexity when asked to', async () => {
    const careful = await profile(model, join(folder, 'ppl'), 'q8', {
      ...options,
      target: { maxPerplexityIncrease: 0.001 },
    });
    const { perplexity, densePerplexity } = careful.evaluation;
    const met = perplexity <= densePerplexity! * 1.0011;
    expect(met || careful.target.includes('not reached')).toBe(true);
  });
});

/** Recall and the rest by plain loops over numbers, from the stored predictor. */
function countByHand(
  { predictor: p, threshold }: PredictorLayer,
  recorded: Float32Array[][],
  norms: Float32Array,
): PredictorLayer['heldOut'] {
  const fc1 = p.fc1 && unpackRows(p.fc1);
  const fc2 = unpackRows(p.fc2);
  let [tokens, active, hit, weight, hitWeight, candidates] = [0, 0, 0, 0, 0, 0];
  for (const [inputs, activations] of recorded) {
    for (let t = 0; t < WINDOW; t++, tokens++) {
      const x = inputs.subarray(t * D, (t + 1) * D);
      const hidden = fc1
        ? Array.from({ length: p.rank }, (_, k) => {
            const h = dot(fc1, k, x) + (p.b1?.[k] ?? 0);
            return p.b1 ? Math.max(0, h) : h;
          })
        : x;
      const candidate = new Set<number>(p.always);
      p.scoredIds.forEach((id, i) => {
        if (dot(fc2, i, hidden) >= p.cut[i] + threshold * p.cutScale[i]) candidate.add(id);
      });
      candidates += candidate.size;
      for (let i = 0; i < NFF; i++) {
        const x1 = Math.abs(activations[t * NFF + i]);
        if (x1 === 0) continue;
        active++;
        weight += x1 * norms[i];
        if (!candidate.has(i)) continue;
        hit++;
        hitWeight += x1 * norms[i];
      }
    }
  }
  return {
    sparsity: 1 - active / (tokens * NFF),
    predictedSparsity: 1 - candidates / (tokens * NFF),
    recall: hit / active,
    weightedRecall: hitWeight / weight,
  };
}

function dot(rows: Float32Array, row: number, x: ArrayLike<number>): number {
  let sum = 0;
  for (let c = 0; c < x.length; c++) sum += rows[row * x.length + c] * x[c];
  return sum;
}

describe('the plan', () => {
  const withPack = async <T>(work: (pack: ReturnType<typeof openPack>) => T): Promise<T> => {
    const pack = openPack(await packFor(model, 'q8'));
    try {
      return work(pack);
    } finally {
      pack.close();
    }
  };
  const files = () => ({ profile: result.artifacts.profile, predictor: result.artifacts.predictor });

  it('is found by the paths given, and moves with shift and recall', async () => {
    await withPack((pack) => {
      const plain = findPlan(pack, files())!;
      const cuts = (options: object): number => {
        const layer = findPlan(pack, { ...files(), ...options })!.layers.find((of) => of.predictor);
        return layer!.predictor!.cut.reduce((a, b) => a + b, 0);
      };
      if (!plain.layers.some((layer) => layer.predictor)) return;
      expect(cuts({ thresholdShift: 1 })).toBeGreaterThan(cuts({}));
      expect(cuts({ thresholdShift: -1 })).toBeLessThan(cuts({}));
      expect(cuts({ recall: 0.999 })).toBeLessThan(cuts({ recall: 0.8 }));
    });
  });

  it('is found beside the pack', async () => {
    const beside = join(folder, 'beside');
    const file = join(beside, 'model.hpack');
    mkdirSync(join(beside, 'predictors'), { recursive: true });
    copyFileSync(await packFor(model, 'q8'), file);
    const pack = openPack(file);
    try {
      expect(findPlan(pack)).toBeNull();
      const path = predictorPath(beside, pack.header.name);
      copyFileSync(result.artifacts.predictor, path);
      expect(findArtifacts(pack).predictor!.path).toBe(path);
      writeFileSync(path, 'damaged');
      expect(() => findPlan(pack)).toThrow(expect.objectContaining({ code: 'ARTIFACT_INVALID' }) as Error);
    } finally {
      pack.close();
    }
  });

  it('of another model is refused when named, and passed over when found', async () => {
    const other = writeTinyFolder({ seed: 9 });
    const pack = openPack(await packFor(other, 'q8'));
    try {
      expect(() => findPlan(pack, { predictor: result.artifacts.predictor })).toThrow(
        expect.objectContaining({ code: 'ARTIFACT_MISMATCH' }) as Error,
      );
      expect(findPlan(pack)).toBeNull();
    } finally {
      pack.close();
    }
  });

  it('serves every quantisation of the model', async () => {
    const pack = openPack(await packFor(model, 'q4'));
    expect(findPlan(pack, files())!.layers).toHaveLength(2);
    pack.close();
  });
});

describe('profile refuses', () => {
  const quick = { ...options, texts: undefined };
  const refused = async (work: Promise<unknown>): Promise<{ code: string; message: string }> =>
    work.then(
      () => ({ code: 'none', message: '' }),
      (error) => error as { code: string; message: string },
    );

  it('SiLU, before anything is converted', async () => {
    const silu = writeTinyFolder({ hiddenAct: 'silu' });
    expect(await refused(profile(silu, join(folder, 'silu'), 'q8', quick))).toMatchObject({
      code: 'MODEL_UNSUPPORTED',
    });
    expect(existsSync(join(folder, 'silu'))).toBe(false);
  });

  it.each([
    ['an empty text', ' \n', 'is empty'],
    ['a text shorter than three windows', 'abc', 'three windows'],
  ])('%s, and leaves old artifacts alone', async (_, short, message) => {
    const old = readFileSync(result.artifacts.predictor);
    const error = await refused(
      profile(model, out, 'q8', { ...options, texts: [{ name: 't', text: short }] }),
    );
    expect(error.code).toBe('USAGE');
    expect(error.message).toContain(message);
    expect(readFileSync(result.artifacts.predictor).equals(old)).toBe(true);
  });

  it('artifacts that another process writes', async () => {
    const lock = acquireLock(`${result.artifacts.predictor}.lock`);
    const error = await refused(profile(model, out, 'q8', options));
    lock.release();
    expect(error.code).toBe('LOCKED');
  });

  it('a memory limit that cannot be kept, and says what is needed', async () => {
    const error = await refused(profile(model, out, 'q8', { ...options, memoryBytes: 1 << 20 }));
    expect(error.code).toBe('USAGE');
    expect(error.message).toMatch(/needs \d+ MiB/);
  });
});

describe('merged profiles', () => {
  it('add up', async () => {
    const path = join(folder, 'both.profile');
    const merged = await mergeProfileFiles([result.artifacts.profile, result.artifacts.profile], path);
    expect(merged.tokens).toBe(2 * result.profile.tokens);
    expect(merged.layers[1].counts[3]).toBe(2 * result.profile.layers[1].counts[3]);
    expect(merged.layers[0].sparsity).toBeCloseTo(result.profile.layers[0].sparsity);
    expect(readProfile(path)).toEqual(merged);
  });

  it('of different models are refused', async () => {
    const bytes = readFileSync(result.artifacts.profile);
    const other = await profile(writeTinyFolder({ seed: 9 }), join(folder, 'other'), 'q8', {
      ...options,
      tokens: 1024,
    });
    const path = join(folder, 'target.profile');
    writeFileSync(path, bytes);
    await expect(mergeProfileFiles([path, other.artifacts.profile], path)).rejects.toMatchObject({
      code: 'ARTIFACT_MISMATCH',
    });
    expect(readFileSync(path).equals(bytes)).toBe(true);
  });
});

describe('names', () => {
  it('of models become harmless file names', () => {
    expect(predictorPath('x', '../../etc/passwd')).toBe('x/predictors/-..-etc-passwd.predictor');
    expect(profilePath('x', 'org/model 7B')).toBe('x/profiles/org-model-7B.profile');
  });
});
