/** The user's Hub token: HF_TOKEN, else the file that `hf auth login` writes. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { UsageError } from '../errors.js';
import { hubHome } from './layout.js';

export function hubToken(env: NodeJS.ProcessEnv = process.env): string | null {
  const given = (env.HF_TOKEN ?? env.HUGGING_FACE_HUB_TOKEN ?? fromFile(env) ?? '').trim();
  // Anything else in a header would be an error of the HTTP library that shows the token.
  if (!/^[\x21-\x7e]{0,4096}$/.test(given))
    throw new UsageError('HF_TOKEN holds characters that no token has');
  return given === '' ? null : given;
}

function fromFile(env: NodeJS.ProcessEnv): string | null {
  try {
    return readFileSync(env.HF_TOKEN_PATH ?? join(hubHome(env), 'token'), 'utf8');
  } catch {
    return null;
  }
}
