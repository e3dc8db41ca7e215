/** A cache folder for one test file, in place of the user's. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';

/** Until the file's end packs are kept below a folder of its own. @returns that folder */
export function ownCache(name: string): string {
  const folder = mkdtempSync(join(tmpdir(), `hybrid-infer-${name}-`));
  const before = process.env.HYBRID_INFER_CACHE;
  process.env.HYBRID_INFER_CACHE = join(folder, 'cache');
  afterAll(() => {
    rmSync(folder, { recursive: true, force: true });
    if (before === undefined) delete process.env.HYBRID_INFER_CACHE;
    else process.env.HYBRID_INFER_CACHE = before;
  });
  return folder;
}
