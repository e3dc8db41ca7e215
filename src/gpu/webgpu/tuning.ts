/**
 * How kernels are cut into work-groups on a device. Nothing here changes a result: a row's sum is added in the
 * order that kernels/unit.ts fixes, whatever the tile; so tuning (tune.ts) may choose freely.
 */
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
