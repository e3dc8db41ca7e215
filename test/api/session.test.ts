/** Conversations, choices, embeddings and drafts on the embedded demo model. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { HybridModel } from '../../src/index.js';
import { writeTinyFolder } from '../helpers/tiny-models.js';

const DEMO = new URL('../../models/tales-4m-relu', import.meta.url).pathname;
let folder: string;
let model: HybridModel;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'hybrid-infer-session-'));
  process.env.HYBRID_INFER_CACHE = folder;
  model = await HybridModel.load(DEMO, { threads: 2, ffn: 'exact' });
});
afterAll(async () => {
  await model.close();
  rmSync(folder, { recursive: true, force: true });
});

const OPTIONS = { maxTokens: 40, seed: 5, ignoreEos: true };

describe('a session', () => {
  it('continues its text: the same as one prompt with everything said so far, computing only what is new', async () => {
    const session = model.session();
    const first = await session.generate('Once upon a time there was a king who', OPTIONS);
    const second = await session.generate(' And then the wolf', OPTIONS);
    const ids = [
      ...model.promptIds('Once upon a time there was a king who'),
      ...first.tokens,
      ...model.tokenizer.encode(' And then the wolf', { addSpecial: false }),
    ];
    const whole = await model.generate(ids, { ...OPTIONS, cachePrompt: false });
    expect(second.tokens).toEqual(whole.tokens);
    expect(second.stats.promptTokens).toBe(ids.length);
    expect(ids.length - second.stats.cachedPromptTokens).toBeLessThanOrEqual(32 + 8);
    expect(session.length).toBe(ids.length + second.tokens.length);
  });

  it('keeps what the user saw where a stop string ended the text', async () => {
    const free = await model.generate('The king', OPTIONS);
    const stop = free.text.slice(12, 15);
    const session = model.session();
    const { text } = await session.generate('The king', { ...OPTIONS, stop });
    const expected = [...model.promptIds('The king'), ...model.tokenizer.encode(text, { addSpecial: false })];
    expect(session.length).toBe(expected.length);
  });

  it('refuses a second generation while one is under way, and goes on afterwards', async () => {
    const session = model.session();
    const running = session.generate('The wolf', OPTIONS);
    expect(() => session.generate(' and', OPTIONS)).toThrow(/is generating/);
    await running;
    await session.generate(' and', OPTIONS);
  });

  it('is saved and restored with the same continuation', async () => {
    const file = join(folder, 'talk.json');
    const session = model.session();
    await session.generate('The old woman', OPTIONS);
    await session.save(file);
    const restored = await model.restoreSession(file);
    const [a, b] = [await session.generate(' said', OPTIONS), await restored.generate(' said', OPTIONS)];
    expect(b.tokens).toEqual(a.tokens);
  });

  it('takes back turns one by one, and answers as if they had never been', async () => {
    const session = model.session();
    await session.generate('The old woman', OPTIONS);
    const first = await session.generate(' said', OPTIONS);
    expect(session.retract()).toBe(' said');
    expect((await session.generate(' said', OPTIONS)).tokens).toEqual(first.tokens);
    expect([session.retract(), session.retract(), session.retract()]).toEqual([
      ' said',
      'The old woman',
      null,
    ]);
    expect(session.length).toBe(0);
  });

  it('refuses files that are damaged, foreign, of another version or not there, each with one error', async () => {
    const file = join(folder, 'good.json');
    const session = model.session();
    await session.generate('The old woman', { ...OPTIONS, maxTokens: 3 });
    await session.save(file);
    const good = readFileSync(file, 'utf8');
    const bad: [string, string, RegExp][] = [
      ['cut', good.slice(0, -3), /JSON/],
      ['empty', '', /JSON/],
      ['version', good.replace('"version":1', '"version":2'), /not a session of this version/],
      ['foreign', good.replace(/"fingerprint":"...../, '"fingerprint":"00000'), /made with model 00000/],
      ['token', good.replace(/"tokens":\[\d+/, '"tokens":[99999'), /token 0 is 99999/],
      ['type', good.replace(/"tokens":\[\d+/, '"tokens":[-1'), /tokens/],
    ];
    for (const [name, text, message] of bad) {
      const path = join(folder, `${name}.json`);
      writeFileSync(path, text);
      await expect(model.restoreSession(path), name).rejects.toMatchObject({
        code: 'SESSION_INVALID',
        message: expect.stringMatching(message) as string,
      });
    }
    await expect(model.restoreSession(join(folder, 'none.json'))).rejects.toMatchObject({
      code: 'FILE_NOT_FOUND',
    });
    expect((await model.generate('The king', { ...OPTIONS, maxTokens: 3 })).tokens).toHaveLength(3);
  });
});

describe('a chat', () => {
  const CHAT = { maxTokens: 12, seed: 5 };
  let talker: HybridModel;
  beforeAll(async () => {
    talker = await HybridModel.load(DEMO, { threads: 1, ffn: 'exact', chatTemplate: 'plain' });
  });
  afterAll(() => talker.close());

  it('of a model without a template is refused; with a template it is what the rendered text gives', async () => {
    expect(() => model.chat([{ role: 'user', content: 'One.' }])).toThrow(/no chat template/);
    expect(() => model.session({ system: 'Be brief.' })).toThrow(/no chat template/);
    const { text } = await talker.chat([{ role: 'user', content: 'One.' }], CHAT);
    const rendered = await talker.generate('user: One.\nassistant:', { ...CHAT, stop: '\nuser:' });
    expect(text).toBe(rendered.text);
  });

  it('ends where the user would go on', async () => {
    const messages = [{ role: 'user', content: 'One.' }];
    const spelled = talker.tokenizer.encode('\nuser:', { addSpecial: false });
    const mask = (tokens: readonly number[]): Uint32Array => {
      const bits = new Uint32Array(Math.ceil(talker.config.vocabSize / 32));
      const id = spelled[tokens.length] ?? spelled[0];
      bits[id >> 5] |= 1 << (id & 31);
      return bits;
    };
    expect(await talker.chat(messages, { ...CHAT, mask })).toMatchObject({ text: '', stopReason: 'stop' });
  });

  it('cannot write control tokens into a message', () => {
    const ids = talker.chatIds([{ role: 'user', content: 'a<|end|>b <|be<|end|>gin|>' }]);
    expect(ids.filter((id) => talker.tokenizer.isSpecial(id))).toEqual([]);
    expect(talker.tokenizer.decode(ids)).toContain('a<|end|>b <|be<|end|>gin|>');
  });

  it('is saved, restored with its system prompt, and takes back what was said before that', async () => {
    const file = join(folder, 'chat.json');
    const session = talker.session({ system: 'Be brief.' });
    await session.chat('One.', CHAT);
    await session.save(file);
    const restored = await talker.restoreSession(file);
    expect(restored.messages).toEqual(session.messages);
    const [a, b] = [await session.chat('Two.', CHAT), await restored.chat('Two.', CHAT)];
    expect(b.text).toBe(a.text);
    expect([restored.retract(), restored.retract(), restored.retract()]).toEqual(['Two.', 'One.', null]);
    expect(restored.messages).toEqual([{ role: 'system', content: 'Be brief.' }]);
    restored.system = null;
    expect(restored.messages).toEqual([]);
  });
});

describe('choices', () => {
  it('are what single requests with the seeds one after the other give, and share the prompt', async () => {
    const prompt =
      'Once upon a time there was a poor man who had three sons and a golden bird in the wood. '.repeat(2);
    const options = { ...OPTIONS, temperature: 1 };
    const results = await Promise.all(model.choices(prompt, 3, options));
    for (const [i, { tokens, seed }] of results.entries()) {
      const alone = await model.generate(prompt, { ...options, seed: 5 + i, cachePrompt: false });
      expect(seed).toBe(5 + i);
      expect(tokens).toEqual(alone.tokens);
    }
    expect(results[1].stats.cachedPromptTokens).toBeGreaterThanOrEqual(32);
  });
});

describe('embed', () => {
  it('gives vectors of length 1, the same for the same text, nearer for nearer texts', async () => {
    const [a, b, c, again] = await model.embed([
      'The king had a daughter.',
      'The king had a son.',
      'ROMEO: 12 { } ;; 7',
      'The king had a daughter.',
    ]);
    const dot = (x: Float32Array, y: Float32Array): number => x.reduce((s, v, i) => s + v * y[i], 0);
    expect(a).toHaveLength(model.config.hiddenSize);
    expect(dot(a, a)).toBeCloseTo(1, 5);
    expect(again).toEqual(a);
    expect(dot(a, b)).toBeGreaterThan(dot(a, c));
  });
});

describe('a draft model', () => {
  it('changes nothing in the text; its proposals are accepted where it is the same model', async () => {
    const options = { ...OPTIONS, temperature: 0 };
    const free = await model.generate('The wolf', options);
    // A model that does not know yet what a row costs makes drafts wherever there is one.
    const fresh = await HybridModel.load(DEMO, { threads: 2, ffn: 'exact' });
    const fast = await fresh.generate('The wolf', { ...options, speculate: { draft: DEMO } });
    await fresh.close();
    expect(fast.tokens).toEqual(free.tokens);
    expect(fast.stats.draftTokens).toBeGreaterThan(1);
    expect(fast.stats.acceptedTokens).toBeGreaterThan(fast.stats.draftTokens / 2);
  });

  it('with another tokenizer is refused, and the model goes on', async () => {
    const other = writeTinyFolder({ maxContext: 1024 });
    const run = model.generate('The wolf', { ...OPTIONS, speculate: { draft: other } });
    await expect(run).rejects.toMatchObject({ code: 'MODEL_UNSUPPORTED' });
    expect((await model.generate('The wolf', OPTIONS)).tokens).toHaveLength(40);
  });
});

describe('a profile', () => {
  it('orders the neurons in every FFN mode', () => {
    expect(model.engine.ffn).toBe('exact');
    expect(model.engine.layout.layers[0].order).not.toBeNull();
  });
});
