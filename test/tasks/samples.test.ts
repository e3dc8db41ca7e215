import fc from 'fast-check';
import { mkdtempSync, mkdirSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { HybridError } from '../../src/errors.js';
import { readTasks, taskName } from '../../src/tasks/samples.js';

const folder = mkdtempSync(join(tmpdir(), 'samples-'));
let count = 0;
function file(content: string | Buffer, name = `samples_t${count++}.jsonl`): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
}
const line = (row: Record<string, unknown>): string => `${JSON.stringify(row)}\n`;
const choice = {
  doc_id: 0,
  doc: {},
  target: 1,
  arguments: [
    ['a', ' b'],
    ['a', ' c'],
  ],
  resps: [[[-1.5, false]], [[-2, true]]],
  filter: 'none',
  metrics: ['acc'],
  acc: 0,
};

describe('sample files', () => {
  it('hold requests as lists', () => {
    const [task] = readTasks([file(line(choice))]);
    expect(task).toMatchObject({ filter: 'none', metrics: ['acc'] });
    expect(task.samples[0].requests).toEqual([
      { type: 'loglikelihood', context: 'a', continuation: ' b' },
      { type: 'loglikelihood', context: 'a', continuation: ' c' },
    ]);
    expect(task.samples[0].answers).toEqual([
      { logLikelihood: -1.5, greedy: false },
      { logLikelihood: -2, greedy: true },
    ]);
  });

  it('hold the same requests as lm-eval writes them from its command line', () => {
    const written = {
      ...choice,
      target: '1',
      arguments: { gen_args_0: { arg_0: 'a', arg_1: ' b' }, gen_args_1: { arg_0: 'a', arg_1: ' c' } },
      resps: [[['-1.5', 'False']], [['-2', 'True']]],
    };
    const [[a], [b]] = [choice, written].map((row) => readTasks([file(line(row))])[0].samples);
    expect(b.requests).toEqual(a.requests);
    expect(b.answers).toEqual(a.answers);
  });

  it('are one task for every filter', () => {
    const rows = ['strict-match', 'flexible-extract'].map((filter) => ({ ...choice, filter }));
    expect(readTasks([file(rows.map(line).join(''))]).map(({ filter }) => filter)).toEqual([
      'strict-match',
      'flexible-extract',
    ]);
  });

  it('may lack answers, metrics and a final line break', () => {
    const { resps: _r, metrics: _m, ...rest } = choice;
    const [task] = readTasks([file(JSON.stringify(rest))]);
    expect(task.samples[0].answers).toEqual([null, null]);
    expect(task.metrics).toEqual(['acc']);
  });

  it('say how to generate', () => {
    const settings = (given: Record<string, unknown>): unknown => {
      const row = { arguments: [['q', given]] };
      const [request] = readTasks([file(line(row))])[0].samples[0].requests;
      return request.type === 'generate' && request.settings;
    };
    expect(settings({ until: '\n\n', do_sample: false, temperature: 0.7 })).toEqual({
      ...{ until: ['\n\n'], maxTokens: 256, temperature: 0, topP: null },
    });
    expect(settings({ until: ['Q:', ''], max_gen_toks: '12', do_sample: 'True', top_p: 0.9 })).toEqual({
      ...{ until: ['Q:'], maxTokens: 12, temperature: 1, topP: 0.9 },
    });
    expect(settings({})).toMatchObject({ until: [], temperature: 0 });
  });

  it('are named after the task', () => {
    expect(taskName('/a/samples_gsm8k_2024-05-13T12-00-00.123456.jsonl')).toBe('gsm8k');
    expect(taskName('samples_mmlu_high_school_physics.jsonl')).toBe('mmlu_high_school_physics');
    expect(taskName('other.jsonl')).toBe('other');
  });

  const bad: [string, string | Buffer, RegExp][] = [
    ['an empty file', '', /no samples/],
    ['something that is no JSON', 'hello\n', /line 1: not valid JSON/],
    ['a list', '[1]\n', /expected an object/],
    ['a duplicate key', '{"doc_id": 1, "doc_id": 2}\n', /appears twice/],
    ['deep nesting', `{"doc": ${'['.repeat(200)}${']'.repeat(200)}}\n`, /nested deeper/],
    ['no arguments', line({ doc_id: 1 }), /arguments: expected a list/],
    ['no request', line({ arguments: [] }), /no request/],
    ['a number as context', line({ arguments: [[3, 'a']] }), /expected a text first/],
    ['images', line({ arguments: [['a', {}, { image: 1 }]] }), /images are not supported/],
    ['gaps in the arguments', line({ arguments: { gen_args_1: { arg_0: 'a' } } }), /gen_args_0/],
    ['two kinds of requests', line({ arguments: [['a'], ['a', 'b']] }), /several kinds/],
    ['too few answers', line({ ...choice, resps: [[[-1, false]]] }), /1 answers to 2 requests/],
    ['an answer of another kind', line({ ...choice, resps: [['text'], ['text']] }), /no answer/],
    ['endless generation', line({ arguments: [['a', { max_gen_toks: 1e12 }]] }), /max_gen_toks/],
    ['a stop that is no text', line({ arguments: [['a', { until: [3] }]] }), /until/],
    ['a negative temperature', line({ arguments: [['a', { temperature: -1 }]] }), /temperature/],
    ['bytes that are no UTF-8', Buffer.from([0x7b, 0xff, 0x7d, 10]), /not UTF-8/],
  ];
  for (const [what, content, message] of bad) {
    it(`with ${what} are refused with the line`, () => {
      const path = file(content);
      expect(() => readTasks([path])).toThrow(message);
      try {
        readTasks([path]);
      } catch (error) {
        expect(error).toBeInstanceOf(HybridError);
        expect((error as HybridError).exitCode).toBe(2);
        expect((error as HybridError).message).toContain(path);
      }
    });
  }

  it('that are folders, or are not there, are refused', () => {
    const path = join(folder, 'a-folder.jsonl');
    mkdirSync(path);
    expect(() => readTasks([path])).toThrow(/a folder/);
    expect(() => readTasks([join(folder, 'nothing')])).toThrow(/no such file/);
  });

  it('cut off anywhere give one typed error or fewer samples', () => {
    const text = line(choice) + line({ ...choice, doc_id: 1 });
    fc.assert(
      fc.property(fc.integer({ min: 0, max: text.length }), (end) => {
        try {
          const [task] = readTasks([file(text.slice(0, end), 'samples_cut.jsonl')]);
          expect(task.samples.length).toBeLessThanOrEqual(2);
        } catch (error) {
          expect(error).toBeInstanceOf(HybridError);
        }
      }),
      { numRuns: 60 },
    );
  });
});
