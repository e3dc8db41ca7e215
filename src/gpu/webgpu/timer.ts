/** How long passes take on the device itself, by timestamps at their beginnings and ends. */
import { HybridError } from '../../errors.js';
import { BufferUsage } from './dawn.js';
import type { GpuDevice } from './device.js';
import { encode, type Dispatch } from './kernel.js';
import { createBuffer, destroyBuffer, Readback } from './buffers.js';

export class GpuTimer {
  private constructor(
    private readonly gpu: GpuDevice,
    private readonly queries: GPUQuerySet,
    private readonly resolved: GPUBuffer,
    private readonly back: Readback,
    /** Most passes in one `time`. */
    readonly passes: number,
  ) {}

  /** @throws HybridError GPU_UNAVAILABLE when the adapter has no timestamps */
  static async create(gpu: GpuDevice, passes: number): Promise<GpuTimer> {
    if (!gpu.facts.timestamps) {
      throw new HybridError(
        'GPU_UNAVAILABLE',
        `${gpu.facts.name} has no timestamp queries: nothing can be timed`,
      );
    }
    const count = 2 * passes;
    const queries = gpu.raw.createQuerySet({ type: 'timestamp', count });
    const usage = BufferUsage.QUERY_RESOLVE | BufferUsage.COPY_SRC;
    const resolved = await createBuffer(gpu, 'timestamps', count * 8, usage);
    return new GpuTimer(gpu, queries, resolved, await Readback.create(gpu, 'timestamps', count * 8), passes);
  }

  /** Submits each list of dispatches as a pass of its own, one after the other. @returns nanoseconds of each */
  async time(passes: readonly (readonly Dispatch[])[]): Promise<number[]> {
    if (passes.length > this.passes) throw new RangeError(`${passes.length} passes, room for ${this.passes}`);
    this.gpu.submit((encoder) => {
      passes.forEach((dispatches, i) => {
        const pass = encoder.beginComputePass({
          timestampWrites: {
            querySet: this.queries,
            beginningOfPassWriteIndex: 2 * i,
            endOfPassWriteIndex: 2 * i + 1,
          },
        });
        for (const dispatch of dispatches) encode(pass, dispatch);
        pass.end();
      });
      encoder.resolveQuerySet(this.queries, 0, 2 * passes.length, this.resolved, 0);
      this.back.copy(encoder, this.resolved, 0, 16 * passes.length);
    });
    const times = new BigUint64Array((await this.back.read(16 * passes.length)).buffer);
    return passes.map((_, i) => Number(times[2 * i + 1] - times[2 * i]));
  }

  destroy(): void {
    this.queries.destroy();
    destroyBuffer(this.gpu, this.resolved);
    this.back.destroy();
  }
}
