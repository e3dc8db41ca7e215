/** Request bodies: bounded, UTF-8, JSON with one meaning, then a schema that knows every field by name. */
import type { Context } from 'hono';
import type { z } from 'zod';
import { parseStrictJson } from '../io/strict-json.js';
import { ApiError, invalidRequest, notSupported } from './api-error.js';

/** Values in one body; a prompt of token ids is the longest list there is. */
const MAX_VALUES = 1 << 18;

/** @throws ApiError 400, 408, 413 or 415 */
export async function readJson(c: Context, maxBytes: number): Promise<unknown> {
  const encoding = c.req.header('content-encoding') ?? 'identity';
  if (encoding !== 'identity')
    throw new ApiError(415, `content-encoding ${short(encoding)} is not supported, expected none`);
  // Also what keeps web pages of other origins out: they may send plain text without being asked first.
  const type = c.req.header('content-type') ?? '';
  if (!/^application\/json\s*(;|$)/i.test(type))
    throw new ApiError(415, `content-type is ${short(type) || 'missing'}, expected application/json`);
  const bytes = await readBytes(c, maxBytes);
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw invalidRequest('the body is not valid UTF-8');
  }
  return parseStrictJson(text, 'the body', (message) => invalidRequest(message), MAX_VALUES);
}

async function readBytes(c: Context, maxBytes: number): Promise<Uint8Array> {
  const tooLarge = () =>
    new ApiError(413, `the body is larger than ${maxBytes} bytes`, { headers: { connection: 'close' } });
  if (Number(c.req.header('content-length') ?? 0) > maxBytes) throw tooLarge();
  const reader = c.req.raw.body?.getReader();
  const chunks: Uint8Array[] = [];
  let length = 0;
  try {
    for (;;) {
      const next = await reader?.read();
      if (!next || next.done) break;
      length += next.value.byteLength;
      if (length > maxBytes) {
        void reader?.cancel().catch(() => {});
        throw tooLarge();
      }
      chunks.push(next.value);
    }
  } catch (error) {
    if (error instanceof ApiError) throw error;
    throw new ApiError(408, 'the body did not arrive');
  }
  return Buffer.concat(chunks);
}

/** @throws ApiError 400 naming the field, what was expected and what was found */
export function parseBody<T extends z.ZodType>(schema: T, value: unknown): z.infer<T> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = mostSpecific(result.error.issues);
  const path = issue.path.map(String);
  if (issue.code === 'unrecognized_keys') {
    const name = [...path, issue.keys[0]].join('.');
    throw notSupported(`${short(name)} is not a parameter this server knows`, name);
  }
  const param = path.join('.');
  throw invalidRequest(
    param ? `${short(param)}: ${issue.message}` : issue.message,
    param || undefined,
    'invalid_value',
  );
}

/** Of a union, what is wrong with the alternative that was meant: the one that got furthest. */
function mostSpecific(issues: readonly z.core.$ZodIssue[]): z.core.$ZodIssue {
  const [issue] = issues;
  if (issue.code !== 'invalid_union') return issue;
  const inner = issue.errors.filter((list) => list.length > 0).map(mostSpecific);
  const reach = (i: z.core.$ZodIssue): number => 2 * i.path.length + (i.code === 'invalid_type' ? 0 : 1);
  const best = [...inner].sort((a, b) => reach(b) - reach(a))[0];
  if (!best) return issue;
  const message = reach(best) > 0 ? best.message : [...new Set(inner.map((i) => i.message))].join(', or ');
  return { ...best, message, path: [...issue.path, ...best.path] } as z.core.$ZodIssue;
}

const short = (text: string): string => (text.length > 100 ? `${text.slice(0, 100)}...` : text);
