/** What every command gets: where to print, when to stop, and the flags all commands share. */
import { progressReporter, type ProgressReporter } from '../io/progress.js';

/** Why the process was asked to stop, and the exit code that says so (128 + signal number; a reader that left is no fault). */
const INTERRUPTIONS = { SIGINT: 130, SIGTERM: 143, closedOutput: 0 } as const;
export type Interruption = keyof typeof INTERRUPTIONS;

export class CliContext {
  /** One JSON document on stdout, errors included; no progress. */
  readonly json: boolean;
  /** Nothing on stderr but errors. */
  readonly quiet: boolean;
  /** Stacks of unexpected errors. */
  readonly verbose: boolean;
  interruption: Interruption | null = null;
  private readonly controller = new AbortController();
  private reporter: ProgressReporter | null = null;
  private afterNewline = true;

  constructor(readonly argv: readonly string[]) {
    const flags = argv.slice(0, argv.includes('--') ? argv.indexOf('--') : undefined);
    this.json = flags.includes('--json');
    this.quiet = flags.includes('--quiet') || flags.includes('-q');
    this.verbose = flags.includes('--verbose') || Boolean(process.env.DEBUG);
    process.on('SIGINT', () => this.interrupt('SIGINT'));
    process.on('SIGTERM', () => this.interrupt('SIGTERM'));
    process.stdout.on('error', (error) => this.outputFailed(error));
    process.stderr.on('error', () => {}); // nobody is left to tell
  }

  /** Aborted by Ctrl-C, SIGTERM, or when the reader of stdout has gone. */
  get signal(): AbortSignal {
    return this.controller.signal;
  }

  /** Exit code of a command that came to its end. */
  get exitCode(): number {
    return this.interruption ? INTERRUPTIONS[this.interruption] : 0;
  }

  /** The command did all that the interruption asked for: it came to its end. */
  settleInterruption(): void {
    this.interruption = null;
  }

  /** Text to stdout, as it is. */
  write(text: string): void {
    if (text === '') return;
    process.stdout.write(text);
    this.afterNewline = text.endsWith('\n');
  }

  print(line: string): void {
    this.write(`${line}\n`);
  }

  /** End a line that streamed text left open. */
  endLine(): void {
    if (!this.afterNewline) this.write('\n');
  }

  printJson(document: unknown): void {
    this.print(JSON.stringify(document, null, process.stdout.isTTY ? 2 : undefined));
  }

  /** A line for the person at the terminal, on stderr. */
  note(line: string): void {
    if (this.quiet) return;
    this.reporter?.finish();
    process.stderr.write(`${line}\n`);
  }

  warn(line: string): void {
    this.note(`warning: ${line}`);
  }

  get progress(): ProgressReporter {
    return (this.reporter ??= progressReporter({ silent: this.quiet }));
  }

  /** Wait until stdout took everything (pipes are asynchronous on some systems). */
  async flush(): Promise<void> {
    this.reporter?.finish();
    if (this.interruption === 'closedOutput' || process.stdout.destroyed) return;
    await new Promise<void>((resolve) => process.stdout.write('', () => resolve()));
  }

  /** The first one stops the work within a token; the second does not wait for it. */
  private interrupt(reason: 'SIGINT' | 'SIGTERM'): void {
    if (this.interruption) process.exit(INTERRUPTIONS[reason]);
    this.interruption = reason;
    this.controller.abort();
  }

  private outputFailed(error: NodeJS.ErrnoException): void {
    if (error.code !== 'EPIPE') throw error;
    this.interruption ??= 'closedOutput';
    this.controller.abort();
  }
}
