/** Progress of long work: plain events, and reporters that show them to a person. */

export interface Progress {
  /** What is being done, such as `quantise`. */
  stage: string;
  done: number;
  total: number;
  unit: 'bytes' | 'rows' | 'tokens' | 'layers' | 'steps' | 'requests';
  /** Of this stage, where whoever does the work knows better than its speed so far says. */
  remainingSeconds?: number;
}

export type OnProgress = (progress: Progress) => void;

export interface ProgressReporter {
  report: OnProgress;
  /** Ends the line a bar stands on; call it before printing anything else. */
  finish(): void;
}

export interface ReporterOptions {
  /** @default process.stderr */
  stream?: { write(text: string): unknown; isTTY?: boolean; columns?: number };
  /** Print nothing. @default false */
  silent?: boolean;
  /** Milliseconds; passed in so that tests are exact. @default Date.now */
  now?: () => number;
}

/** A bar is redrawn at most this often: a terminal over ssh should not be the slowest part of the work. */
const BAR_INTERVAL_MS = 100;
/** Log files get a line this often, so that a watcher sees life and a log stays readable. */
const LINE_INTERVAL_MS = 3000;
const BAR_CELLS = 24;
/** A speed is known from this on. */
const LEAST_SECONDS = 5;

/** A bar on a terminal, a plain line every few seconds anywhere else, nothing when silent. */
export function progressReporter(options: ReporterOptions = {}): ProgressReporter {
  const stream = options.stream ?? process.stderr;
  const now = options.now ?? Date.now;
  if (options.silent) return { report: () => {}, finish: () => {} };
  const tty = stream.isTTY === true;
  const interval = tty ? BAR_INTERVAL_MS : LINE_INTERVAL_MS;
  let stage = '';
  let lastAt = -Infinity;
  let barShown = false;
  let complete = false;
  /** Where the stage stood when it was first heard of: what came out of a checkpoint took no time. */
  let first = { at: 0, done: 0 };

  const endBar = () => {
    if (barShown) stream.write('\n');
    barShown = false;
  };

  return {
    report(progress) {
      if (progress.stage !== stage) {
        endBar();
        stage = progress.stage;
        first = { at: now(), done: progress.done };
        lastAt = tty ? -Infinity : now();
        // Done at its first sign: it came out of a cache, and nobody waited for it.
        complete = progress.done >= progress.total;
      }
      if (complete) return;
      complete = progress.done >= progress.total;
      // A stage that ends within the first interval needs no line in a log.
      const due = now() - lastAt >= interval;
      if (!due && !(complete && tty)) return;
      lastAt = now();
      const left = timeLeft(progress, first, now());
      const text = `${tty ? bar(progress) : line(progress)}${left}`;
      // A wrapped line could not be redrawn in place.
      stream.write(tty ? `\r${text.slice(0, (stream.columns ?? 80) - 1)}\x1b[K` : `${text}\n`);
      barShown = tty;
      if (complete) endBar();
    },
    finish: endBar,
  };
}

/** Time that remains of a stage, by its speed since it was first heard of; empty while nothing is known. */
function timeLeft(p: Progress, first: { at: number; done: number }, now: number): string {
  if (p.done >= p.total) return '';
  const seconds = (now - first.at) / 1000;
  const known = seconds >= LEAST_SECONDS && p.done > first.done;
  const speed = known ? (seconds * (p.total - p.done)) / (p.done - first.done) : undefined;
  const left = p.remainingSeconds ?? speed;
  return left === undefined ? '' : `, ${formatSeconds(left)} left`;
}

/** 75 -> `1 min 15 s`, 4000 -> `67 min` */
export function formatSeconds(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.round(whole / 60)} min`;
}

const share = (p: Progress): number => (p.total > 0 ? Math.min(1, p.done / p.total) : 1);
const percent = (p: Progress): string => `${Math.floor(share(p) * 100)}`.padStart(3);
const line = (p: Progress): string => `${p.stage}: ${percent(p).trim()} % (${amounts(p)})`;

function bar(p: Progress): string {
  const full = Math.round(share(p) * BAR_CELLS);
  return `${p.stage} [${'#'.repeat(full)}${'.'.repeat(BAR_CELLS - full)}] ${percent(p)} % ${amounts(p)}`;
}

function amounts(p: Progress): string {
  if (p.unit !== 'bytes') return `${p.done} of ${p.total} ${p.unit}`;
  return `${formatBytes(p.done)} of ${formatBytes(p.total)}`;
}

/** 1536 -> `1.5 KiB` */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}
