/** Server-sent events with an end for readers that stop reading. */
import type { Context } from 'hono';
import { toApiError } from './api-error.js';

/** What is written but not taken by the connection; beyond it the client counts as not reading. */
const HIGH_WATER_BYTES = 256 << 10;
/** A comment now and then, so that proxies do not close a connection whose prompt takes long. */
const PING_MS = 15_000;

export interface EventStream {
  /** One event: `data: <json>`; named events (the Responses API) also have a line `event:`. */
  send(data: object, event?: string): void;
  /** The literal end mark of the completions APIs. */
  done(): void;
}

/**
 * Answer with events while `produce` runs. Errors in it become one last event.
 * @param stop ends the work when the client has gone or takes nothing for `stallMs`
 */
export function eventStream(
  c: Context,
  stallMs: number,
  stop: () => void,
  produce: (events: EventStream) => Promise<void>,
): Response {
  const encoder = new TextEncoder();
  let timers: NodeJS.Timeout[] = [];
  let closed = false;
  let taken = performance.now();
  const close = (): void => {
    closed = true;
    timers.forEach(clearInterval);
    timers = [];
  };
  const stream = new ReadableStream<Uint8Array>(
    {
      start(controller) {
        const write = (text: string): void => {
          if (!closed) controller.enqueue(encoder.encode(text));
        };
        const giveUp = (): void => {
          if (closed) return;
          close();
          stop();
          controller.error(new Error('the client does not read'));
        };
        timers = [
          setInterval(() => write(': ping\n\n'), PING_MS),
          setInterval(
            () => {
              const full = (controller.desiredSize ?? 0) <= 0;
              if (full && performance.now() - taken > stallMs) giveUp();
            },
            Math.min(1000, stallMs),
          ),
        ];
        const events: EventStream = {
          send: (data, event) =>
            write(`${event ? `event: ${event}\n` : ''}data: ${JSON.stringify(data)}\n\n`),
          done: () => write('data: [DONE]\n\n'),
        };
        void produce(events)
          .catch((error: unknown) => events.send(toApiError(error).body))
          .finally(() => {
            if (closed) return;
            close();
            controller.close();
          });
      },
      pull() {
        taken = performance.now();
      },
      cancel() {
        close();
        stop();
      },
    },
    new ByteLengthQueuingStrategy({ highWaterMark: HIGH_WATER_BYTES }),
  );
  return c.body(stream, 200, {
    'content-type': 'text/event-stream; charset=utf-8',
    'cache-control': 'no-cache',
    // nginx would otherwise collect the events.
    'x-accel-buffering': 'no',
  });
}
