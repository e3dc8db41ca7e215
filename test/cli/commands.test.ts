import { existsSync, statSync, writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { cli, DEMO, json, scratch } from './command.js';

const TALE = 'The king went to the forest, and there he met an old woman who said: Good day. ';

describe('convert and inspect', () => {
  it('write a pack that inspect describes and run accepts', async () => {
    const path = scratch('demo.q4.hpack');
    const converted = await json<{ bytes: number; quant: string }>([
      'convert',
      DEMO,
      '-o',
      path,
      '--quant',
      'q4',
    ]);
    expect(converted).toMatchObject({ code: 0, quant: 'q4', name: 'tales-4m-relu' });
    expect(converted.bytes).toBe(statSync(path).size);

    const described = await json<{ kind: string; parts: { bytes: number }[] }>(['inspect', path]);
    expect(described).toMatchObject({ code: 0, kind: 'pack', quant: 'q4' });
    const text = await cli(['inspect', path]);
    expect(text.stdout).toContain('fatrelu, threshold 0.15');

    const ran = await json<{ tokens: number[] }>(['run', path, 'The king', '-n', '3']);
    expect(ran).toMatchObject({ code: 0 });
    expect(ran.tokens).toHaveLength(3);

    const again = await json(['convert', path, '-o', scratch('again.hpack')]);
    expect(again).toMatchObject({ code: 2, error: { code: 'USAGE' } });
    const otherQuant = await json(['run', path, 'The king', '--quant', 'q8']);
    expect(otherQuant).toMatchObject({ code: 2, error: { code: 'USAGE' } });
  });

  it('refuse to write over a folder', async () => {
    const result = await json(['convert', DEMO, '-o', scratch('')]);
    expect(result).toMatchObject({ code: 2, error: { code: 'USAGE' } });
  });

  it('describe the source model with its parts adding up', async () => {
    const d = await json<{
      parameters: number;
      parts: { parameters: number }[];
      sparsity: { ffnModes: string[] };
    }>(['inspect']);
    expect(d.parts.reduce((sum, part) => sum + part.parameters, 0)).toBe(d.parameters);
    expect(d.sparsity.ffnModes).toEqual(['dense', 'exact', 'predicted']);
  });
});

describe('eval', () => {
  const text = TALE.repeat(20);

  it('reports perplexity, distance from dense and sparsity per layer', async () => {
    writeFileSync(scratch('text.txt'), text);
    const result = await json<Record<string, unknown> & { layers: object[] }>([
      ...['eval', '--text', scratch('text.txt'), '--window', '64', '--ffn', 'exact', '--quant', 'f32'],
    ]);
    expect(result.code).toBe(0);
    for (const field of ['tokens', 'perplexity', 'densePerplexity', 'klDivergence', 'top1Agreement'])
      expect(result[field]).toBeTypeOf('number');
    expect(result).toHaveProperty('predictedSparsity', null);
    expect(result.layers).toHaveLength(4);
    expect(Object.keys(result.layers[0])).toEqual(
      expect.arrayContaining([
        ...[
          'layer',
          'mode',
          'sparsity',
          'predictedSparsity',
          'recall',
          'weightedRecall',
          'threshold',
          'rank',
        ],
      ]),
    );
    // Exact approximates nothing.
    expect(result.perplexity as number).toBeCloseTo(result.densePerplexity as number, 3);
    expect(result.top1Agreement).toBeGreaterThan(0.99);
    expect((result.tokens as number) % 63).toBe(0);
  });

  it('can leave the comparison with dense out', async () => {
    writeFileSync(scratch('text.txt'), text);
    const result = await json(['eval', '--text', scratch('text.txt'), '--window', '64', '--no-dense']);
    expect(result).toMatchObject({ code: 0, densePerplexity: null, klDivergence: null, top1Agreement: null });
  });
});

describe('bench', () => {
  it('compares FFN modes in turns and keeps its JSON contract', async () => {
    const result = await json<{ machine: Record<string, unknown>; rows: Record<string, unknown>[] }>([
      ...['bench', '-p', '8', '-n', '8', '-r', '2', '--ffn', 'dense,exact'],
    ]);
    expect(result.code).toBe(0);
    expect(result.machine.memoryBandwidthGBps).toBeGreaterThan(0);
    expect(result.rows.map((row) => [row.ffnMode, row.test])).toEqual([
      ['dense', 'pp8'],
      ['dense', 'tg8'],
      ['exact', 'pp8'],
      ['exact', 'tg8'],
    ]);
    const [, dense, , exact] = result.rows;
    expect(dense.samples).toHaveLength(2);
    expect(exact.bytesPerToken as number).toBeLessThan(dense.bytesPerToken as number);
    expect(exact.achievedGBps as number).toBeCloseTo(
      ((exact.bytesPerToken as number) * (exact.tokensPerSecond as number)) / 1e9,
      9,
    );
  });

  it('lets several models take turns, by the names they were given', async () => {
    const pack = scratch('bench.hpack');
    expect(await json(['convert', DEMO, '-o', pack, '--quant', 'q4'])).toMatchObject({ code: 0 });
    const args = ['bench', DEMO, pack, '-p', '4', '-n', '1', '-r', '1', '--ffn', 'exact'];
    const { rows } = await json<{ rows: Record<string, unknown>[] }>(args);
    expect(rows.map(({ model, quant }) => [model, quant])).toEqual([
      [DEMO, 'q8'],
      [pack, 'q4'],
    ]);
  });

  it('measures no model where it measures kernels', async () => {
    const result = await json(['bench', DEMO, '--kernels']);
    expect(result).toMatchObject({ code: 2, error: { code: 'USAGE' } });
  });

  it('refuses lengths beyond the context', async () => {
    const result = await json(['bench', '-p', '250', '-n', '100']);
    expect(result).toMatchObject({ code: 2, error: { code: 'USAGE' } });
  });
});

describe('export', () => {
  it('writes a GGUF file that this program reads again', async () => {
    const path = scratch('demo.gguf');
    const exported = await json(['export', '--gguf', path, '--type', 'f16']);
    expect(exported).toMatchObject({
      code: 0,
      name: 'tales-4m-relu',
      type: 'f16',
      files: [{ path, format: 'gguf', bytes: statSync(path).size }],
    });
    expect(await json(['inspect', path])).toMatchObject({ code: 0, kind: 'gguf' });
  });

  it('wants to know what to write', async () => {
    expect(await json(['export'])).toMatchObject({ code: 2, error: { code: 'USAGE' } });
  });
});

describe('profile', () => {
  it('makes artifacts that run and eval then use', async () => {
    const folder = scratch('artifacts');
    const profiled = await json<{
      artifacts: { profile: string; predictor: string };
      layers: Record<string, unknown>[];
    }>([...['profile', '--tokens', '2048', '--samples', '1024', '--predictor', 'lowrank', '--out', folder]]);
    expect(profiled.code).toBe(0);
    expect(Object.keys(profiled.artifacts)).toEqual(
      expect.arrayContaining(['profile', 'predictor', 'report']),
    );
    expect(profiled.layers).toHaveLength(4);
    for (const field of [
      'mode',
      'sparsity',
      'predictedSparsity',
      'recall',
      'weightedRecall',
      'threshold',
      'reason',
    ])
      expect(profiled.layers[0]).toHaveProperty(field);

    const { profile, predictor } = profiled.artifacts;
    const ran = await json<{ stats: Record<string, number> }>([
      ...['run', 'The king', '-n', '12', '--ffn', 'predicted', '--measure-recall', '--seed', '1'],
      ...['--profile', profile, '--predictor', predictor],
    ]);
    expect(ran.code).toBe(0);
    expect(ran.stats).toMatchObject({ ffnMode: 'predicted' });
    expect(ran.stats.recall).toBeGreaterThan(0.5);
    expect(ran.stats.weightedRecall).toBeGreaterThan(0.5);
    expect(ran.stats.predictedSparsity).toBeGreaterThan(0.1);

    // Whatever is no predictor is refused by name.
    const wrong = await json(['run', 'x', '-n', '1', '--predictor', profile]);
    expect(wrong).toMatchObject({ code: 2, error: { code: 'ARTIFACT_INVALID' } });
  }, 240_000);
});

it('a converted model is kept in the cache folder', async () => {
  await json(['run', 'x', '-n', '1']);
  expect(existsSync(scratch('cache/packs'))).toBe(true);
});
