/**
 * A server that speaks the Hub's API, as far as downloads need it, on this machine: repositories with commits,
 * LFS files behind a redirect to a storage server with another origin, ranges, and faults on request.
 */
import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface Seen {
  host: 'hub' | 'storage';
  path: string;
  authorization: string | undefined;
  range: string | undefined;
}

export type Fault = (seen: Seen, response: ServerResponse, content: Buffer | null) => boolean;

export const REPOSITORY = 'tester/tiny-model';
export const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');
export const gitHash = (bytes: Buffer): string =>
  createHash('sha1').update(`blob ${bytes.length}\0`).update(bytes).digest('hex');

export class HubServer {
  readonly seen: Seen[] = [];
  /** Answers instead of the server when it returns true. */
  fault: Fault = () => false;
  /** What the listing says, after `change`. */
  change: (entries: Record<string, unknown>[]) => unknown = (entries) => entries;
  private commit = '';
  private files = new Map<string, Buffer>();
  private readonly history = new Map<string, Map<string, Buffer>>();
  private hub!: Server;
  private storage!: Server;

  static async start(files: Record<string, Buffer>): Promise<HubServer> {
    const server = new HubServer();
    server.publish(files);
    server.hub = await listening((request, response) => server.answer('hub', request, response));
    server.storage = await listening((request, response) => server.answer('storage', request, response));
    return server;
  }

  /** A new commit on main. @returns its hash */
  publish(files: Record<string, Buffer>): string {
    this.files = new Map(Object.entries(files));
    this.commit = gitHash(Buffer.from(JSON.stringify([...this.files].map(([path, b]) => [path, sha256(b)]))));
    this.history.set(this.commit, this.files);
    return this.commit;
  }

  get endpoint(): string {
    return `http://127.0.0.1:${(this.hub.address() as AddressInfo).port}`;
  }

  get storageOrigin(): string {
    return `http://127.0.0.1:${(this.storage.address() as AddressInfo).port}`;
  }

  async close(): Promise<void> {
    for (const server of [this.hub, this.storage]) {
      server.closeAllConnections();
      await new Promise((done) => server.close(done));
    }
  }

  private answer(host: Seen['host'], request: IncomingMessage, response: ServerResponse): void {
    const url = new URL(request.url!, 'http://localhost');
    const { authorization, range } = request.headers;
    const seen: Seen = { host, path: url.pathname, authorization, range };
    this.seen.push(seen);
    response.on('error', () => {});
    const content = this.contentOf(url.pathname);
    if (this.fault(seen, response, content)) return;
    if (
      url.pathname === `/api/models/${REPOSITORY}/revision/main` ||
      url.pathname.startsWith(`/api/models/${REPOSITORY}/revision/${this.commit}`)
    ) {
      return sendJson(response, {
        _id: '1',
        id: REPOSITORY,
        sha: this.commit,
        gated: false,
        private: false,
        lastModified: new Date(0),
        cardData: { license: 'mit' },
      });
    }
    if (url.pathname.startsWith(`/api/models/${REPOSITORY}/tree/`))
      return sendJson(response, this.change(this.entries()));
    if (content === null) {
      response.writeHead(404, { 'content-type': 'application/json' }).end('{"error":"Repository not found"}');
    } else if (host === 'hub' && isLarge(url.pathname)) {
      const location = `${this.storageOrigin}${url.pathname}?signature=secret`;
      response
        .writeHead(302, {
          location,
          'x-linked-etag': `"${sha256(content)}"`,
          'x-linked-size': content.length,
        })
        .end();
    } else sendFile(response, content, range, `"${gitHash(content)}"`);
  }

  private contentOf(path: string): Buffer | null {
    const match = new RegExp(`^/${REPOSITORY}/resolve/([0-9a-f]{40})/(.*)$`).exec(path);
    return (match && this.history.get(match[1])?.get(decodeURIComponent(match[2]))) ?? null;
  }

  private entries(): Record<string, unknown>[] {
    return [...this.files].map(([path, bytes]) => ({
      type: 'file',
      path,
      size: bytes.length,
      oid: gitHash(bytes),
      ...(isLarge(path) ? { lfs: { oid: sha256(bytes), size: bytes.length, pointerSize: 130 } } : {}),
    }));
  }
}

const isLarge = (path: string): boolean => /\.(safetensors|gguf|bin)$/.test(path);

function listening(answer: (request: IncomingMessage, response: ServerResponse) => void): Promise<Server> {
  const server = createServer(answer);
  return new Promise((done) => server.listen(0, '127.0.0.1', () => done(server)));
}

function sendJson(response: ServerResponse, value: unknown): void {
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(value));
}

export function sendFile(
  response: ServerResponse,
  content: Buffer,
  range: string | undefined,
  etag?: string,
): void {
  const match = range ? /^bytes=(\d+)-(\d*)$/.exec(range) : null;
  const headers: Record<string, string | number> = etag ? { etag } : {};
  if (!match) {
    response.writeHead(200, { ...headers, 'content-length': content.length }).end(content);
    return;
  }
  const begin = Number(match[1]);
  const end = match[2] ? Math.min(content.length - 1, Number(match[2])) : content.length - 1;
  if (begin >= content.length) {
    response.writeHead(416).end();
    return;
  }
  headers['content-range'] = `bytes ${begin}-${end}/${content.length}`;
  response
    .writeHead(206, { ...headers, 'content-length': end - begin + 1 })
    .end(content.subarray(begin, end + 1));
}
