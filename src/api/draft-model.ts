/** A small model that proposes what a large one may write next. */
import { ModelError } from '../errors.js';
import { GREEDY } from '../engine/sampler.js';
import { HybridModel } from './hybrid-model.js';

/** Each has four requests at most: the large model's default. */
const SLOTS = 4;

export class DraftModel {
  private constructor(private readonly model: HybridModel) {}

  /** @throws ModelError MODEL_UNSUPPORTED when its tokens are not the large model's */
  static async load(path: string, large: HybridModel): Promise<DraftModel> {
    const { threads, layout } = large.engine;
    const model = await HybridModel.load(path, { threads, slots: SLOTS });
    const difference = tokenizerDifference(model, large);
    if (difference === null && model.engine.layout.contextLength >= layout.contextLength) {
      return new DraftModel(model);
    }
    await model.close();
    const { contextLength } = model.engine.layout;
    const why = difference ?? `its context is ${contextLength}, the large model's ${layout.contextLength}`;
    throw new ModelError('MODEL_UNSUPPORTED', `${path} cannot draft for ${large.name}: ${why}`, {
      hint: 'A draft model has the same tokenizer and at least the same context.',
    });
  }

  /** What this model would write next, greedily; its own cache of prefixes makes that cheap. */
  async propose(
    prompt: readonly number[],
    tokens: readonly number[],
    count: number,
    signal: AbortSignal,
  ): Promise<number[]> {
    const { engine } = this.model;
    const known = [...prompt, ...tokens];
    const most = Math.min(count, engine.layout.contextLength - known.length);
    if (most < 1 || signal.aborted) return [];
    const run = await engine.generate({ prompt: known, maxTokens: most, sampling: GREEDY, signal });
    return run.tokens;
  }

  close(): Promise<void> {
    return this.model.close();
  }
}

/** Null when all tokens have the same bytes. */
function tokenizerDifference(a: HybridModel, b: HybridModel): string | null {
  const [size, other] = [a.config.vocabSize, b.config.vocabSize];
  if (size !== other) return `its vocabulary has ${size} tokens, the large model's ${other}`;
  for (let id = 0; id < size; id++) {
    const [mine, theirs] = [a.tokenizer, b.tokenizer].map((t) => t.decode([id], { skipSpecial: false }));
    if (mine !== theirs)
      return `token ${id} is ${JSON.stringify(mine)}, the large model's ${JSON.stringify(theirs)}`;
  }
  return null;
}
