import { describe, expect, it } from 'vitest';
import { formatBytes, progressReporter, type Progress } from '../../src/io/progress.js';

const step = (done: number, stage = 'quantise'): Progress => ({ stage, done, total: 100, unit: 'rows' });

function recorder(isTTY: boolean, columns = 80) {
  const written: string[] = [];
  let time = 0;
  const stream = { isTTY, columns, write: (text: string) => written.push(text) };
  const reporter = progressReporter({ stream, now: () => time });
  return { written, reporter, advance: (ms: number) => (time += ms) };
}

describe('progress', () => {
  it('writes a plain line every three seconds when there is no terminal', () => {
    const { written, reporter, advance } = recorder(false);
    for (let i = 1; i <= 100; i++) {
      advance(100);
      reporter.report(step(i));
    }
    expect(written).toEqual([
      'quantise: 31 % (31 of 100 rows)\n',
      'quantise: 61 % (61 of 100 rows), 4 s left\n',
      'quantise: 91 % (91 of 100 rows), 1 s left\n',
    ]);
  });

  it('counts time from what was done when the stage began', () => {
    const { written, reporter, advance } = recorder(false);
    reporter.report(step(80)); // out of a checkpoint
    advance(10_000);
    reporter.report(step(90));
    expect(written).toEqual(['quantise: 90 % (90 of 100 rows), 10 s left\n']);
  });

  it('believes whoever knows the time that remains', () => {
    const { written, reporter, advance } = recorder(false);
    reporter.report(step(0));
    advance(10_000);
    reporter.report({ ...step(1), remainingSeconds: 130 });
    expect(written[0]).toContain(', 2 min 10 s left');
  });

  it('redraws a bar on a terminal and ends its line when the stage is done', () => {
    const { written, reporter, advance } = recorder(true);
    reporter.report(step(0));
    reporter.report(step(1)); // too soon
    advance(100);
    reporter.report(step(50));
    reporter.report(step(100));
    reporter.report(step(100));
    expect(written).toHaveLength(4);
    expect(written[1]).toContain('[############............]  50 % 50 of 100 rows');
    expect(written[3]).toBe('\n');
  });

  it('never writes more than a line of the terminal', () => {
    const { written, reporter } = recorder(true, 20);
    reporter.report(step(7));
    expect(written[0].replace(/\r|\x1b\[K/g, '')).toHaveLength(19); // eslint-disable-line no-control-regex
  });

  it('ends an unfinished bar before anything else is printed', () => {
    const { written, reporter } = recorder(true);
    reporter.report(step(7));
    reporter.finish();
    reporter.finish();
    expect(written.filter((t) => t === '\n')).toHaveLength(1);
  });

  it('begins again with every stage', () => {
    const { written, reporter } = recorder(true);
    reporter.report(step(1, 'fingerprint'));
    reporter.report(step(1, 'quantise'));
    expect(written.join('')).toMatch(/fingerprint[^]*\n[^]*quantise/);
  });

  it('shows nothing of a stage that was done from the start', () => {
    const { written, reporter } = recorder(true);
    reporter.report(step(100, 'fingerprint'));
    expect(written).toEqual([]);
  });

  it('is silent when asked', () => {
    const written: string[] = [];
    const reporter = progressReporter({ silent: true, stream: { write: (t) => written.push(t) } });
    reporter.report(step(1));
    reporter.finish();
    expect(written).toEqual([]);
  });

  it('shows bytes with their unit', () => {
    expect(formatBytes(512)).toBe('512 B');
    expect(formatBytes(1536)).toBe('1.5 KiB');
    expect(formatBytes(3.5 * 2 ** 30)).toBe('3.5 GiB');
  });
});
