/** What `model.generate()` returns: iterate it for text as it comes, await it for the whole result. */
import type { RunStats } from '../engine/engine.js';
import type { StopReason, TokenLogprob } from '../engine/jobs.js';
import type { LayerDensity } from '../engine/stats.js';

export interface GenerationResult {
  /** The generated text, without the prompt, up to a stop string. */
  text: string;
  /** Generated token ids. */
  tokens: number[];
  stopReason: StopReason;
  /** The seed that was used, for repeating the run. */
  seed: number;
  stats: RunStats;
  layers: LayerDensity[];
  /** Log-probabilities, one entry a token; null when not asked for. */
  logprobs: TokenLogprob[] | null;
}

/** What came at once: text that is certain now, and the tokens that were chosen (text may lag behind them). */
export interface GenerationPiece {
  text: string;
  tokens: number[];
  /** One entry a token; null when not asked for. */
  logprobs: TokenLogprob[] | null;
}

type Start = (emit: (piece: GenerationPiece) => void) => Promise<GenerationResult>;

export class Generation implements AsyncIterable<string>, PromiseLike<GenerationResult> {
  private readonly queue: GenerationPiece[] = [];
  private readonly waiting = new Set<() => void>();
  private ended = false;
  private readonly result: Promise<GenerationResult>;

  /** @param cancel stops the work when the last consumer leaves its loop early */
  constructor(
    start: Start,
    private readonly cancel: () => void,
  ) {
    this.result = start((piece) => {
      this.queue.push(piece);
      this.wake();
    }).finally(() => {
      this.ended = true;
      this.wake();
    });
    // Whoever iterates or awaits sees the error; nobody doing either must not end the process.
    this.result.catch(() => {});
  }

  then<A = GenerationResult, B = never>(
    onResult?: ((value: GenerationResult) => A | PromiseLike<A>) | null,
    onError?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    return this.result.then(onResult, onError);
  }

  /** Stop after the step under way; the result has stopReason `abort` and what came so far. */
  abort(): void {
    if (!this.ended) this.cancel();
  }

  /** Pieces of text, each of whole characters. Leaving the loop early cancels the generation. */
  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, void> {
    for await (const { text } of this.pieces()) if (text !== '') yield text;
  }

  /**
   * Text with the tokens behind it, as they come. Every loop sees all pieces from the first one on; leaving
   * one early cancels the generation.
   */
  async *pieces(): AsyncGenerator<GenerationPiece, void, void> {
    let next = 0;
    try {
      for (;;) {
        while (next < this.queue.length) yield this.queue[next++];
        if (this.ended) break;
        await new Promise<void>((resolve) => this.waiting.add(resolve));
      }
      await this.result;
    } finally {
      this.abort();
    }
  }

  private wake(): void {
    for (const resolve of this.waiting) resolve();
    this.waiting.clear();
  }
}
