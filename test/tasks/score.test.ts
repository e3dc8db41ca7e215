import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { aggregate, standardError } from '../../src/tasks/metrics.js';
import { length, parseList, stripEnd, wordCount } from '../../src/tasks/python.js';
import type { Answer, Sample, Task } from '../../src/tasks/samples.js';
import { scorersFor } from '../../src/tasks/score.js';

function sample(parts: Partial<Sample>): Sample {
  const requests = parts.requests ?? [];
  return {
    ...{ where: 'here', docId: '0', doc: {}, target: null, filtered: null, scores: {} },
    answers: requests.map(() => null),
    ...parts,
    requests,
  };
}
const task = (metrics: string[], samples: Sample[], filter = 'none'): Task => ({
  ...{ task: 't', filter, metrics, samples },
});
const choices = (texts: string[]): Sample['requests'] =>
  texts.map((text) => ({ type: 'loglikelihood', context: 'c', continuation: text }));
const said = (...values: number[]): Answer[] =>
  values.map((logLikelihood) => ({ logLikelihood, greedy: false }));
const score = (metric: string, s: Sample, answers: Answer[], filter?: string): unknown =>
  scorersFor(task([metric], [s], filter)).scorers[0]?.rule(s, answers);

describe('multiple choice', () => {
  const requests = choices([' short', ' much longer']);

  it('takes the likeliest, and for acc_norm the likeliest per character', () => {
    const s = sample({ requests, target: 1 });
    expect(score('acc', s, said(-3, -4))).toBe(0);
    expect(score('acc_norm', s, said(-3, -4))).toBe(1);
  });

  it('knows the right choice by number, by text, by a list, and by numbers written as text', () => {
    for (const target of [1, '1', 'much longer', ' much longer', [0, 1], '[0, 1]']) {
      expect(score('acc', sample({ requests, target }), said(-3, -2)), String(target)).toBe(1);
    }
  });

  it('counts characters, not UTF-16 units', () => {
    const s = sample({ requests: choices([' 😀😀', ' abc']), target: 1 });
    // Per character -1.5 and -1.1; per unit -0.75 and -1.1.
    expect(score('acc_norm', s, said(-3, -3.3))).toBe(1);
  });

  it("takes the document's own choices for the lengths where they are what is asked", () => {
    const s = sample({
      requests: choices([' ab', ' abcd']),
      doc: { choices: { text: ['b', 'bcd'] } },
      target: 1,
    });
    expect(score('acc_norm', s, said(-1, -2.5))).toBe(1);
  });

  it('finds the right context where all continue the same way', () => {
    const requests: Sample['requests'] = ['Ann', 'Bob'].map((context) => ({
      ...{ type: 'loglikelihood', context, continuation: ' left.' },
    }));
    // The target is the continuation; which context was right only lm-eval's score tells.
    const s = sample({ requests, target: ' left.', answers: said(-1, -2), scores: { acc: 0 } });
    expect(score('acc', s, said(-2, -1))).toBe(1);
  });

  it('subtracts what a choice is worth without its context', () => {
    const both = [...choices(['x', 'y']), ...choices(['x', 'y'])];
    const s = sample({ requests: both, target: 1 });
    expect(score('acc_mutual_info', s, said(-1, -2, -1, -9))).toBe(1);
    expect(score('acc', s, said(-1, -2, -1, -9))).toBe(0);
  });

  it('is not scored by a rule that contradicts lm-eval', () => {
    const s = sample({ requests, target: 1, answers: said(-3, -4), scores: { acc: 1 } });
    expect(scorersFor(task(['acc', 'mc2'], [s])).unscored.map(({ metric }) => metric)).toEqual([
      'acc',
      'mc2',
    ]);
  });
});

describe('generated text', () => {
  const requests: Sample['requests'] = [
    { type: 'generate', context: 'q', settings: { until: [], maxTokens: 9, temperature: 0, topP: null } },
  ];
  const target = 'He has 5 + 6 = 11.\n#### 1,100';

  it("is compared as GSM8K compares it, with each of its filters' patterns", () => {
    const own = { text: 'So #### 1100' };
    const strict = sample({
      requests,
      target,
      answers: [own],
      filtered: ['1100'],
      scores: { exact_match: 1 },
    });
    expect(score('exact_match', strict, [{ text: 'Thus 3.\n#### 1,100' }], 'strict-match')).toBe(1);
    expect(score('exact_match', strict, [{ text: 'It is 1100.' }], 'strict-match')).toBe(0);
    const flexible = sample({
      requests,
      target,
      answers: [own],
      filtered: ['1100'],
      scores: { exact_match: 1 },
    });
    expect(score('exact_match', flexible, [{ text: 'It is 3, no, $1,100.' }], 'flexible-extract')).toBe(1);
    expect(score('exact_match', flexible, [{ text: 'It is eleven' }], 'flexible-extract')).toBe(0);
  });

  it('is not scored with a filter that nobody here knows', () => {
    const s = sample({
      requests,
      target: 'b',
      answers: [{ text: 'xb' }],
      filtered: ['b'],
      scores: { exact_match: 1 },
    });
    expect(scorersFor(task(['exact_match'], [s], 'my-own')).unscored).toHaveLength(1);
  });
});

describe('rolling', () => {
  it('spreads the log-likelihood over words and bytes', () => {
    const requests: Sample['requests'] = [{ type: 'rolling', text: 'one two\u2003three' }];
    const s = sample({ requests });
    expect(score('word_perplexity', s, said(-6))).toEqual([-6, 3]);
    expect(score('bits_per_byte', s, said(-6))).toEqual([-6, 15]);
    const { value } = aggregate('word_perplexity', [
      [-6, 3],
      [-2, 1],
    ]);
    expect(value).toBeCloseTo(Math.exp(2), 10);
  });
});

describe('standard errors', () => {
  it('of a mean is the sample deviation over the root of n', () => {
    const { value, influence } = aggregate('acc', [0, 1, 1, 1]);
    expect(value).toBe(0.75);
    expect(standardError(influence)).toBeCloseTo(Math.sqrt(0.25 / 4), 12);
    expect(standardError([0])).toBeNull();
  });

  it('of a function is that of the spread its documents cause', () => {
    // Leaving documents out one by one estimates the same.
    fc.assert(
      fc.property(
        fc.array(fc.double({ min: -2, max: -1, noNaN: true }), { minLength: 40, maxLength: 60 }),
        (values) => {
          const all = aggregate('perplexity', values);
          const jackknife = values.map((_, i) => {
            const rest = aggregate(
              'perplexity',
              values.filter((_, j) => j !== i),
            ).value;
            return (values.length - 1) * (all.value - rest);
          });
          const [a, b] = [standardError(all.influence)!, standardError(jackknife)!];
          expect(Math.abs(a - b)).toBeLessThan(0.05 * (a + 1e-6));
        },
      ),
      { numRuns: 30 },
    );
  });
});

describe("Python's strings", () => {
  it('end in spaces that JavaScript does not know, and not in one that it does', () => {
    expect(stripEnd('a \x1f\x85\u3000')).toBe('a');
    expect(stripEnd('a\ufeff')).toBe('a\ufeff');
  });

  it('are counted in characters and words', () => {
    expect(length('a😀')).toBe(2);
    expect(wordCount(' a  b ')).toBe(4);
  });

  it('of lists are read back', () => {
    expect(parseList(`['it\\'s', "b", 3]`)).toEqual(["it's", 'b', 3]);
    expect(parseList('a, b')).toBeNull();
    expect(parseList('[[1]]')).toBeNull();
  });
});
