/**
 * Whose turn it is: shared work runs side by side, exclusive work alone; both begin in the order they came.
 * Shared work that comes while exclusive work waits queues behind it, so that nobody starves.
 */
interface Waiting {
  exclusive: boolean;
  begin: () => void;
}

export class Turns {
  private readonly queue: Waiting[] = [];
  private active = 0;
  private exclusiveActive = false;
  private idle: (() => void)[] = [];

  /** Run `work` in its turn; null when `signal` fires while it still waits. */
  async run<T>(
    exclusive: boolean,
    signal: AbortSignal | undefined,
    work: () => Promise<T>,
  ): Promise<T | null> {
    if (!(await this.enter(exclusive, signal))) return null;
    try {
      return await work();
    } finally {
      this.leave();
    }
  }

  /** Resolves when nothing runs or waits. */
  drained(): Promise<void> {
    if (this.active === 0 && this.queue.length === 0) return Promise.resolve();
    return new Promise((resolve) => this.idle.push(resolve));
  }

  private enter(exclusive: boolean, signal?: AbortSignal): Promise<boolean> {
    if (signal?.aborted) return Promise.resolve(false);
    return new Promise((resolve) => {
      const waiting: Waiting = {
        exclusive,
        begin: () => {
          signal?.removeEventListener('abort', leave);
          resolve(true);
        },
      };
      const leave = (): void => {
        const at = this.queue.indexOf(waiting);
        if (at < 0) return;
        this.queue.splice(at, 1);
        resolve(false);
        this.admit();
      };
      signal?.addEventListener('abort', leave, { once: true });
      this.queue.push(waiting);
      this.admit();
    });
  }

  private leave(): void {
    this.active--;
    this.exclusiveActive = false;
    this.admit();
  }

  private admit(): void {
    while (this.queue.length > 0 && !this.exclusiveActive) {
      const next = this.queue[0];
      if (next.exclusive && this.active > 0) return;
      this.queue.shift();
      this.active++;
      this.exclusiveActive = next.exclusive;
      next.begin();
    }
    if (this.active === 0 && this.queue.length === 0) {
      for (const resolve of this.idle.splice(0)) resolve();
    }
  }
}
