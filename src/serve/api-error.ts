/** Errors in OpenAI's form: `{error: {message, type, param, code}}` with a status. */
import type { ContentfulStatusCode } from 'hono/utils/http-status';
import { HybridError, type ErrorCode } from '../errors.js';

export type ErrorType = 'invalid_request_error' | 'authentication_error' | 'server_error';

interface Details {
  /** Name of the field at fault. */
  param?: string;
  code?: string;
  headers?: Record<string, string>;
}

export class ApiError extends Error {
  readonly type: ErrorType;
  readonly param: string | null;
  readonly code: string | null;
  readonly headers: Record<string, string>;

  constructor(
    readonly status: ContentfulStatusCode,
    message: string,
    { param, code, headers = {} }: Details = {},
  ) {
    super(message);
    this.type =
      status === 401 ? 'authentication_error' : status >= 500 ? 'server_error' : 'invalid_request_error';
    this.param = param ?? null;
    this.code = code ?? null;
    this.headers = headers;
  }

  get body(): { error: { message: string; type: ErrorType; param: string | null; code: string | null } } {
    return { error: { message: this.message, type: this.type, param: this.param, code: this.code } };
  }
}

export const invalidRequest = (message: string, param?: string, code?: string): ApiError =>
  new ApiError(400, message, { param, code });

/** Ask again later. */
export const unavailable = (message: string, retrySeconds: number, code: string): ApiError =>
  new ApiError(503, message, { code, headers: { 'retry-after': String(retrySeconds) } });

export const notSupported = (message: string, param?: string): ApiError =>
  invalidRequest(message, param, 'unsupported_parameter');

/** The client has gone: nobody reads the answer; the status is for the log. */
export const clientGone = (): ApiError =>
  new ApiError(499 as ContentfulStatusCode, 'the client closed the connection');

/** The request's fault, told by the library. */
const REQUEST_FAULTS: Partial<Record<ErrorCode, string>> = {
  CONTEXT_FULL: 'context_length_exceeded',
  TEMPLATE_INVALID: 'template_invalid',
  TOKENIZER_INVALID: 'tokenizer_failed',
  USAGE: 'invalid_value',
};

export function toApiError(thrown: unknown): ApiError {
  if (thrown instanceof ApiError) return thrown;
  if (!(thrown instanceof HybridError))
    return new ApiError(500, 'an unexpected error; the server’s log has it');
  const code = REQUEST_FAULTS[thrown.code];
  const message = thrown.hint ? `${thrown.message}. ${thrown.hint}` : thrown.message;
  if (code) return invalidRequest(message, undefined, code);
  return new ApiError(500, message, { code: thrown.code.toLowerCase() });
}
