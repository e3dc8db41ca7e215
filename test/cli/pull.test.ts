/** `pull`, `list`, `rm` and a pulled name, as a user types them, against a server on this machine. */
import { createServer, type Server } from 'node:http';
import { connect, type AddressInfo } from 'node:net';
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { HubServer, REPOSITORY, sha256 } from '../hub/hub-server.js';
import { tinyFiles, tree } from '../hub/fixture.js';
import { cli, finished, json, scratch, start } from './command.js';

const files = tinyFiles({ hiddenSize: 128, intermediateSize: 512, maxContext: 64 });
const weights = files['model.safetensors'];
let server: HubServer;

beforeAll(async () => {
  server = await HubServer.start(files);
  process.env.HF_ENDPOINT = server.endpoint;
  process.env.HF_TOKEN = 'hf_test';
  process.env.HF_HOME = scratch('hf');
  mkdirSync(scratch('hf'), { recursive: true });
});
afterAll(() => server.close());

const snapshots = () => tree(scratch('hf')).filter((path) => path.includes('/snapshots/'));

describe('pull', () => {
  it(
    'killed in the middle leaves nothing that looks whole, and goes on from there',
    { timeout: 180_000 },
    async () => {
      const half = Math.floor(weights.length / 2);
      server.fault = (seen, response, content) => {
        if (seen.host !== 'storage' || seen.range !== undefined || !content) return false;
        response.writeHead(200, { 'content-length': content.length });
        response.write(content.subarray(0, half)); // and then nothing more
        return true;
      };
      const child = start(['pull', REPOSITORY]);
      const outcome = finished(child);
      const part = scratch(`hf/hub/models--tester--tiny-model/blobs/${sha256(weights)}.part`);
      while (sizeOf(part) < half) await new Promise((done) => setTimeout(done, 20));
      child.kill('SIGKILL');
      expect((await outcome).code).toBe(137);
      expect(snapshots()).toEqual([]);
      expect((await json<{ error: { hint: string } }>(['inspect', `hf:${REPOSITORY}`])).error.hint).toContain(
        'hybrid-infer pull',
      );

      server.fault = () => false;
      const again = await json<{ path: string; downloadedBytes: number; estimate: object }>([
        'pull',
        REPOSITORY,
      ]);
      expect(again.code).toBe(0);
      expect(server.seen.at(-1)!.range).toBe(`bytes=${half}-`);
      expect(again.downloadedBytes).toBe(weights.length - half);
      expect(readFileSync(join(again.path, 'model.safetensors')).equals(weights)).toBe(true);
      expect(again.estimate).toMatchObject({ quant: 'q8', fits: true, tokensPerSecond: expect.any(Number) });
    },
  );

  it('on a disk that takes no more says so, and goes on when there is room', async () => {
    await cli(['rm', REPOSITORY]);
    const room = 64 * 1024;
    expect(weights.length).toBeGreaterThan(2 * room);
    const outcome = await finished(start(['pull', REPOSITORY, '--json'], room));
    expect([outcome.code, JSON.parse(outcome.stdout)]).toMatchObject([1, { error: { code: 'IO_FAILED' } }]);
    expect(snapshots()).toEqual([]);
    const again = await json<{ path: string; downloadedBytes: number }>(['pull', REPOSITORY]);
    expect(readFileSync(join(again.path, 'model.safetensors')).equals(weights)).toBe(true);
  });

  it('says what it needs before the download, and with --estimate nothing else', async () => {
    await cli(['rm', REPOSITORY]);
    const { code, stdout, stderr } = await cli(['pull', REPOSITORY, '--estimate', '--quant', 'q4']);
    expect(code).toBe(0);
    expect(stderr).toMatch(/license: mit/);
    expect(stderr).toMatch(/in q4 it takes .* and fits into .*; about \d+\.\d tokens\/s at/);
    expect(stdout).toMatch(/to download; the weights were left/);
    expect(snapshots()).toEqual([]);
  });

  it('refuses a name that is none with exit code 2', async () => {
    expect(await json(['pull', '../x'])).toMatchObject({ code: 2, error: { code: 'USAGE' } });
    expect(await json(['pull', 'nobody/nothing'])).toMatchObject({
      code: 2,
      error: { code: 'FILE_NOT_FOUND' },
    });
  });

  it('goes through the proxy of the environment', async () => {
    const seen: string[] = [];
    const proxy = await tunnel(seen);
    process.env.HTTP_PROXY =
      process.env.http_proxy = `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`;
    try {
      expect((await json(['pull', REPOSITORY, '--estimate'])).code).toBe(0);
      expect(seen).toContain(server.endpoint.slice('http://'.length));
    } finally {
      delete process.env.HTTP_PROXY;
      delete process.env.http_proxy;
      proxy.close();
      proxy.closeAllConnections();
    }
  });
});

describe('a pulled model', () => {
  it('is listed, run by its name, and removed', async () => {
    expect((await cli(['pull', REPOSITORY])).code).toBe(0);
    const { models } = await json<{ models: { name: string }[] }>(['list']);
    expect(models).toMatchObject([{ name: `hf:${REPOSITORY}` }]);
    const run = await json<{ model: string; tokens: number[] }>([
      'run',
      `hf:${REPOSITORY}`,
      'Once',
      '-n',
      '3',
      '--ignore-eos',
    ]);
    expect(run).toMatchObject({ code: 0, model: 'tiny-model' });
    expect(run.tokens).toHaveLength(3);
    expect(await json(['rm', REPOSITORY])).toMatchObject({ code: 0, repository: REPOSITORY });
    expect(tree(scratch('hf/hub'))).toEqual([]);
    expect(await json(['run', `hf:${REPOSITORY}`, 'Once'])).toMatchObject({
      code: 2,
      error: { code: 'FILE_NOT_FOUND' },
    });
  });
});

function sizeOf(path: string): number {
  try {
    return readFileSync(path).length;
  } catch {
    return -1;
  }
}

/** A proxy that opens tunnels and writes down where to. */
function tunnel(seen: string[]): Promise<Server> {
  const proxy = createServer();
  proxy.on('connect', (request, socket, head) => {
    seen.push(request.url!);
    const [host, port] = request.url!.split(':');
    const upstream = connect(Number(port), host, () => {
      socket.write('HTTP/1.1 200 OK\r\n\r\n');
      upstream.write(head);
      upstream.pipe(socket).pipe(upstream);
    });
    upstream.on('error', () => socket.destroy());
    socket.on('error', () => upstream.destroy());
  });
  return new Promise((done) => proxy.listen(0, '127.0.0.1', () => done(proxy)));
}
