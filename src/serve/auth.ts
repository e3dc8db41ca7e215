/** API keys: `Authorization: Bearer <key>`, compared in constant time, never logged. */
import { createHash, timingSafeEqual } from 'node:crypto';
import type { MiddlewareHandler } from 'hono';
import { ApiError } from './api-error.js';

/** Longer than any key; what is longer is not even hashed. */
const MAX_KEY = 1024;

const digest = (key: string): Buffer => createHash('sha256').update(key).digest();

/** @param keys none: everybody may */
export function requireKey(keys: readonly string[]): MiddlewareHandler {
  const known = keys.map(digest);
  return async (c, next) => {
    if (known.length > 0 && !isKnown(known, c.req.header('authorization'))) {
      throw new ApiError(401, 'a valid API key is needed: Authorization: Bearer <key>', {
        code: 'invalid_api_key',
        headers: { 'www-authenticate': 'Bearer' },
      });
    }
    await next();
  };
}

function isKnown(known: readonly Buffer[], header: string | undefined): boolean {
  const given = /^Bearer +(\S+)$/i.exec((header ?? '').slice(0, MAX_KEY + 8))?.[1] ?? '';
  const hash = digest(given);
  // Every key is looked at, so that the time says nothing about which one matched.
  let found = false;
  for (const key of known) found = timingSafeEqual(hash, key) || found;
  return found;
}
