/**
 * How kernels are cut into work-groups on a device. Nothing here changes a result: a row's sum is added in the
 * order that kernels/unit.ts fixes, whatever the tile; so tuning (tune.ts) may choose freely.
 */
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

import { z } from 'zod';

import { writeFileAtomic } from '../../io/atomic-write.js';
import { cacheDir } from '../../io/paths.js';
import type { AdapterFacts } from './device.js';

export interface Tile {
  /** Units of 32 lanes in a work-group. */
  units: number;
  /** Rows that a unit computes side by side: they share what was read of x. */
  rows: number;
}

export interface Tuning {
  /** Products of one token. */
  single: Tile;
  /** Products of several tokens, and how many of them a unit computes side by side. */
  batch: Tile & { tokens: number };
  /** Products with listed rows, and the rows of gate and up. */
  list: Tile;
  /** Words (4 bytes of codes) of each record that a lane of the down sum takes at once: 1, 2 or 4. */
  downWords: 1 | 2 | 4;
  /**
   * Lanes that follow each other inside one subgroup on this device: sums of so many need no work-group memory.
   * 1: none (no subgroups, or lanes that stand in another order).
   */
  shuffleLanes: 1 | 2 | 4 | 8 | 16 | 32;
}

/**
 * What is right in most places: enough rows side by side that x is not read more often than weights. A software
 * adapter gains nothing from that and compiles short kernels several times sooner.
 */
export function defaultTuning(facts: AdapterFacts): Tuning {
  if (facts.software) {
    const one = { units: 2, rows: 1 };
    return { single: one, batch: { ...one, tokens: 2 }, list: one, downWords: 1, shuffleLanes: 1 };
  }
  const units = Math.max(1, Math.min(4, facts.maxWorkgroupInvocations / 32));
  return {
    single: { units, rows: 4 },
    batch: { units, rows: 2, tokens: 4 },
    list: { units, rows: 2 },
    downWords: 1,
    shuffleLanes: 1,
  };
}

// ---- kept between runs -------------------------------------------------------------------------------

const units = z.number().int().min(1).max(32);
const rows = z.number().int().min(1).max(16);
const tile = z.strictObject({ units, rows });
const SCHEMA: z.ZodType<Tuning> = z.strictObject({
  single: tile,
  batch: z.strictObject({ units, rows, tokens: rows }),
  list: tile,
  downWords: z.union([z.literal(1), z.literal(2), z.literal(4)]),
  shuffleLanes: z.union([1, 2, 4, 8, 16, 32].map((n) => z.literal(n as Tuning['shuffleLanes']))),
});

/** A device's own file: another driver may call itself otherwise, and is tuned again then. */
export function tuningPath({ name, vendor, architecture }: AdapterFacts): string {
  const key = createHash('sha256')
    .update(JSON.stringify([name, vendor, architecture]))
    .digest('hex');
  return join(cacheDir(), 'gpu-tuning', `${key.slice(0, 16)}.json`);
}

/** What `doctor --tune-gpu` found for this device; the default where it was not run, or its file is no use. */
export function tuningFor(facts: AdapterFacts): Tuning {
  const plain = defaultTuning(facts);
  try {
    const kept = SCHEMA.parse(JSON.parse(readFileSync(tuningPath(facts), 'utf8')));
    const widest = Math.max(kept.single.units, kept.batch.units, kept.list.units) * 32;
    const shuffles = kept.shuffleLanes === 1 || kept.shuffleLanes <= (facts.subgroups?.min ?? 1);
    return widest <= facts.maxWorkgroupInvocations && shuffles ? kept : plain;
  } catch {
    return plain;
  }
}

export async function keepTuning(facts: AdapterFacts, tuning: Tuning): Promise<string> {
  const path = tuningPath(facts);
  mkdirSync(dirname(path), { recursive: true });
  await writeFileAtomic(path, `${JSON.stringify(tuning)}\n`);
  return path;
}
