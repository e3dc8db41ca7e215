/** Units as onnxruntime sessions, for CUDA, DirectML and CoreML. A run is synchronous native code. */
import { f32Tensor, OnnxSession } from '../onnx/session.js';
import type { PackHeader } from '../pack/types.js';
import type { OnnxWeights } from '../profiler/gpu-bytes.js';
import { buildUnit, type GpuUnit } from './hot-ffn.js';
import type { ServerStart, UnitServer } from './unit-server.js';
import { packReader } from './weights.js';

export interface OnnxUnitsData {
  /** The pack's descriptor: valid in every thread of the process. */
  fd: number;
  packPath: string;
  header: PackHeader;
  units: GpuUnit[];
  weights: OnnxWeights;
  /** onnxruntime's provider name; `cpu` only in tests. */
  provider: string;
  providerOptions: Record<string, unknown>;
  /** Most rows in one run. */
  maxRows: number;
  /** Fail every run after this many, as a lost device would; for fault tests. */
  failAfterRuns: number | null;
}

interface LoadedUnit {
  session: OnnxSession;
  inputs: number;
  /** Row width of the graph's y, and of the unit's: the first may be padded. */
  graphOutputs: number;
  outputs: number;
}

export class OnnxUnits implements UnitServer {
  readonly device = null;
  bytes = 0;
  private readonly loaded: LoadedUnit[] = [];
  private runs = 0;

  private constructor(
    private readonly data: OnnxUnitsData,
    private readonly start: ServerStart,
  ) {}

  static async load(data: OnnxUnitsData, start: ServerStart): Promise<OnnxUnits> {
    const units = new OnnxUnits(data, start);
    const read = packReader(data.fd, data.packPath);
    for (const unit of data.units) {
      const began = performance.now();
      const { graph, inputs, outputs } = buildUnit(read, data.header, unit, data.weights);
      const bytes = graph.initializerBytes;
      const session = await OnnxSession.create(graph.build(), {
        provider: data.provider,
        providerOptions: data.providerOptions,
        deviceOnly: data.provider !== 'cpu',
      });
      // The first run compiles shaders and allocates: now, not in the first token.
      await session.run({ x: f32Tensor(new Float32Array(inputs), [1, inputs]) });
      units.loaded.push({ session, inputs, graphOutputs: outputs, outputs: unit.outputs });
      units.bytes += bytes;
      if (!start.onUnit(bytes, performance.now() - began)) break;
    }
    return units;
  }

  async run(number: number, tokens: number): Promise<void> {
    const { data } = this;
    const { x: from, y: to } = this.start;
    const { session, inputs, outputs, graphOutputs } = this.loaded[number];
    for (let begin = 0; begin < tokens; begin += data.maxRows) {
      const rows = Math.min(data.maxRows, tokens - begin);
      if (data.failAfterRuns !== null && this.runs >= data.failAfterRuns)
        throw new Error('device lost (simulated)');
      // slice copies out of shared memory, which onnxruntime refuses.
      const x = from.slice(begin * inputs, (begin + rows) * inputs);
      const { y } = await session.run({ x: f32Tensor(x, [rows, inputs]) });
      this.runs++;
      const values = y.data as Float32Array;
      if (values.length !== rows * graphOutputs) throw new Error(`y has ${values.length} values`);
      if (graphOutputs === outputs) {
        to.set(values, begin * outputs);
        continue;
      }
      for (let t = 0; t < rows; t++) {
        const row = values.subarray(t * graphOutputs, t * graphOutputs + outputs);
        to.set(row, (begin + t) * outputs);
      }
    }
  }

  async close(): Promise<void> {
    for (const { session } of this.loaded) await session.release();
  }
}
