/** Trainings of tiny models, whole and interrupted. */
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeEach, describe, expect, it, vi } from 'vitest';
import { HybridError } from '../../src/errors.js';
import { HybridModel } from '../../src/index.js';
import { shiftOnly } from '../../src/sparsify/shift-only.js';
import { sparsify, type SparsifyOptions, type SparsifyResult } from '../../src/sparsify/sparsify.js';
import { writeTinyFolder, type TinyOptions } from '../helpers/tiny-models.js';

/** Each training makes graphs for its threads: seconds, on a busy machine many. */
vi.setConfig({ testTimeout: 300_000 });

const TEXT = 'the old king went to the deep forest and saw a small house there. '.repeat(60);
let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'sparsify-'));
  process.env.HYBRID_INFER_CACHE = join(folder, 'cache');
});

function model(options: TinyOptions = {}): string {
  return writeTinyFolder({ hiddenAct: 'silu', dtype: 'F16', layers: 1, ...options });
}

const OPTIONS: SparsifyOptions = {
  texts: [{ name: 'a.txt', text: TEXT, weight: 1 }],
  ...{ steps: 6, batchTokens: 64, window: 16, threads: 1, evaluateEvery: 3, learningRate: 1e-3 },
};
const run = (path: string, out: string, options: Partial<SparsifyOptions> = {}): Promise<SparsifyResult> =>
  sparsify(path, join(folder, out), { ...OPTIONS, ...options });
const weightsOf = (out: string): Buffer => readFileSync(join(folder, out, 'model.safetensors'));

/** Rejects with a typed error whose message and code fit. */
async function refused(work: Promise<unknown>, code: string, message: RegExp): Promise<void> {
  const error: unknown = await work.then(
    () => null,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(HybridError);
  expect((error as HybridError).message).toMatch(message);
  expect((error as HybridError).code).toBe(code);
}

describe('sparsify', () => {
  it('writes a folder that this runtime measures as it did', async () => {
    const { settings } = await run(model(), 'out');
    const [{ perplexity, threshold, sparsity }] = settings;
    const loaded = await HybridModel.load(join(folder, 'out'), { quant: 'f32', ffn: 'exact', threads: 1 });
    expect(loaded.config.activation.kind).toBe('fatrelu');
    expect(loaded.config.activation.threshold).toBeCloseTo(threshold, 6);
    await loaded.close();
    expect(perplexity).toBeGreaterThan(1);
    expect(sparsity).toBeGreaterThan(0);
  });

  it('ends with the same bytes on every run', async () => {
    const path = model();
    await run(path, 'a');
    await run(path, 'b');
    expect(weightsOf('a')).toEqual(weightsOf('b'));
    await run(path, 'c', { seed: 2 });
    expect(weightsOf('a')).not.toEqual(weightsOf('c'));
  });

  for (const distill of [0, 0.5]) {
    it(`ends with the same bytes after an interruption at any step, distilled ${distill}`, async () => {
      const path = model();
      const options = { distill, targetSparsity: distill > 0 ? 0.9 : null, threads: distill > 0 ? 2 : 1 };
      await run(path, 'whole', options);
      for (const at of distill > 0 ? [3] : [0, 5]) {
        const stop = new AbortController();
        const interrupted = run(path, `part-${at}`, {
          ...options,
          signal: stop.signal,
          onProgress: ({ stage, done }) => void (stage === 'prosparse' && done === at && stop.abort()),
        });
        await refused(interrupted, 'ABORTED', /stopped/);
        const steps: number[] = [];
        await run(path, `part-${at}`, {
          ...options,
          onProgress: ({ stage, done }) => void (stage === 'prosparse' && steps.push(done)),
        });
        expect(steps[0]).toBe(at);
        expect(weightsOf(`part-${at}`)).toEqual(weightsOf('whole'));
      }
    });
  }

  it('starts again from a damaged checkpoint', async () => {
    const path = model();
    await run(path, 'whole');
    const stop = new AbortController();
    const interrupted = run(path, 'part', {
      signal: stop.signal,
      onProgress: ({ stage, done }) => void (stage === 'prosparse' && done === 3 && stop.abort()),
    });
    await refused(interrupted, 'ABORTED', /stopped/);
    const { readdirSync } = await import('node:fs');
    const work = join(folder, 'cache', 'sparsify');
    const [name] = readdirSync(work).filter((entry) => !entry.endsWith('.lock'));
    const file = join(work, name, 'checkpoint');
    const bytes = readFileSync(file);
    bytes[bytes.length - 5] ^= 1;
    writeFileSync(file, bytes);
    await run(path, 'part');
    expect(weightsOf('part')).toEqual(weightsOf('whole'));
  });

  it('makes a model sparser than it was, the more the larger lambda', async () => {
    const path = model();
    const sparsityAt = async (fixedLambda: number): Promise<number> => {
      const options = { steps: 30, fixedLambda, settings: ['fixed'] as const, learningRate: 3e-3 };
      return (await run(path, `fixed-${fixedLambda}`, options)).settings[0].sparsity;
    };
    const [little, much] = [await sparsityAt(1e-4), await sparsityAt(0.5)];
    expect(much).toBeGreaterThan(little + 0.1);
  });

  it('changes nothing but the FFN when only the FFN is trained', async () => {
    const path = model();
    await run(path, 'ffn', { part: 'ffn', settings: ['vanilla'] });
    const before = await HybridModel.load(path, { quant: 'f32', ffn: 'dense', threads: 1 });
    const { openModel } = await import('../../src/model/open-model.js');
    const [a, b] = [await openModel(path), await openModel(join(folder, 'ffn'))];
    for (const [name, { shape }] of a.tensors) {
      const rows = shape.length === 1 ? 1 : shape[0];
      const [x, y] = [await a.readRows(name, 0, rows), await b.readRows(name, 0, rows)];
      const trained = /gate|up$|down|ffnNorm/.test(name);
      expect(
        x.every((v, i) => v === y[i]),
        name,
      ).toBe(!trained);
    }
    await Promise.all([a.close(), b.close(), before.close()]);
  });

  it('trains adapters and merges them', async () => {
    const path = model();
    const { settings } = await run(path, 'adapters', { adapterRank: 4, settings: ['vanilla'], steps: 10 });
    const [{ history, perplexity }] = settings;
    // Merged and rounded to half precision, the model is what it was with its adapters.
    expect(perplexity / history.at(-1)!.perplexity!).toBeCloseTo(1, 2);
    expect(history.at(-1)!.perplexity!).toBeLessThan(history[0].perplexity!);
  });

  it('distils: with all of the loss from the original, it stays near the original', async () => {
    const path = model();
    const { settings, original } = await run(path, 'kd', { distill: 1, settings: ['original'], steps: 4 });
    expect(settings[0].history.find(({ kl }) => kl !== null)!.kl).toBeLessThan(1e-4);
    expect(settings[0].perplexity / original.perplexity).toBeCloseTo(1, 1);
  });

  it('says with a bias what a shifted ReLU is', async () => {
    await run(model(), 'shifted', { settings: ['shifted'], steps: 1 });
    const config = JSON.parse(readFileSync(join(folder, 'shifted', 'config.json'), 'utf8')) as object;
    expect(config).toMatchObject({ hidden_act: 'relu', mlp_bias: true, architectures: ['LlamaForCausalLM'] });
    const header = weightsOf('shifted').subarray(8, 20_000).toString('latin1');
    expect(header).toContain('model.layers.0.mlp.gate_proj.bias');
  });

  it('weights several texts', async () => {
    const texts = [
      { name: 'a', text: TEXT, weight: 3 },
      { name: 'b', text: 'my brother had never been there before. '.repeat(80), weight: 1 },
    ];
    const { settings } = await run(model(), 'two', { texts, steps: 2 });
    expect(settings[0].steps).toBe(2);
  });
});

describe('sparsify refuses before the first step', () => {
  it('a model that is sparse already', () =>
    refused(run(model({ hiddenAct: 'relu' }), 'x'), 'MODEL_UNSUPPORTED', /sparse already/));

  it('a text that is too short', () =>
    refused(
      run(model(), 'x', { texts: [{ name: 'short.txt', text: 'too short', weight: 1 }] }),
      'USAGE',
      /short\.txt has \d tokens, expected at least 33/,
    ));

  it('a held-out text that is too short', () =>
    refused(run(model(), 'x', { heldOut: 'no' }), 'USAGE', /held-out text has/));

  it('a window longer than the context', () =>
    refused(run(model(), 'x', { window: 4096 }), 'USAGE', /context/));

  it('steps of less than a window', () =>
    refused(run(model(), 'x', { batchTokens: 15 }), 'USAGE', /less than one window of 16/));

  it('stages that end after the steps', () =>
    refused(run(model(), 'x', { stages: [{ lambda: 0, end: 99 }] }), 'USAGE', /end at step 99/));

  it('what does not fit into memory, saying what it needs', () =>
    refused(run(model(), 'x', { memoryBytes: 1e6 }), 'OUT_OF_MEMORY', /needs .* activations/));

  it('a folder that holds something else', async () => {
    writeFileSync(join(folder, 'notes.txt'), 'mine');
    await refused(sparsify(model(), folder, OPTIONS), 'USAGE', /not empty/);
  });
});

describe('a number that is none', () => {
  it('ends the training with setting and step, and keeps the last good checkpoint', async () => {
    const path = model();
    const broken = { learningRate: 1e9, settings: ['vanilla'] as const, steps: 40, warmup: 0 };
    await refused(run(path, 'nan', broken), 'NUMERIC', /setting vanilla, step \d+/);
    const { existsSync, readdirSync } = await import('node:fs');
    const work = join(folder, 'cache', 'sparsify');
    const [name] = readdirSync(work).filter((entry) => !entry.endsWith('.lock'));
    expect(existsSync(join(work, name, 'checkpoint'))).toBe(true);
    expect(existsSync(join(folder, 'nan'))).toBe(false);
  });
});

describe('shift alone', () => {
  const options = { texts: OPTIONS.texts, window: 32, threads: 1 };

  it('raises the threshold of a ReLU model as far as perplexity allows', async () => {
    const path = model({ hiddenAct: 'relu' });
    const found = await shiftOnly(path, join(folder, 'fat'), { ...options, maxIncrease: 0.01 });
    const { before, chosen, points } = found;
    expect(chosen.perplexity).toBeLessThanOrEqual(before.perplexity * 1.01);
    expect(chosen.sparsity).toBeGreaterThanOrEqual(before.sparsity);
    expect(points.map(({ threshold }) => threshold)).toEqual(
      [...points.map(({ threshold }) => threshold)].sort((a, b) => a - b),
    );
    const config = JSON.parse(readFileSync(join(folder, 'fat', 'config.json'), 'utf8')) as object;
    expect(config).toMatchObject({ hidden_act: 'fatrelu', model_type: 'sparsellama' });
  });

  it('needs a ReLU', () =>
    refused(shiftOnly(model(), join(folder, 'x'), options), 'MODEL_UNSUPPORTED', /needs a ReLU/));
});
