/**
 * Answers of a model to encoded requests. Every different input is computed once: requests whose input begins
 * another one's read their part of its logits (the one-token choices of MMLU need a single pass), and inputs go
 * in sorted order, so that neighbours share the longest beginnings and an engine that keeps prefixes finds them.
 */
import type { HybridModel } from '../api/hybrid-model.js';
import type { OnProgress } from '../io/progress.js';
import type { Encoded, ScoredPart } from './requests.js';
import type { Answer } from './samples.js';

export interface RunOptions {
  /** Answers of an earlier start, by key. */
  known?: ReadonlyMap<string, Answer>;
  /** Gets each new answer with its key. */
  onAnswer?: (key: string, answer: Answer) => Promise<void> | void;
  signal?: AbortSignal;
  onProgress?: OnProgress;
}

/** Requests with one key have one answer. */
export const keyOf = (request: Encoded): string => JSON.stringify(request);

/** @returns an answer for every request, in order */
export async function answer(
  model: HybridModel,
  requests: readonly Encoded[],
  options: RunOptions = {},
): Promise<Answer[]> {
  const { signal, onProgress } = options;
  const answers = new Map<string, Answer>(options.known);
  const todo = new Map<string, Encoded>();
  for (const request of requests) {
    const key = keyOf(request);
    if (!answers.has(key)) todo.set(key, request);
  }
  const total = answers.size + todo.size;
  let done = answers.size;
  const finish = async (key: string, value: Answer): Promise<void> => {
    answers.set(key, value);
    done++;
    onProgress?.({ stage: 'tasks', done, total, unit: 'requests' });
    await options.onAnswer?.(key, value);
  };

  const open = new Map<string, { missing: number; logLikelihood: number; greedy: boolean }>();
  const scored: { key: string; part: ScoredPart }[] = [];
  for (const [key, request] of todo) {
    if (request.type !== 'score') continue;
    if (request.parts.length === 0) await finish(key, { logLikelihood: 0, greedy: true });
    open.set(key, { missing: request.parts.length, logLikelihood: 0, greedy: true });
    for (const part of request.parts) scored.push({ key, part });
  }
  for (const { tokens, uses } of sharedInputs(scored)) {
    signal?.throwIfAborted();
    const { logits } = await model.engine.logits({ tokens, signal });
    for (const { key, part } of uses) {
      const sum = open.get(key)!;
      const { logLikelihood, greedy } = scorePart(part, logits, model.config.vocabSize);
      sum.logLikelihood += logLikelihood;
      sum.greedy &&= greedy;
      if (--sum.missing === 0) await finish(key, { logLikelihood: sum.logLikelihood, greedy: sum.greedy });
    }
  }
  for (const [key, request] of todo) {
    if (request.type !== 'generate') continue;
    signal?.throwIfAborted();
    await finish(key, { text: await generate(model, request, signal) });
  }
  return requests.map((request) => answers.get(keyOf(request))!);
}

interface SharedInput {
  tokens: number[];
  uses: { key: string; part: ScoredPart }[];
}

/** Inputs that begin no other input, each with the parts whose input begins it. */
export function sharedInputs(scored: readonly { key: string; part: ScoredPart }[]): SharedInput[] {
  const inputs = scored.map((use) => ({ use, tokens: use.part.tokens.slice(0, -1) }));
  inputs.sort((a, b) => compareIds(a.tokens, b.tokens));
  const shared: SharedInput[] = [];
  // From the last: an input that begins others stands directly before the first of them.
  for (const { use, tokens } of inputs.reverse()) {
    const last = shared.at(-1);
    if (last && tokens.every((id, i) => last.tokens[i] === id)) last.uses.push(use);
    else shared.push({ tokens, uses: [use] });
  }
  return shared.reverse();
}

function compareIds(a: readonly number[], b: readonly number[]): number {
  for (let i = 0; i < a.length && i < b.length; i++) if (a[i] !== b[i]) return a[i] - b[i];
  return a.length - b.length;
}

/** @param logits [positions, vocab] of an input that the part's own begins */
function scorePart(
  { tokens, scored, begin }: ScoredPart,
  logits: Float32Array,
  vocab: number,
): { logLikelihood: number; greedy: boolean } {
  let logLikelihood = 0;
  let greedy = true;
  for (let i = 0; i < scored; i++) {
    const id = tokens[tokens.length - scored + i];
    const row = logits.subarray((begin + i - 1) * vocab, (begin + i) * vocab);
    let top = 0;
    for (let v = 1; v < vocab; v++) if (row[v] > row[top]) top = v;
    let sum = 0;
    for (let v = 0; v < vocab; v++) sum += Math.exp(row[v] - row[top]);
    logLikelihood += row[id] - row[top] - Math.log(sum);
    // Of equal logits the first one is what would be written.
    greedy &&= top === id;
  }
  return { logLikelihood, greedy };
}

/** Text up to the first of the stop texts, each looked for in what the others left. */
async function generate(
  model: HybridModel,
  { prompt, settings }: Extract<Encoded, { type: 'generate' }>,
  signal?: AbortSignal,
): Promise<string> {
  const { tokens } = await model.generate(prompt, {
    maxTokens: settings.maxTokens,
    stop: settings.until,
    temperature: settings.temperature,
    ...(settings.topP !== null && { topP: settings.topP }),
    seed: 0,
    signal,
  });
  signal?.throwIfAborted();
  let text = model.tokenizer.decode(tokens);
  for (const stop of settings.until) text = text.split(stop)[0];
  return text;
}
