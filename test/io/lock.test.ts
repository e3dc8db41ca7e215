import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { HybridError } from '../../src/errors.js';
import { acquireLock, waitForLock } from '../../src/io/lock.js';
import { thisProcess } from '../../src/io/process-identity.js';
import { tempFolder } from '../helpers/tiny-models.js';

const lockModule = new URL('../../dist/io/lock.js', import.meta.url).href;
const lockedCode = (path: string): string => {
  try {
    acquireLock(path).release();
    return 'free';
  } catch (error) {
    return (error as HybridError).code;
  }
};

describe('locks', () => {
  it('admit one holder at a time', () => {
    const path = join(tempFolder(), 'a.lock');
    const lock = acquireLock(path);
    expect(lockedCode(path)).toBe('LOCKED');
    lock.release();
    lock.release();
    expect(lockedCode(path)).toBe('free');
  });

  it('leave no other files behind', () => {
    const folder = tempFolder();
    const lock = acquireLock(join(folder, 'a.lock'));
    lockedCode(lock.path);
    expect(readdirSync(folder)).toEqual(['a.lock']);
    lock.release();
    expect(readdirSync(folder)).toEqual([]);
  });

  it('name the folder that is missing', () => {
    const folder = join(tempFolder(), 'no', 'such');
    expect(lockedCode(join(folder, 'a.lock'))).toBe('FILE_NOT_FOUND');
    expect(() => acquireLock(join(folder, 'a.lock'))).toThrow(folder);
  });

  it('of a killed process are taken over', () => {
    const path = join(tempFolder(), 'a.lock');
    const code = `const { acquireLock } = await import(${JSON.stringify(lockModule)});
      acquireLock(${JSON.stringify(path)}); process.kill(process.pid, 'SIGKILL');`;
    spawnSync(process.execPath, ['--input-type=module', '-e', code]);
    expect(existsSync(path)).toBe(true);
    expect(lockedCode(path)).toBe('free');
  });

  it('of a process whose id was given to another one are taken over', () => {
    const path = join(tempFolder(), 'a.lock');
    writeFileSync(path, JSON.stringify({ ...thisProcess(), start: '1' }));
    expect(lockedCode(path)).toBe(process.platform === 'linux' ? 'free' : 'LOCKED');
  });

  it('of another host hold until they show no sign of life for ten minutes', () => {
    const path = join(tempFolder(), 'a.lock');
    writeFileSync(path, JSON.stringify({ ...thisProcess(), host: 'elsewhere' }));
    expect(lockedCode(path)).toBe('LOCKED');
    const old = new Date(Date.now() - 11 * 60_000);
    utimesSync(path, old, old);
    expect(lockedCode(path)).toBe('free');
  });

  it.each(['', '{', 'null', '{"pid":-1}', '{"pid":"x"}'])('with the content %j do not crash', (content) => {
    const path = join(tempFolder(), 'a.lock');
    writeFileSync(path, content);
    expect(lockedCode(path)).toBe('LOCKED');
  });

  it('are waited for, until a signal says stop', async () => {
    const path = join(tempFolder(), 'a.lock');
    const first = acquireLock(path);
    const second = waitForLock(path);
    await expect(waitForLock(path, AbortSignal.timeout(100))).rejects.toMatchObject({ code: 'ABORTED' });
    first.release();
    (await second).release();
  });

  it('never have two holders when many processes take over a stale lock', async () => {
    const folder = tempFolder();
    const path = join(folder, 'a.lock');
    const log = join(folder, 'log');
    writeFileSync(path, JSON.stringify({ ...thisProcess(), start: '1' }));
    const code = `const { waitForLock } = await import(${JSON.stringify(lockModule)});
      const { appendFileSync } = await import('node:fs');
      const { setTimeout: sleep } = await import('node:timers/promises');
      const lock = await waitForLock(${JSON.stringify(path)});
      appendFileSync(${JSON.stringify(log)}, 'in ');
      await sleep(20);
      appendFileSync(${JSON.stringify(log)}, 'out ');
      lock.release();`;
    const children = Array.from({ length: 6 }, () =>
      spawn(process.execPath, ['--input-type=module', '-e', code], { stdio: 'inherit' }),
    );
    await Promise.all(children.map((c) => new Promise((resolve) => c.on('exit', resolve))));
    await sleep(10);
    expect(readFileSync(log, 'utf8')).toBe('in out '.repeat(6));
  });
});
