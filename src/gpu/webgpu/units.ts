/** What a WebGPU device computes behind the mailbox: a whole model, or units of one. */
import type { FfnPlan } from '../../engine/ffn-plan.js';
import type { PackHeader } from '../../pack/types.js';
import type { GpuUnit } from '../hot-ffn.js';
import type { ServerStart, UnitServer } from '../unit-server.js';
import { GpuDevice } from './device.js';
import type { WholeShape } from './fits.js';
import { HybridUnits } from './hybrid-units.js';
import { WholeModel } from './whole-model.js';

export interface WebGpuUnitsData {
  fd: number;
  packPath: string;
  header: PackHeader;
  /** Part of the adapter's name; null: the fast one. */
  adapter: string | null;
  work:
    | { whole: WholeShape & { batchTokens: number; plan: FfnPlan | null } }
    | { units: GpuUnit[]; maxTokens: number };
  /** Lose the device in the middle of the run after this many; for fault tests. */
  failAfterRuns: number | null;
}

/** Runs that were submitted, and whose y is there when the promise resolves. */
interface Runner {
  run(unit: number, rows: number, x: Float32Array, y: Float32Array): Promise<void>;
}

export class WebGpuUnits implements UnitServer {
  private runs = 0;

  private constructor(
    private readonly gpu: GpuDevice,
    private readonly runner: Runner,
    private readonly start: ServerStart,
    private readonly failAfterRuns: number | null,
  ) {}

  static async load(data: WebGpuUnitsData, start: ServerStart): Promise<WebGpuUnits> {
    const { work, adapter, failAfterRuns } = data;
    const gpu = await GpuDevice.open({ name: adapter ?? undefined });
    const { onUnit } = start;
    try {
      const runner =
        'whole' in work
          ? await WholeModel.load(gpu, { ...data, ...work.whole, onUnit })
          : await HybridUnits.load(gpu, { ...data, ...work, onUnit });
      return new WebGpuUnits(gpu, runner, start, failAfterRuns);
    } catch (error) {
      await gpu.close();
      throw error;
    }
  }

  get device(): string {
    return this.gpu.facts.name;
  }

  /** Of everything on the device: weights, KV cache, what a step works in. */
  get bytes(): number {
    return this.gpu.allocatedBytes;
  }

  async run(unit: number, rows: number): Promise<void> {
    const { x, y } = this.start;
    const run = this.runner.run(unit, rows, x, y);
    if (this.failAfterRuns !== null && this.runs >= this.failAfterRuns) this.gpu.raw.destroy();
    this.runs++;
    await run;
  }

  close(): Promise<void> {
    return this.gpu.close();
  }
}
