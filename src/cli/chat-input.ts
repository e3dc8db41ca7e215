/** Lines from a terminal or a pipe, and how several become one message. */
import { chmodSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';
import { writeFileAtomic } from '../io/atomic-write.js';
import { cacheDir } from '../io/paths.js';

const BLOCK = '"""';
const MAX_HISTORY = 500;

/** Collects lines: `\` at the end goes on, `"""` begins and ends a block of lines. */
export class MessageLines {
  private lines: string[] = [];
  private block = false;

  /** More lines are needed. */
  get open(): boolean {
    return this.block || this.lines.length > 0;
  }

  /** @returns the message, null while it goes on */
  push(line: string): string | null {
    if (this.block) {
      if (!line.trimEnd().endsWith(BLOCK)) {
        this.lines.push(line);
        return null;
      }
      this.lines.push(line.trimEnd().slice(0, -BLOCK.length));
      return this.take();
    }
    if (this.lines.length === 0 && line.startsWith(BLOCK)) {
      const rest = line.slice(BLOCK.length);
      if (rest.trimEnd().endsWith(BLOCK)) return rest.trimEnd().slice(0, -BLOCK.length);
      this.block = true;
      if (rest !== '') this.lines.push(rest);
      return null;
    }
    if (line.endsWith('\\')) {
      this.lines.push(line.slice(0, -1));
      return null;
    }
    this.lines.push(line);
    return this.take();
  }

  /** What there is, at the end of the input or when the user takes it back. */
  take(): string {
    const text = this.lines.join('\n');
    this.lines = [];
    this.block = false;
    return text;
  }
}

const historyFile = (): string => join(cacheDir(), 'chat-history');

/** On a terminal with history and editing; on a pipe plain lines. */
export function openInput(): Interface {
  const terminal = process.stdin.isTTY === true && process.stdout.isTTY === true;
  const history = terminal ? readHistory() : [];
  return createInterface({
    input: process.stdin,
    output: terminal ? process.stdout : undefined,
    terminal,
    history,
    historySize: MAX_HISTORY,
  });
}

function readHistory(): string[] {
  try {
    // The newest first, as readline keeps them.
    return readFileSync(historyFile(), 'utf8').split('\n').filter(Boolean).slice(-MAX_HISTORY).reverse();
  } catch {
    return [];
  }
}

/** Best effort: a chat must not fail because its history cannot be kept. */
export async function saveHistory(input: Interface): Promise<void> {
  const { history } = input as Interface & { history?: string[] };
  if (!history || history.length === 0) return;
  try {
    mkdirSync(cacheDir(), { recursive: true });
    await writeFileAtomic(historyFile(), [...history].reverse().join('\n') + '\n');
    chmodSync(historyFile(), 0o600); // people write private things
  } catch {
    // Nothing depends on it.
  }
}
