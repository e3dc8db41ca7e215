/** Five steps of AdamW against what PyTorch computed (reference/training). */
import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openModel } from '../../src/model/open-model.js';
import type { WeightSource } from '../../src/model/types.js';
import type { Batch } from '../../src/sparsify/model-graph.js';
import { parametersOf, type Parameter } from '../../src/sparsify/parameters.js';
import { readWeights } from '../../src/sparsify/read-weights.js';
import { fileName } from '../../src/sparsify/write-model.js';
import { Trainer } from '../../src/sparsify/trainer.js';
import type { Tokens } from '../../src/sparsify/lanes.js';
import { gatesNearZero, type Gate } from './gates-near-zero.js';

const SHARED = resolve('../shared');
const MODEL = join(SHARED, 'models/tales-4m-silu');
const REFERENCE = join(SHARED, 'reference/training/training-steps.json');

interface Step {
  ce: number;
  l1: number;
  loss: number;
  totalGradNorm: number;
  gradNorm?: Record<string, number>;
  gradFirst8?: Record<string, number[]>;
}
interface Reference {
  batches: number[][][];
  cases: { activation: 'silu' | 'relu'; lam: number; steps: Step[]; changeNorm: Record<string, number> }[];
}

const TOLERANCE = 1e-4;
/**
 * The gradient of a ReLU jumps at zero. In the third case the gate of layer 1, neuron 670 at token 18 of the second
 * step is 4e-7, while the first step's rounding alone moves gates by up to 3e-5 (AdamW's first step divides each
 * gradient by its own size, so it makes the rounding errors of tiny gradients large): which side it lies on is the
 * order of a sum. On this side gradient norms differ from PyTorch's by up to 2.5e-4 in the later steps, on the other
 * side by 3e-7. So each of the gates nearest zero is put on the other side by moving one weight of the start, by
 * less than the half precision file rounds it, and one of these runs must be PyTorch's in everything; the run from
 * the file's own weights must have PyTorch's losses and first gradients, and its later norms within 1e-3.
 */
const GATES = 3;
const FILE_ROUNDING = 2 ** -11;
const JUMP = 1e-3;
const LEARNING_RATE = 3e-4;

const available = existsSync(MODEL) && existsSync(REFERENCE);
if (!available) console.warn('training steps: ../shared is not there, skipped');

/** Largest relative difference, over all values given with a name. */
class Worst {
  value = 0;
  where = '';
  add(name: string, found: number, wanted: number, scale = Math.abs(wanted)): void {
    const error = Math.abs(found - wanted) / Math.max(scale, 1e-12);
    if (error > this.value || Number.isNaN(error)) {
      this.value = error;
      this.where = `${name}: ${found}, PyTorch ${wanted}`;
    }
  }
}

/** Losses of all steps and the first step's gradients; and what follows from the gradients of later steps. */
class Comparison {
  readonly before = new Worst();
  readonly after = new Worst();
  constructor(readonly start: Float32Array) {}
  toString(): string {
    const parts = [this.before, this.after].map(({ value, where }) => `${value.toExponential(1)} (${where})`);
    return `losses and first gradients ${parts[0]}, later norms and changes ${parts[1]}`;
  }
}

const norm = (values: Float32Array): number => Math.sqrt(values.reduce((sum, v) => sum + v * v, 0));

describe.skipIf(!available)('five steps of AdamW', () => {
  let source: WeightSource;
  let reference: Reference;
  let parameters: Parameter[];
  beforeAll(async () => {
    source = await openModel(MODEL);
    parameters = parametersOf(source.config, { part: 'all', adapterRank: 0 });
    reference = JSON.parse(readFileSync(REFERENCE, 'utf8')) as Reference;
  });
  afterAll(() => source?.close());

  const cases = available ? (JSON.parse(readFileSync(REFERENCE, 'utf8')) as Reference).cases : [];
  for (const [index, { activation, lam }] of cases.entries()) {
    it(`with ${activation} and lambda ${lam} are PyTorch's within ${TOLERANCE}`, async () => {
      const own = await compare(index, null);
      console.log(`${activation}, lambda ${lam}: ${own}`);
      expect(own.before.value, own.before.where).toBeLessThan(TOLERANCE);
      expect(own.after.value, own.after.where).toBeLessThan(JUMP);
      if (own.after.value < TOLERANCE) return;

      const moved: Comparison[] = [];
      for (const gate of await gatesOfSecondStep(index)) {
        const by = (-2 * gate.value) / gate.input;
        expect(Math.abs(by), gate.where).toBeLessThan(FILE_ROUNDING * Math.abs(own.start[gate.weight]));
        moved.push(await compare(index, { weight: gate.weight, by }));
        console.log(`${gate.where}: ${gate.value.toExponential(1)}; on the other side ${moved.at(-1)}`);
        if (moved.at(-1)!.after.value < TOLERANCE) break;
      }
      const best = moved.at(-1)!;
      expect(best.before.value, best.before.where).toBeLessThan(TOLERANCE);
      expect(best.after.value, best.after.where).toBeLessThan(TOLERANCE);
    });
  }

  const partsOf = (step: number): Tokens[] =>
    [0, 2].map((first) => {
      const windows = reference.batches[step].slice(first, first + 2);
      return {
        ids: BigInt64Array.from(
          windows.flatMap((w) => w.slice(0, -1)),
          BigInt,
        ),
        labels: BigInt64Array.from(
          windows.flatMap((w) => w.slice(1)),
          BigInt,
        ),
      };
    });

  async function startOf(index: number): Promise<{ trainer: Trainer; start: Float32Array; batch: Batch }> {
    const { activation, lam } = reference.cases[index];
    const start = await readWeights(source, parameters, 1);
    const batch = { windows: 2, tokens: reference.batches[0][0].length - 1 };
    const trainer = Trainer.start(
      {
        ...{ config: source.config, parameters, batch },
        activation: { kind: activation },
        l1: lam > 0,
        distill: 0,
        optimizer: { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clip: 1 },
        lanes: 2,
        threadsPerLane: 1,
      },
      start,
    );
    return { trainer, start, batch };
  }

  async function gatesOfSecondStep(index: number): Promise<Gate[]> {
    const { trainer, batch } = await startOf(index);
    await trainer.train(partsOf(0), LEARNING_RATE, reference.cases[index].lam);
    const weights = trainer.weights.slice();
    await trainer.end();
    return gatesNearZero(source.config, parameters, weights, partsOf(1), batch, GATES);
  }

  async function compare(index: number, move: { weight: number; by: number } | null): Promise<Comparison> {
    const { lam, steps, changeNorm } = reference.cases[index];
    const { trainer, start } = await startOf(index);
    if (move) trainer.weights[move.weight] += move.by;
    const found = new Comparison(start);
    const { before, after } = found;
    const names = new Map(parameters.map((p) => [fileName(p.name), p]));
    for (const [s, step] of steps.entries()) {
      const result = await trainer.train(partsOf(s), LEARNING_RATE, lam);
      before.add(`step ${s} cross entropy`, result.ce, step.ce);
      before.add(`step ${s} L1`, result.l1, step.l1);
      before.add(`step ${s} loss`, result.loss, step.loss);
      (s === 0 ? before : after).add(`step ${s} norm`, result.gradNorm, step.totalGradNorm);
      for (const [name, wanted] of Object.entries(step.gradNorm ?? {})) {
        before.add(`gradient of ${name}`, norm(trainer.gradient(names.get(name)!.name, 2)), wanted);
      }
      for (const [name, wanted] of Object.entries(step.gradFirst8 ?? {})) {
        const gradient = trainer.gradient(names.get(name)!.name, 2);
        const scale = Math.max(...wanted.map(Math.abs), norm(gradient) / Math.sqrt(gradient.length));
        wanted.forEach((w, i) => before.add(`${name}[${i}]`, gradient[i], w, scale));
      }
    }
    for (const [name, wanted] of Object.entries(changeNorm)) {
      const { begin, size } = names.get(name)!;
      const change = trainer.weights.slice(begin, begin + size).map((w, i) => w - start[begin + i]);
      after.add(`change of ${name}`, norm(change as Float32Array), wanted);
    }
    await trainer.end();
    return found;
  }
});
