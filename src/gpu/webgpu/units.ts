/** Units behind the mailbox on a WebGPU device: a whole model. */
import type { ServerStart, UnitServer } from '../unit-server.js';
import { GpuDevice } from './device.js';
import { WholeModel, type WholeModelOptions } from './whole-model.js';

export interface WebGpuUnitsData {
  /** Part of the adapter's name; null: the fast one. */
  adapter: string | null;
  whole: Omit<WholeModelOptions, 'onPart'>;
  /** Lose the device in the middle of the run after this many; for fault tests. */
  failAfterRuns: number | null;
}

export class WebGpuUnits implements UnitServer {
  private runs = 0;

  private constructor(
    private readonly gpu: GpuDevice,
    private readonly model: WholeModel,
    private readonly start: ServerStart,
    private readonly failAfterRuns: number | null,
  ) {}

  static async load(data: WebGpuUnitsData, start: ServerStart): Promise<WebGpuUnits> {
    const gpu = await GpuDevice.open({ name: data.adapter ?? undefined });
    try {
      const model = await WholeModel.load(gpu, { ...data.whole, onUnit: start.onUnit });
      return new WebGpuUnits(gpu, model, start, data.failAfterRuns);
    } catch (error) {
      await gpu.close();
      throw error;
    }
  }

  get device(): string {
    return this.gpu.facts.name;
  }

  get bytes(): number {
    return this.model.bytes;
  }

  async run(): Promise<void> {
    const { x, y } = this.start;
    const words = (values: Float32Array): Int32Array =>
      new Int32Array(values.buffer, values.byteOffset, values.length);
    const step = this.model.step(words(x), words(y));
    if (this.failAfterRuns !== null && this.runs >= this.failAfterRuns) this.gpu.raw.destroy();
    this.runs++;
    await step;
  }

  close(): Promise<void> {
    return this.gpu.close();
  }
}
