/** The demo model read with plain ReLU against what lm-eval 0.4.13 measured on it. */
import { cpSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { answerTasks, scoreTasks, type TaskAnswers } from '../../src/tasks/evaluate-tasks.js';
import { readTasks } from '../../src/tasks/samples.js';
import { HybridModel } from '../../src/index.js';

/** Seconds on a quiet machine. */
vi.setConfig({ testTimeout: 300_000, hookTimeout: 300_000 });

const FILES = ['last_word', 'next_sentence', 'continue_sentence'].map((name) =>
  resolve(`test/tasks/reference/samples_${name}.jsonl`),
);
const RESULTS = JSON.parse(readFileSync(resolve('test/tasks/reference/results.json'), 'utf8')) as Record<
  string,
  Record<string, number>
>;
/** Rounding of f32 sums over 256 positions. */
const LOG_LIKELIHOOD = 2e-3;

describe("lm-eval's sample files", () => {
  const tasks = readTasks(FILES);
  let model: HybridModel;
  let answers: TaskAnswers;

  beforeAll(async () => {
    const folder = join(mkdtempSync(join(tmpdir(), 'relu-')), 'tales');
    cpSync(resolve('models/tales-4m-relu'), folder, { recursive: true });
    const path = join(folder, 'config.json');
    const config = JSON.parse(readFileSync(path, 'utf8')) as Record<string, unknown>;
    const { hidden_act_param: _, ...rest } = config;
    writeFileSync(
      path,
      JSON.stringify({
        ...rest,
        architectures: ['LlamaForCausalLM'],
        model_type: 'llama',
        hidden_act: 'relu',
      }),
    );
    process.env.HYBRID_INFER_CACHE = join(folder, 'cache');
    model = await HybridModel.load(folder, { quant: 'f32', ffn: 'dense', threads: 1 });
    answers = await answerTasks(model, tasks);
  });
  afterAll(() => model.close());

  it('get the same log-likelihoods, greedy flags and texts', () => {
    const { parity } = scoreTasks(tasks, answers);
    console.log(`largest log-likelihood difference: ${parity!.maxLogLikelihoodDifference}`);
    expect(parity).toMatchObject({ requests: 280, sameGreedy: 1, sameText: 1 });
    expect(parity!.maxLogLikelihoodDifference).toBeLessThan(LOG_LIKELIHOOD);
  });

  it('get the same results', () => {
    for (const { task, n, metrics, unscored } of scoreTasks(tasks, answers).tasks) {
      expect(unscored).toEqual([]);
      expect(n).toBe(RESULTS[task]['sample_len']);
      for (const [metric, value] of Object.entries(metrics)) {
        const wanted = RESULTS[task][`${metric},none`];
        expect(Math.abs(value / wanted - 1), `${task} ${metric}: ${value}, ${wanted}`).toBeLessThan(1e-3);
      }
    }
  });

  it('are scored at their own positions when that is asked for', async () => {
    const own = await answerTasks(model, tasks, { ownRows: true });
    const differing = tasks.flatMap(({ samples }, t) =>
      samples.flatMap((_, s) =>
        answers[t][s].filter((a, i) => JSON.stringify(a) !== JSON.stringify(own[t][s][i])),
      ),
    );
    // Two sentences are in both tasks, cut at different words.
    expect(differing).toHaveLength(2);
  });

  it('change by nothing against the same answers', () => {
    for (const { change } of scoreTasks(tasks, answers, answers).tasks) {
      for (const { value, stderr } of Object.values(change!)) expect([value, stderr]).toEqual([0, 0]);
    }
  });

  it('go on where an earlier run stopped', async () => {
    const some = tasks.filter(({ task }) => task === 'last_word');
    const known = new Map<string, (typeof answers)[0][0][0]>();
    const stop = new AbortController();
    const first = answerTasks(model, some, {
      signal: stop.signal,
      onAnswer: (key, answer) => {
        known.set(key, answer);
        if (known.size === 20) stop.abort();
      },
    });
    await expect(first).rejects.toThrow();
    expect(known.size).toBe(20);
    let asked = 0;
    const second = await answerTasks(model, some, { known, onAnswer: () => void asked++ });
    // Some documents are there twice.
    expect(asked).toBe(new Set(some[0].samples.map(({ requests }) => JSON.stringify(requests))).size - 20);
    expect(scoreTasks(some, second).tasks[0].metrics.acc).toBeCloseTo(RESULTS.last_word['acc,none'], 10);
  });
});
