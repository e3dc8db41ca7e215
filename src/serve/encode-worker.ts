/** The thread that renders templates and encodes text, so that streams on the main thread never wait for it. */
import { parentPort, workerData } from 'node:worker_threads';
import { HybridError, type ErrorCode } from '../errors.js';
import type { ChatForm, Conversation } from '../model/chat.js';
import { PromptEncoder } from '../model/prompt-encoder.js';
import { createTokenizer } from '../model/tokenizer.js';
import type { TokenizerFiles } from '../model/types.js';

export interface EncoderData {
  files: TokenizerFiles;
  /** Null: the model has no template. */
  form: ChatForm | null;
}

export type EncodeTask = { kind: 'text'; text: string } | { kind: 'chat'; conversation: Conversation };
export interface EncodeRequest {
  id: number;
  task: EncodeTask;
}
export type EncodeReply =
  { id: number; ids: number[] } | { id: number; error: { code: ErrorCode; message: string; hint: string } };

if (parentPort) {
  const port = parentPort;
  const { files, form } = workerData as EncoderData;
  const encoder = new PromptEncoder(createTokenizer(files), files, form);
  const run = (task: EncodeTask): number[] =>
    task.kind === 'text' ? encoder.text(task.text) : encoder.chat(task.conversation);

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
