/** Tasks on a model: requests, answers, scores; against another run of the same requests, and against lm-eval. */
import type { HybridModel } from '../api/hybrid-model.js';
import { aggregate, standardError, type Aggregate } from './metrics.js';
import { parityOf, type Parity } from './parity.js';
import { generationDefaults } from '../model/generation-defaults.js';
import { encodeRequest, readLikeLmEval, type EncodeOptions } from './requests.js';
import { answer, type RunOptions } from './run.js';
import type { Answer, Task } from './samples.js';
import { scorersFor } from './score.js';

export interface TaskResult {
  task: string;
  filter: string;
  /** Documents. */
  n: number;
  metrics: Record<string, number>;
  /** Standard errors; null for a single document. */
  stderr: Record<string, number | null>;
  /** Against the other run on the same documents; null without one. */
  change: Record<string, { value: number; stderr: number | null; other: number }> | null;
  unscored: { metric: string; reason: string }[];
}

/** One run's answers: for each task its samples' answers, in order. */
export type TaskAnswers = Answer[][][];

export interface TaskRunOptions extends RunOptions {
  /** @default false, as lm-eval's */
  beginToken?: boolean;
  /** Score every continuation at its own positions, also where lm-eval does not. @default false */
  ownRows?: boolean;
}

/** @throws UsageError when a request does not fit into the context */
export async function answerTasks(
  model: HybridModel,
  tasks: readonly Task[],
  options: TaskRunOptions = {},
): Promise<TaskAnswers> {
  const encoding: EncodeOptions = {
    tokenizer: model.tokenizer,
    beginToken: options.beginToken ?? false,
    prefixId: model.tokenizer.bosId ?? model.config.bosId ?? model.config.eosIds[0] ?? null,
    maxLength: model.engine.layout.contextLength,
    maxNewTokens: generationDefaults(model.engine.pack.header.tokenizer).maxNewTokens ?? null,
  };
  const encoded = tasks.map(({ samples }) =>
    samples.map(({ requests, where }) => requests.map((request) => encodeRequest(request, encoding, where))),
  );
  const requests = encoded.flat(2);
  if (!options.ownRows) readLikeLmEval(requests);
  const flat = await answer(model, requests, options);
  let at = 0;
  return encoded.map((samples) => samples.map(({ length }) => flat.slice(at, (at += length))));
}

/** @param other answers of the run to compare with */
export function scoreTasks(
  tasks: readonly Task[],
  answers: TaskAnswers,
  other: TaskAnswers | null = null,
): { tasks: TaskResult[]; parity: Parity | null } {
  const results = tasks.map((task, t): TaskResult => {
    const { scorers, unscored } = scorersFor(task);
    const result: TaskResult = {
      ...{ task: task.task, filter: task.filter, n: task.samples.length, unscored },
      ...{ metrics: {}, stderr: {}, change: other ? {} : null },
    };
    for (const { metric, rule } of scorers) {
      const total = (run: TaskAnswers): Aggregate | null => {
        const scores = task.samples.map((sample, s) => rule(sample, run[t][s]));
        const known = scores.filter((score) => score !== null);
        return known.length === scores.length ? aggregate(metric, known) : null;
      };
      const mine = total(answers);
      if (!mine) {
        unscored.push({ metric, reason: 'the right answer of a document is not in the file' });
        continue;
      }
      result.metrics[metric] = mine.value;
      result.stderr[metric] = standardError(mine.influence);
      const theirs = other && total(other);
      if (!theirs) continue;
      result.change![metric] = {
        value: mine.value - theirs.value,
        stderr: standardError(mine.influence.map((v, i) => v - theirs.influence[i])),
        other: theirs.value,
      };
    }
    return result;
  });
  // Filters repeat a document's requests: each counts once.
  const seen = new Set<string>();
  const pairs = tasks.flatMap(({ task, samples }, t) =>
    samples.flatMap((sample, s) => {
      const key = JSON.stringify([task, sample.docId, sample.requests]);
      if (seen.has(key)) return [];
      seen.add(key);
      return [{ sample, answers: answers[t][s] }];
    }),
  );
  return { tasks: results, parity: parityOf(pairs) };
}
