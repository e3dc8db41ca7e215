/** POST /v1/embeddings: the mean of the last hidden state of each input, normalised. */
import { z } from 'zod';
import type { Slot } from '../admission.js';
import { invalidRequest, notSupported } from '../api-error.js';
import { parseBody, readJson } from '../body.js';
import { Deadline } from '../deadline.js';
import { harmlessFields, maybe } from '../fields.js';
import { MAX_PROMPTS } from '../limits.js';
import type { ServeContext, Service } from '../service.js';

const ids = z.array(z.number().int().min(0)).min(1);

export const schema = z.strictObject({
  ...harmlessFields,
  model: maybe(z.string().min(1).max(512)),
  input: z.union([
    z.string().min(1),
    ids,
    z.array(z.string().min(1)).min(1).max(MAX_PROMPTS),
    z.array(ids).min(1).max(MAX_PROMPTS),
  ]),
  encoding_format: maybe(z.enum(['float', 'base64'])),
  dimensions: maybe(z.number().int().min(1)),
});

export async function embeddings(c: ServeContext, service: Service): Promise<Response> {
  const body = parseBody(schema, await readJson(c, service.limits.bodyBytes));
  const model = service.model(body.model);
  c.set('about', { model: model.name });
  const { backend } = model;
  const list =
    typeof body.input === 'string' || typeof body.input[0] === 'number' ? [body.input] : body.input;
  const prompts = await Promise.all(
    (list as (string | number[])[]).map((item) =>
      typeof item === 'string' ? model.encode({ kind: 'text', text: item }) : item,
    ),
  );
  for (const [i, prompt] of prompts.entries()) {
    if (prompt.length === 0 || prompt.length > backend.contextLength)
      throw invalidRequest(
        `input ${i} has ${prompt.length} tokens, expected 1 to ${backend.contextLength}`,
        'input',
        'context_length_exceeded',
      );
    const wrong = prompt.find((id) => id >= backend.vocabSize);
    if (wrong !== undefined)
      throw invalidRequest(`input: ${wrong} is no token, ids end at ${backend.vocabSize - 1}`, 'input');
  }
  const deadline = new Deadline(service.clientSignal(c), service.limits.requestMs);
  const { signal } = deadline;
  let slot: Slot | null = null;
  try {
    slot = await model.admission.acquire(signal);
    const vectors = await backend.embed(prompts, signal);
    if (body.dimensions !== undefined && body.dimensions !== vectors[0].length)
      throw notSupported(`dimensions: this model has ${vectors[0].length}`, 'dimensions');
    const tokens = prompts.reduce((sum, prompt) => sum + prompt.length, 0);
    return c.json({
      object: 'list',
      model: model.name,
      data: vectors.map((vector, index) => ({
        object: 'embedding',
        index,
        embedding: encoded(vector, body.encoding_format),
      })),
      usage: { prompt_tokens: tokens, total_tokens: tokens },
    });
  } catch (error) {
    throw signal.aborted ? deadline.error() : error;
  } finally {
    slot?.release();
    deadline.clear();
  }
}

const encoded = (vector: Float32Array, format: 'float' | 'base64' = 'float'): number[] | string =>
  format === 'float'
    ? [...vector]
    : Buffer.from(vector.buffer, vector.byteOffset, vector.byteLength).toString('base64');
