/** What one lane works with: kernels and views per arena, its barrier, its counters. Made once per lane. */
import type { Kernels, Ptr } from '../kernels/kernels.js';
import { Barrier } from './control.js';
import { makeRouting, type Routing } from './experts.js';
import type { GpuLink } from './gpu-link.js';
import type { LaneScratch, ModelLayout, SharedScratch } from './layout.js';
import { makeRows, type Rows } from './rows.js';
import { laneStats } from './stats.js';
import type { Timeline } from './timeline.js';
import type { TraceBuffers } from './trace.js';
import { Work } from './work.js';

/** One arena as a lane sees it. */
export interface ArenaView {
  kernels: Kernels;
  f32: Float32Array;
  u32: Uint32Array;
  u8: Uint8Array;
}

export interface LaneContext {
  lane: number;
  layout: ModelLayout;
  arenas: ArenaView[];
  barrier: Barrier;
  control: Int32Array;
  /** What this lane takes of the phase under way. */
  work: Work;
  shared: SharedScratch;
  scratch: LaneScratch;
  rows: { own: Rows; shared: Rows };
  /** The experts of every row in the layer under way. */
  routing: Routing;
  /** This lane's counters of all slots (stats.ts). */
  stats: Float64Array;
  /** Null: everything on the CPU in this job. */
  gpu: GpuLink | null;
  /** Null unless this job records what FFNs see and do. */
  trace: TraceBuffers | null;
  /** Null unless a timeline was asked for. */
  timeline: Timeline | null;
}

export function createLaneContext(
  lane: number,
  layout: ModelLayout,
  memories: WebAssembly.Memory[],
  kernels: Kernels[],
  control: Int32Array,
  stats: SharedArrayBuffer,
  cores: number,
): LaneContext {
  const scratch = layout.laneScratch[lane];
  const { shared } = layout;
  return {
    lane,
    layout,
    arenas: memories.map((memory, i) => ({
      kernels: kernels[i],
      f32: new Float32Array(memory.buffer),
      u32: new Uint32Array(memory.buffer),
      u8: new Uint8Array(memory.buffer),
    })),
    barrier: new Barrier(control, layout.laneCount, cores),
    control,
    work: new Work(control, lane, layout.laneCount),
    shared,
    scratch,
    rows: makeRows({ shared, scratch }),
    routing: makeRouting(layout.batchTokens, layout.block.experts, layout.block.activeExperts),
    stats: laneStats(stats, layout, lane),
    gpu: null,
    trace: null,
    timeline: null,
  };
}

/** Copy n floats at the same offset from one arena to another; nothing when it is the same arena. */
export function carry(context: LaneContext, from: number, to: number, ptr: Ptr, n: number): void {
  if (from === to) return;
  const at = ptr >>> 2;
  context.arenas[to].f32.set(context.arenas[from].f32.subarray(at, at + n), at);
}
