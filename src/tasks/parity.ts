/** How far a model's answers are from those in the file. */
import type { Answer, Sample } from './samples.js';

export interface Parity {
  /** Requests that lm-eval answered in the file. */
  requests: number;
  /** Null where no request was scored. */
  maxLogLikelihoodDifference: number | null;
  /** Shares of the requests of their kind; null where there are none. */
  sameGreedy: number | null;
  sameText: number | null;
}

/** @returns null when the file has no answers */
export function parityOf(pairs: readonly { sample: Sample; answers: readonly Answer[] }[]): Parity | null {
  const differences: number[] = [];
  const flags: boolean[] = [];
  const texts: boolean[] = [];
  for (const { sample, answers } of pairs) {
    sample.answers.forEach((theirs, i) => {
      const mine = answers[i];
      if (theirs === null) return;
      if ('text' in theirs || 'text' in mine) {
        texts.push('text' in theirs && 'text' in mine && theirs.text === mine.text);
        return;
      }
      differences.push(Math.abs(theirs.logLikelihood - mine.logLikelihood));
      if (theirs.greedy !== null) flags.push(theirs.greedy === mine.greedy);
    });
  }
  if (differences.length + texts.length === 0) return null;
  const share = (values: boolean[]): number | null =>
    values.length === 0 ? null : values.filter(Boolean).length / values.length;
  return {
    requests: differences.length + texts.length,
    maxLogLikelihoodDifference:
      differences.length === 0 ? null : differences.reduce((a, b) => Math.max(a, b), 0),
    sameGreedy: share(flags),
    sameText: share(texts),
  };
}
