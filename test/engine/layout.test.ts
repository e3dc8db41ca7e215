import { afterAll, describe, expect, it } from 'vitest';
import { MAX_ARENA_BYTES } from '../../src/engine/arena.js';
import { planLayout } from '../../src/engine/plan-layout.js';
import { defaultKvFormat } from '../../src/engine/options.js';
import { KV_PAGE } from '../../src/kernels/layout.js';
import { openPack } from '../../src/pack/reader.js';
import { DEMO, packOf, removePacks } from './open.js';

afterAll(removePacks);

async function plan(contextLength: number, kvFormat: 'f32' | 'q8') {
  const pack = openPack(await packOf(DEMO, 'q8'));
  try {
    return planLayout(pack.header, {
      contextLength,
      kvFormat,
      kvPages: Math.ceil(contextLength / KV_PAGE),
      slots: 1,
      batchTokens: 1,
      laneCount: 2,
      chunkCount: 4,
      ffn: 'exact',
      plan: null,
      gpu: null,
    });
  } finally {
    pack.close();
  }
}

describe.each(['f32', 'q8'] as const)('an arena with a KV cache in %s', (kvFormat) => {
  // The second length fills more than one arena.
  it.each([100, 3_600_000])('holds it behind everything that is loaded, %d positions', async (positions) => {
    const { layout, load } = await plan(positions, kvFormat);
    for (const { arena, ptr, section } of load) {
      expect(ptr + section.bytes).toBeLessThanOrEqual(layout.kvBegin[arena]);
    }
    const { headDim } = layout.config;
    const ranges = layout.layers.flatMap(({ arena, keys, values }) =>
      [...keys, ...values].flatMap(({ data, scales }) => [
        { arena, from: data, to: data + positions * headDim * (kvFormat === 'f32' ? 4 : 1) },
        ...(kvFormat === 'q8' ? [{ arena, from: scales, to: scales + 4 * positions }] : []),
      ]),
    );
    for (const { arena, from, to } of ranges) {
      expect(from).toBeGreaterThanOrEqual(layout.kvBegin[arena]);
      expect(to).toBeLessThanOrEqual(layout.arenaBytes[arena]);
    }
    for (const arena of layout.arenaBytes.keys()) {
      const here = ranges.filter((range) => range.arena === arena).sort((a, b) => a.from - b.from);
      here.slice(1).forEach((range, i) => expect(range.from).toBeGreaterThanOrEqual(here[i].to));
    }
    expect(Math.max(...layout.arenaBytes)).toBeLessThanOrEqual(MAX_ARENA_BYTES);
    if (positions > 100) expect(layout.arenaBytes.length).toBeGreaterThan(1);
  });
});

it('keeps keys and values in 8 bits unless the weights are f32', () => {
  expect(defaultKvFormat('q4')).toBe('q8');
  expect(defaultKvFormat('q8')).toBe('q8');
  expect(defaultKvFormat('f32')).toBe('f32');
});
