/** Rooms of src/ import from earlier ones only, in the order of docs/architecture.md. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';

/** Folders of src/ as the table names them, earliest first. */
const page = readFileSync('docs/architecture.md', 'utf8');
const table = page.slice(page.indexOf('## Rooms'), page.indexOf('## From a folder'));
const rooms = table
  .split('\n')
  .filter((line) => line.startsWith('| `'))
  .slice(1) // the head
  .flatMap((line) => [...line.split('|')[1].matchAll(/`([a-z]+)\/`/g)].map(([, room]) => room));

const folders = readdirSync('src', { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map(({ name }) => name);

/** [file, room imported] for every import of another room. */
function importsOf(room: string): [string, string][] {
  return readdirSync(join('src', room), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.ts'))
    .flatMap((file) => {
      const text = readFileSync(join('src', room, file), 'utf8');
      const found = text.matchAll(/(?:from|import\() ?'(?:\.\.\/)+([a-z]+)\//g);
      return [...found].map(([, other]): [string, string] => [`${room}/${file}`, other]);
    })
    .filter(([, other]) => other !== room && folders.includes(other));
}

describe('the rooms of src/', () => {
  it('are all in the table', () => {
    expect([...rooms].sort()).toEqual([...folders].sort());
  });

  it.each(rooms)('%s/ imports from earlier rooms only', (room) => {
    const later = rooms.slice(rooms.indexOf(room) + 1);
    expect(importsOf(room).filter(([, other]) => later.includes(other))).toEqual([]);
  });

  it('import each other at all', () => {
    expect(importsOf('profiler').map(([, other]) => other)).toContain('predictor');
  });
});
