/** One temporary folder for the whole run, removed at its end: tests leave nothing behind, even killed ones. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export default function setup(): () => void {
  const folder = mkdtempSync(join(tmpdir(), 'hybrid-infer-test-'));
  process.env.TMPDIR = process.env.TEMP = folder; // os.tmpdir() reads TEMP on Windows
  return () => rmSync(folder, { recursive: true, force: true });
}
