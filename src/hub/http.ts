/**
 * Requests to the Hub: proxies from the environment, a token that never leaves the Hub's host, redirects
 * followed by hand, and patience with servers that ask for it (429, 503) or fail for a moment.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { EnvHttpProxyAgent, request, type Dispatcher } from 'undici';
import { HybridError } from '../errors.js';
import { TOOL_VERSION } from '../pack/tool-version.js';

export interface HubHttpOptions {
  /** @default HF_ENDPOINT, else the public Hub */
  endpoint?: string;
  token?: string | null;
  signal?: AbortSignal;
  /** Told before waiting. */
  onWait?: (message: string) => void;
  /** Passed in so that tests need no patience. @default timers */
  wait?: (milliseconds: number, signal?: AbortSignal) => Promise<unknown>;
}

export interface HubResponse {
  status: number;
  headers: Dispatcher.ResponseData['headers'];
  /** Of the response before any redirect: the Hub's own, which names the file's hash. */
  firstHeaders: Dispatcher.ResponseData['headers'];
  body: Dispatcher.ResponseData['body'];
}

const PUBLIC_HUB = 'https://huggingface.co';
const MAX_REDIRECTS = 5;
/** Tries of one request that fails in a way that may pass. */
const MAX_TRIES = 6;
const FIRST_DELAY_MS = 500;
/** Longer is for a person to decide. */
const MAX_WAIT_MS = 120_000;
const HEADERS_TIMEOUT_MS = 30_000;
/** Silence in the middle of a body. */
const BODY_TIMEOUT_MS = 30_000;
const PASSING: ReadonlySet<number> = new Set([408, 429, 500, 502, 503, 504]);

export class HubHttp {
  readonly endpoint: string;
  private readonly origin: string;
  private readonly dispatcher: Dispatcher;

  constructor(private readonly options: HubHttpOptions = {}) {
    const text = options.endpoint ?? process.env.HF_ENDPOINT ?? PUBLIC_HUB;
    const url = URL.canParse(text) ? new URL(text) : null;
    if (!url || !/^https?:$/.test(url.protocol)) {
      throw new HybridError(
        'USAGE',
        `HF_ENDPOINT is ${JSON.stringify(text)}, expected an http or https address`,
      );
    }
    this.origin = url.origin;
    this.endpoint = text.replace(/\/+$/, '');
    this.dispatcher = new EnvHttpProxyAgent({
      headersTimeout: HEADERS_TIMEOUT_MS,
      bodyTimeout: BODY_TIMEOUT_MS,
      connectTimeout: HEADERS_TIMEOUT_MS,
    });
  }

  /** GET, tried again while the failure may pass. @throws HybridError DOWNLOAD_FAILED or ABORTED */
  async get(url: string, headers: Record<string, string> = {}): Promise<HubResponse> {
    for (let tries = 1; ; tries++) {
      let delay = FIRST_DELAY_MS * 2 ** (tries - 1);
      let why: string;
      try {
        const response = await this.follow(url, headers);
        if (!PASSING.has(response.status)) return response;
        why = `${new URL(url).host} answers ${response.status}`;
        delay = retryAfter(response.headers['retry-after']) ?? delay;
        if (tries === MAX_TRIES || delay > MAX_WAIT_MS) {
          await response.body.dump();
          throw failed(
            url,
            `${why}${delay > MAX_WAIT_MS ? ` and asks to wait ${Math.ceil(delay / 1000)} s` : ''}`,
          );
        }
        await response.body.dump();
      } catch (error) {
        if (error instanceof HybridError) throw error;
        this.throwIfAborted();
        if (tries === MAX_TRIES) throw failed(url, describe(error), error);
        why = describe(error);
      }
      this.options.onWait?.(`${why}; trying again in ${(delay / 1000).toFixed(1)} s`);
      await this.pause(delay);
    }
  }

  /** The whole of a small answer. @throws HybridError when it is longer than maxBytes */
  async bytes(url: string, maxBytes: number, headers: Record<string, string> = {}): Promise<HubBytes> {
    const response = await this.get(url, headers);
    const chunks: Buffer[] = [];
    let length = 0;
    try {
      for await (const chunk of response.body) {
        length += (chunk as Buffer).length;
        if (length > maxBytes) {
          response.body.destroy();
          throw failed(url, `the answer is longer than ${maxBytes} bytes`);
        }
        chunks.push(chunk as Buffer);
      }
    } catch (error) {
      if (error instanceof HybridError) throw error;
      this.throwIfAborted();
      throw failed(url, describe(error), error);
    }
    return { status: response.status, headers: response.headers, bytes: Buffer.concat(chunks) };
  }

  /** `fetch` for libraries: through `bytes`, so that limits and rules are the same. */
  fetchWithin(maxBytes: number): typeof fetch {
    return async (input) => {
      const { status, headers, bytes } = await this.bytes(String(input), maxBytes, {
        accept: 'application/json',
      });
      const plain = Object.entries(headers).flatMap(([name, value]) =>
        value === undefined ? [] : [[name, String(value)] as [string, string]],
      );
      return new Response(new Uint8Array(bytes), { status, headers: plain });
    };
  }

  /** Also from within a transfer that waits before it goes on. */
  async pause(milliseconds: number): Promise<void> {
    const { wait = (ms, signal) => sleep(ms, undefined, { signal }), signal } = this.options;
    await wait(milliseconds, signal).catch(() => {});
    this.throwIfAborted();
  }

  async close(): Promise<void> {
    await this.dispatcher.destroy();
  }

  throwIfAborted(): void {
    if (this.options.signal?.aborted) throw new HybridError('ABORTED', 'the download was stopped');
  }

  private async follow(start: string, headers: Record<string, string>): Promise<HubResponse> {
    let url = start;
    let firstHeaders: HubResponse['headers'] | null = null;
    for (let hops = 0; hops <= MAX_REDIRECTS; hops++) {
      const response = await request(url, {
        dispatcher: this.dispatcher,
        signal: this.options.signal,
        headers: {
          'user-agent': `hybrid-infer/${TOOL_VERSION}`,
          'accept-encoding': 'identity',
          ...headers,
          ...this.authorization(url),
        },
      });
      firstHeaders ??= response.headers;
      const { location } = response.headers;
      const redirects =
        response.statusCode >= 300 && response.statusCode < 400 && typeof location === 'string';
      if (!redirects)
        return { status: response.statusCode, headers: response.headers, firstHeaders, body: response.body };
      await response.body.dump();
      const next = URL.canParse(location, url) ? new URL(location, url) : null;
      if (!next || !/^https?:$/.test(next.protocol))
        throw failed(url, 'it redirects to something that is no address');
      if (new URL(url).protocol === 'https:' && next.protocol === 'http:')
        throw failed(url, `it redirects from https to http (${next.host})`);
      url = next.href;
    }
    throw failed(start, `more than ${MAX_REDIRECTS} redirects`);
  }

  /** Only for the Hub's own scheme, host and port: storage hosts have signed addresses instead. */
  private authorization(url: string): Record<string, string> {
    const { token } = this.options;
    return token && new URL(url).origin === this.origin ? { authorization: `Bearer ${token}` } : {};
  }
}

export interface HubBytes {
  status: number;
  headers: HubResponse['headers'];
  bytes: Buffer;
}

/** Seconds or a date. @returns milliseconds; null when the server says nothing that can be read */
export function retryAfter(value: string | string[] | undefined, now = Date.now()): number | null {
  if (typeof value !== 'string') return null;
  if (/^\d{1,9}$/.test(value)) return Number(value) * 1000;
  const date = Date.parse(value);
  return Number.isNaN(date) ? null : Math.max(0, date - now);
}

/** Without the query: signed addresses carry secrets there. */
const shown = (url: string): string => url.split('?')[0];

export function failed(url: string, why: string, cause?: unknown): HybridError {
  return new HybridError('DOWNLOAD_FAILED', `${shown(url)}: ${why}`, {
    hint: 'Run the same command again: it goes on where it was.',
    cause,
  });
}

export function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const cause = error.cause instanceof Error ? error.cause : error;
  const { code } = cause as NodeJS.ErrnoException;
  return code && !cause.message.includes(code) ? `${cause.message} (${code})` : cause.message || String(code);
}
