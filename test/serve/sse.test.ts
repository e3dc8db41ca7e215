/** Streams to readers that stop: over a real connection, without a model. */
import type { Server } from 'node:http';
import { connect, type AddressInfo, type Socket } from 'node:net';
import { createAdaptorServer } from '@hono/node-server';
import { Hono } from 'hono';
import { afterEach, describe, expect, it } from 'vitest';
import { eventStream } from '../../src/serve/sse.js';

const wait = (ms: number) => new Promise((done) => setTimeout(done, ms));

let server: Server;
let stopped = false;
let sent = 0;

/** Events of 64 KiB until somebody stops it, at most `most`. */
async function start(most: number, stallMs: number): Promise<Socket> {
  stopped = false;
  sent = 0;
  const app = new Hono();
  app.get('/', (c) =>
    eventStream(
      c,
      stallMs,
      () => (stopped = true),
      async (events) => {
        for (; sent < most && !stopped; sent++) {
          events.send({ text: 'x'.repeat(1 << 16) });
          await wait(1);
        }
        events.done();
      },
    ),
  );
  server = createAdaptorServer({ fetch: app.fetch, overrideGlobalObjects: false }) as Server;
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  const socket = connect((server.address() as AddressInfo).port, '127.0.0.1').on('error', () => {});
  socket.write('GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n');
  return socket;
}
afterEach(() => {
  server.close();
  server.closeAllConnections();
});

describe('a stream', () => {
  it('ends for a reader that takes nothing, and the connection is closed without the end mark', async () => {
    const socket = await start(100_000, 400);
    socket.pause();
    while (!stopped) await wait(20);
    expect(sent).toBeLessThan(100_000);
    let last = '';
    socket.on('data', (chunk) => (last = (last + chunk.toString('latin1')).slice(-100)));
    socket.resume();
    await new Promise((done) => socket.once('close', done));
    expect(last).not.toContain('[DONE]');
  });

  it('goes on for a slow reader, also when it takes much longer than that in all', async () => {
    const socket = await start(300, 2000);
    let last = '';
    const slow = async (): Promise<void> => {
      for await (const chunk of socket) {
        last = (last + String(chunk)).slice(-100);
        await wait(15);
      }
    };
    await slow();
    expect([stopped, sent]).toEqual([false, 300]);
    expect(last).toContain('[DONE]');
  });

  it('stops its work when the reader goes', async () => {
    const socket = await start(100_000, 400);
    await new Promise((done) => socket.once('data', done));
    socket.destroy();
    while (!stopped) await wait(5);
    expect(sent).toBeLessThan(100_000);
  });
});
