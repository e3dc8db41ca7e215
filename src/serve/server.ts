/** Listening, and ending: connections have limits and time-outs; a drain lets running requests finish. */
import type { Server } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { createAdaptorServer } from '@hono/node-server';
import { HybridError } from '../errors.js';
import { ApiError } from './api-error.js';
import { createApp, type AppOptions } from './app.js';
import type { Service } from './service.js';

export interface ListenOptions extends AppOptions {
  host: string;
  /** 0: any that is free. */
  port: number;
}

/** Headers in bytes; a request of this API needs hundreds. */
const MAX_HEADER_BYTES = 16 << 10;
const HEADERS_MS = 10_000;
const KEEP_ALIVE_MS = 5_000;
const CHECK_MS = 1_000;
/** TCP asks a silent peer whether it is there. */
const TCP_PROBE_MS = 15_000;

export class ApiServer {
  private constructor(
    private readonly service: Service,
    private readonly http: Server,
    readonly url: string,
  ) {}

  /** @throws HybridError IO_FAILED when the address cannot be had */
  static async listen(service: Service, options: ListenOptions): Promise<ApiServer> {
    const app = createApp(service, options);
    const http = createAdaptorServer({
      fetch: app.fetch as Parameters<typeof createAdaptorServer>[0]['fetch'],
      // The process's own fetch and Response stay as they are.
      overrideGlobalObjects: false,
      serverOptions: {
        maxHeaderSize: MAX_HEADER_BYTES,
        connectionsCheckingInterval: CHECK_MS,
        requireHostHeader: true,
      },
    }) as Server;
    const { arrivalMs, connections } = service.limits;
    http.headersTimeout = Math.min(HEADERS_MS, arrivalMs);
    http.requestTimeout = arrivalMs;
    http.keepAliveTimeout = KEEP_ALIVE_MS;
    http.maxConnections = connections;
    http.on('connection', (socket: Socket) => socket.setKeepAlive(true, TCP_PROBE_MS));
    http.on('clientError', refuseMalformed);
    await new Promise<void>((resolve, reject) => {
      http.once('error', (cause: Error) =>
        reject(
          new HybridError('IO_FAILED', `cannot listen on ${options.host}:${options.port}: ${cause.message}`, {
            hint: 'Choose another --port, or end the program that uses it.',
            cause,
          }),
        ),
      );
      http.listen(options.port, options.host, resolve);
    });
    const { port } = http.address() as AddressInfo;
    const host = options.host.includes(':') ? `[${options.host}]` : options.host;
    return new ApiServer(service, http, `http://${host}:${port}`);
  }

  /** No new requests; running ones end, or are cut off after `limits.drainMs`. */
  async drain(): Promise<void> {
    this.service.state = 'draining';
    const closed = new Promise<void>((resolve) => this.http.close(() => resolve()));
    // Connections that wait for their next request end now; the others say `connection: close`.
    this.http.closeIdleConnections();
    const idle = setInterval(() => {
      if (this.service.active === 0) this.http.closeAllConnections();
    }, 100);
    const cut = setTimeout(() => this.http.closeAllConnections(), this.service.limits.drainMs);
    await closed;
    clearInterval(idle);
    clearTimeout(cut);
    await this.service.close();
  }
}

const STATUS: Readonly<Record<string, [number, string]>> = {
  HPE_HEADER_OVERFLOW: [431, 'the headers are too large'],
  ERR_HTTP_REQUEST_TIMEOUT: [408, 'the request did not arrive in time'],
};
const REASONS: Readonly<Record<number, string>> = {
  400: 'Bad Request',
  408: 'Request Timeout',
  431: 'Request Header Fields Too Large',
};

/** What is not HTTP never reaches the routes; it gets the same form of answer. */
function refuseMalformed(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy();
    return;
  }
  const [status, message] = STATUS[error.code ?? ''] ?? [400, 'this is not a well-formed HTTP request'];
  const body = JSON.stringify(new ApiError(status as 400, message).body);
  const head = `HTTP/1.1 ${status} ${REASONS[status]}\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n`;
  socket.end(head + body);
}
