/** The thread that renders templates and encodes text, so that streams on the main thread never wait for it. */
import { parentPort, workerData } from 'node:worker_threads';
import { HybridError, type ErrorCode } from '../errors.js';
import { isObject, parseStrictJson } from '../io/strict-json.js';
import { createTokenizer, tokenText } from '../model/tokenizer.js';
import { checkTokenizerJson, invalid } from '../model/tokenizer-schema.js';
import type { TokenizerFiles } from '../model/types.js';
import { ControlGuard, renderConversation, type Conversation } from './render.js';

export interface EncoderData {
  files: TokenizerFiles;
  /** Jinja source; null: the model has none. */
  template: string | null;
}

export type EncodeTask = { kind: 'text'; text: string } | { kind: 'chat'; conversation: Conversation };
export interface EncodeRequest {
  id: number;
  task: EncodeTask;
}
export type EncodeReply =
  { id: number; ids: number[] } | { id: number; error: { code: ErrorCode; message: string; hint: string } };

const MAX_TOKENIZER_VALUES = 1 << 23;
const SPECIAL_NAMES = ['bos_token', 'eos_token', 'unk_token', 'pad_token'];

if (parentPort) serve(workerData as EncoderData);

function serve({ files, template }: EncoderData): void {
  const port = parentPort!;
  const tokenizer = createTokenizer(files);
  const checked = checkTokenizerJson(
    parseStrictJson(files.tokenizerJson, 'tokenizer.json', invalid, MAX_TOKENIZER_VALUES),
  );
  const controls = checked.added.filter((token) => token.special).map((token) => token.content);
  const specials = specialTokens(files);

  /** The first piece may get a begin token, the others are continuations. */
  const encode = (pieces: readonly string[], addSpecial: boolean): number[] =>
    pieces.flatMap((piece, i) =>
      i > 0 && piece === '' ? [] : tokenizer.encode(piece, { addSpecial: addSpecial && i === 0 }),
    );

  const run = (task: EncodeTask): number[] => {
    const guard = new ControlGuard(controls);
    if (task.kind === 'text') return encode(guard.cut(guard.protect(task.text)), true);
    if (template === null) {
      throw new HybridError('TEMPLATE_INVALID', 'this model has no chat template', {
        hint: 'Use /v1/completions, or start the server with --chat-template plain.',
      });
    }
    const rendered = renderConversation(template, specials, guard.protectAll(task.conversation));
    return encode(guard.cut(rendered), false);
  };

  port.on('message', ({ id, task }: EncodeRequest) => {
    try {
      port.postMessage({ id, ids: run(task) } satisfies EncodeReply);
    } catch (error) {
      const { code, message, hint } =
        error instanceof HybridError ? error : new HybridError('TOKENIZER_INVALID', String(error));
      port.postMessage({ id, error: { code, message, hint } } satisfies EncodeReply);
    }
  });
}

function specialTokens(files: TokenizerFiles): Record<string, string> {
  const config = parseStrictJson(files.tokenizerConfigJson, 'tokenizer_config.json', invalid);
  return Object.fromEntries(
    SPECIAL_NAMES.map((name) => [name, (isObject(config) ? tokenText(config[name]) : null) ?? '']),
  );
}
