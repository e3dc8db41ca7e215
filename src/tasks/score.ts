/**
 * Scores of documents from answers to their requests, as lm-eval computes them. Where a rule is not in the file
 * (which text the choices' lengths are counted on, what a filter does), candidates are tried on lm-eval's own
 * answers, and the one that gives lm-eval's own scores is used; a metric that none explains is not scored.
 */
import { filtersNamed, NORMALISERS, type Filter, type Normaliser } from './filters.js';
import type { Score } from './metrics.js';
import { length, parseList, stripStart, toNumber, utf8Length, wordCount } from './python.js';
import type { Answer, Sample, Task } from './samples.js';

/** @returns null where the document cannot be scored this way */
type Rule = (sample: Sample, answers: readonly Answer[]) => Score | null;

export interface Scorer {
  metric: string;
  rule: Rule;
}

/** @returns a scorer for every metric that can be computed, and why the others cannot */
export function scorersFor(task: Task): {
  scorers: Scorer[];
  unscored: { metric: string; reason: string }[];
} {
  const scorers: Scorer[] = [];
  const unscored: { metric: string; reason: string }[] = [];
  for (const metric of task.metrics) {
    const candidates = rulesFor(metric, task);
    const fitting = candidates.find((rule) => task.samples.every((sample) => explains(rule, sample, metric)));
    if (fitting) scorers.push({ metric, rule: fitting });
    else {
      const reason =
        candidates.length === 0
          ? 'this metric is not known here'
          : "no known rule gives lm-eval's scores of its own answers";
      unscored.push({ metric, reason });
    }
  }
  return { scorers, unscored };
}

/** Whether the rule gives lm-eval's own score of lm-eval's own answers; true where the file has none. */
function explains(rule: Rule, sample: Sample, metric: string): boolean {
  const answers = sample.answers.filter((a): a is Answer => a !== null);
  if (answers.length < sample.requests.length) return true;
  const wanted = scoreOf(sample.scores[metric]);
  const found = rule(sample, answers);
  if (found === null) return false;
  if (wanted === null) return true;
  const [a, b] = [found, wanted].map((score) => (typeof score === 'number' ? [score] : [...score]));
  return a.length === b.length && a.every((x, i) => Math.abs(x - b[i]) <= 1e-6 * Math.max(1, Math.abs(b[i])));
}

function scoreOf(value: unknown): Score | null {
  if (typeof value === 'boolean') return Number(value);
  if (Array.isArray(value) && value.length === 2) {
    const [l, w] = value.map(toNumber);
    return l !== null && w !== null ? [l, w] : null;
  }
  return toNumber(value);
}

function rulesFor(metric: string, task: Task): Rule[] {
  if (metric === 'bypass') return [() => 0];
  const { type } = task.samples[0].requests[0];
  if (type === 'generate') return metric === 'exact_match' ? exactMatchRules(task) : [];
  if (type === 'rolling') return ROLLING[metric] ?? [];
  // A choice of one is no choice: then the only continuation is what should have been said.
  const single = task.samples.every(({ requests }) => requests.length === 1);
  return [...(single ? (SINGLE[metric] ?? []) : []), ...(CHOICES[metric] ?? [])];
}

// ---- one continuation ---------------------------------------------------------------------------------------

const likelihood = (answer: Answer): number => ('text' in answer ? NaN : answer.logLikelihood);
const greedy = (answer: Answer): number => ('text' in answer ? NaN : Number(answer.greedy));

const SINGLE: Readonly<Record<string, Rule[]>> = {
  acc: [(_, [a]) => greedy(a)],
  exact_match: [(_, [a]) => greedy(a)],
  perplexity: [(_, [a]) => likelihood(a)],
};

/** Words and bytes as lm-eval counted them (its score names them), else those of the target, else the request's. */
function spread(metric: string, count: (text: string) => number): Rule {
  return (sample, [a]) => {
    const logged = scoreOf(sample.scores[metric]);
    if (logged !== null && typeof logged !== 'number') return [likelihood(a), logged[1]];
    const [request] = sample.requests;
    const text = typeof sample.target === 'string' && sample.target !== '' ? sample.target : null;
    return [likelihood(a), count(text ?? (request.type === 'rolling' ? request.text : ''))];
  };
}

const ROLLING: Readonly<Record<string, Rule[]>> = {
  word_perplexity: [spread('word_perplexity', wordCount)],
  byte_perplexity: [spread('byte_perplexity', utf8Length)],
  bits_per_byte: [spread('bits_per_byte', utf8Length)],
  perplexity: [(_, [a]) => likelihood(a)],
};

// ---- multiple choice ----------------------------------------------------------------------------------------

type Lengths = (sample: Sample) => number[];

const byLikelihood =
  (divide: Lengths | null): Rule =>
  (sample, answers) => {
    const { count } = choicesOf(sample);
    const gold = goldOf(sample);
    if (gold === null) return null;
    const lengths = divide?.(sample);
    const values = answers.slice(0, count).map((a, i) => likelihood(a) / (lengths ? lengths[i] : 1));
    return Number(gold.includes(argmax(values)));
  };

const mutualInformation: Rule = (sample, answers) => {
  const { count } = choicesOf(sample);
  const gold = goldOf(sample);
  if (gold === null || answers.length !== 2 * count) return null;
  const gains = answers.slice(0, count).map((a, i) => likelihood(a) - likelihood(answers[count + i]));
  return Number(gold.includes(argmax(gains)));
};

/** lm-eval counts the choice's own text; the continuation has the delimiter before it. */
const LENGTHS: readonly ((count: (text: string) => number) => Lengths)[] = [
  (count) => (sample) => choicesOf(sample).texts.map(count),
  (count) => (sample) => choicesOf(sample).continuations.map(count),
  (count) => (sample) => choicesOf(sample).continuations.map((text) => count(stripStart(text))),
];

const CHOICES: Readonly<Record<string, Rule[]>> = {
  acc: [byLikelihood(null)],
  acc_norm: LENGTHS.map((lengths) => byLikelihood(lengths(length))),
  acc_bytes: LENGTHS.map((lengths) => byLikelihood(lengths(utf8Length))),
  acc_mutual_info: [mutualInformation],
  exact_match: [
    (sample, answers) => {
      const gold = goldOf(sample);
      return gold === null ? null : Math.max(...gold.map((i) => (answers[i] ? greedy(answers[i]) : 0)));
    },
  ],
};

interface Choices {
  count: number;
  /** As the task has them: the document's `choices` where they fit, else the continuation after one space. */
  texts: string[];
  continuations: string[];
}

function choicesOf({ requests, doc }: Sample): Choices {
  const pairs = requests.map((r) =>
    r.type === 'loglikelihood' ? ([r.context, r.continuation] as const) : (['', ''] as const),
  );
  // With acc_mutual_info every choice is asked a second time, without its context.
  const half = pairs.length / 2;
  const doubled =
    half >= 2 && Number.isInteger(half) && pairs.slice(0, half).every(([, c], i) => c === pairs[half + i][1]);
  const asked = doubled ? pairs.slice(0, half) : pairs;
  const continuations = asked.map(([, c]) => c);
  // Winogrande: the choice is in the context, and all continue the same way.
  if (asked.length > 1 && continuations.every((c) => c === continuations[0])) {
    const contexts = asked.map(([c]) => c);
    if (new Set(contexts).size > 1) return { count: asked.length, texts: contexts, continuations };
  }
  const listed = listedChoices(doc);
  const fits = listed?.length === asked.length && listed.every((c, i) => continuations[i].endsWith(c));
  const texts = fits ? listed : continuations.map((c) => (c.startsWith(' ') ? c.slice(1) : c));
  return { count: asked.length, texts, continuations };
}

function listedChoices(doc: Sample['doc']): string[] | null {
  const value = doc.choices;
  const list: unknown = typeof value === 'object' && value !== null && 'text' in value ? value.text : value;
  return Array.isArray(list) && list.every((c): c is string => typeof c === 'string') ? list : null;
}

/**
 * Numbers of the right choices. `target` is a number, a list of numbers, or the choice's text; where it is none of
 * these (Winogrande), lm-eval's own answers and accuracy tell: right, or wrong with only one other choice.
 */
function goldOf(sample: Sample): number[] | null {
  const { count, texts, continuations } = choicesOf(sample);
  const { target } = sample;
  const asList = typeof target === 'string' ? parseList(target) : Array.isArray(target) ? target : null;
  const found = (asList ?? [target]).map((value): number => {
    const index = typeof value === 'string' && /^\d+$/.test(value) ? Number(value) : value;
    if (typeof index === 'number') return index;
    return typeof index === 'string' ? Math.max(only(texts, index), only(continuations, index)) : -1;
  });
  if (found.length > 0 && found.every((i) => Number.isInteger(i) && i >= 0 && i < count)) return found;
  const own = sample.answers.slice(0, count).map((a) => (a ? likelihood(a) : NaN));
  const acc = scoreOf(sample.scores.acc);
  if (acc === null || own.some(Number.isNaN)) return null;
  const chosen = argmax(own);
  if (acc === 1) return [chosen];
  return count === 2 ? [1 - chosen] : null;
}

/** Where a text stands in a list; -1 when it stands there not at all or more than once. */
const only = (list: readonly string[], text: string): number =>
  list.indexOf(text) === list.lastIndexOf(text) ? list.indexOf(text) : -1;

/** The first of the largest. */
function argmax(values: readonly number[]): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

// ---- generated text -----------------------------------------------------------------------------------------

function exactMatchRules({ filter, samples }: Task): Rule[] {
  const filters = filtersNamed(filter).filter((f) => samples.every((sample) => filtersLike(f, sample)));
  return filters.flatMap((f) => NORMALISERS.map((normalise) => exactMatch(f, normalise)));
}

function filtersLike(filter: Filter, { filtered, answers }: Sample): boolean {
  const [own] = answers;
  const [wanted] = filtered ?? [];
  if (!own || !('text' in own) || typeof wanted !== 'string') return true;
  return filter(own.text) === wanted;
}

const exactMatch =
  (filter: Filter, normalise: Normaliser): Rule =>
  ({ target }, [a]) => {
    if (!('text' in a)) return null;
    const said = normalise(filter(a.text));
    const listed = typeof target === 'string' ? parseList(target) : null;
    const wanted = Array.isArray(target) ? target : [target, ...(listed ?? [])];
    return Number(wanted.some((text) => normalise(String(text)) === said));
  };
