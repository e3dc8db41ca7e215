/** One file, cut at every byte. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { HubHttp } from '../../src/hub/http.js';
import { fetchBlob } from '../../src/hub/transfer.js';
import type { RemoteFile } from '../../src/hub/verify.js';
import { gitHash, sha256 } from './hub-server.js';

const content = Buffer.from(Array.from({ length: 48 }, (_, i) => (i * 37 + 11) % 256));
let server: Server;
let folder: string;
let cuts: number[] = [];

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'hybrid-infer-transfer-'));
  server = createServer((request, response) => {
    const begin = Number(/\d+/.exec(request.headers.range ?? '')?.[0] ?? 0);
    const end = Math.max(begin, cuts.shift() ?? content.length);
    response.writeHead(begin ? 206 : 200, {
      'content-length': content.length - begin,
      ...(begin ? { 'content-range': `bytes ${begin}-${content.length - 1}/${content.length}` } : {}),
    });
    if (end === content.length) return void response.end(content.subarray(begin));
    response.flushHeaders();
    response.write(content.subarray(begin, end), () => setImmediate(() => response.destroy()));
  });
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
});
afterAll(() => {
  server.closeAllConnections();
  server.close();
  rmSync(folder, { recursive: true });
});

const files: RemoteFile[] = [
  { path: 'large', size: content.length, hash: { kind: 'sha256', hex: sha256(content) } },
  { path: 'small', size: content.length, hash: { kind: 'git', hex: gitHash(content) } },
];

it.each(files)('a file of $hash.kind cut at any byte is resumed and is the same', async (file) => {
  const http = new HubHttp({ endpoint: 'http://127.0.0.1', wait: async () => {} });
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
  for (let at = 0; at < content.length; at++) {
    cuts = [at, Math.min(content.length - 1, at + 5)];
    const blob = await fetchBlob(http, url, file, folder);
    expect(readFileSync(blob).equals(content)).toBe(true);
    expect(existsSync(`${blob}.part`)).toBe(false);
    rmSync(blob);
  }
  await http.close();
});

it('gives up when no byte comes any more, and keeps what there is for the next try', async () => {
  const http = new HubHttp({ endpoint: 'http://127.0.0.1', wait: async () => {} });
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
  cuts = Array.from({ length: 50 }, () => 7);
  await expect(fetchBlob(http, url, files[0], folder)).rejects.toMatchObject({ code: 'DOWNLOAD_FAILED' });
  expect(readFileSync(join(folder, 'blobs', `${files[0].hash.hex}.part`))).toHaveLength(7);
  await http.close();
});
