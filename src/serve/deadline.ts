/** When a request ends whether it is answered or not: its client went, its time is up, or nobody needs it any more. */
import { setMaxListeners } from 'node:events';
import { ApiError, clientGone } from './api-error.js';

export class Deadline {
  readonly signal: AbortSignal;
  private readonly stopper = new AbortController();
  /** Not AbortSignal.timeout: that one keeps what listens to it until the time is up, answered or not. */
  private readonly timer: NodeJS.Timeout;
  private late = false;

  /** @param client fires when the client has gone */
  constructor(
    client: AbortSignal,
    private readonly milliseconds: number,
  ) {
    this.signal = AbortSignal.any([client, this.stopper.signal]);
    setMaxListeners(0, this.signal); // every waiting sequence listens
    this.timer = setTimeout(() => {
      this.late = true;
      this.stop();
    }, milliseconds);
  }

  /** Nobody needs the answer any more. */
  stop(): void {
    this.stopper.abort();
  }

  /** The request is answered. */
  clear(): void {
    clearTimeout(this.timer);
  }

  /** Why the signal fired. */
  error(): ApiError {
    if (!this.late) return clientGone();
    return new ApiError(504, `the request took longer than ${this.milliseconds / 1000} s`, {
      code: 'request_timeout',
    });
  }
}
