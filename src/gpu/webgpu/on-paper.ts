/**
 * What a token dispatches and reads on a GPU, without one: the model is loaded onto a device whose buffers have sizes
 * and no memory, whose kernels have texts and no pipelines, and which runs nothing.
 */
import type { FfnMode } from '../../engine/ffn-plan.js';
import { GpuDevice, type AdapterFacts } from './device.js';
import type { TokenLoad } from './operation.js';
import { WholeModel, type WholeModelOptions } from './whole-model.js';

/** A card of today; what counts here is that it can bind a matrix at once. */
const FACTS: AdapterFacts = {
  name: 'paper',
  vendor: '',
  architecture: '',
  software: false,
  subgroups: null,
  timestamps: false,
  halves: false,
  maxBindingBytes: 2 ** 31,
  maxBufferBytes: 2 ** 31,
  maxWorkgroupInvocations: 1024,
  maxWorkgroupBytes: 32 * 2 ** 10,
  maxWorkgroups: 65_535,
  storageBuffersPerKernel: 10,
  bindingAlignment: 256,
};

export function paperDevice(facts: Partial<AdapterFacts> = {}): GpuDevice {
  const nothing = (): void => undefined;
  const later = (): Promise<null> => Promise.resolve(null);
  const raw = {
    lost: new Promise(nothing),
    pushErrorScope: nothing,
    popErrorScope: later,
    createBuffer: ({ label, size }: GPUBufferDescriptor) => ({ label, size, destroy: nothing }),
    createShaderModule: nothing,
    createBindGroupLayout: nothing,
    createPipelineLayout: nothing,
    createComputePipelineAsync: later,
    createBindGroup: nothing,
    createCommandEncoder: () => ({
      beginComputePass: () => ({ setPipeline: nothing, setBindGroup: nothing, dispatchWorkgroups: nothing, end: nothing }), // prettier-ignore
      finish: nothing,
    }),
    queue: { writeBuffer: nothing, onSubmittedWorkDone: later, submit: nothing },
  };
  return GpuDevice.on({ ...FACTS, ...facts }, raw as unknown as GPUDevice);
}

/** One kind of operation in a token. */
export interface OperationOnPaper {
  name: string;
  dispatches: number;
  /** Of weights and of the cache. */
  bytes: number;
}

/**
 * One token's operations by name, in the order in which they first come, and what the device holds.
 * @param loads what the token meets, by the mode of all layers
 */
export async function tokenOnPaper<Mode extends FfnMode>(
  options: WholeModelOptions,
  loads: Record<Mode, TokenLoad>,
): Promise<{ operations: Record<Mode, OperationOnPaper[]>; deviceBytes: number }> {
  const gpu = paperDevice();
  const model = await WholeModel.load(gpu, options);
  const deviceBytes = gpu.allocatedBytes;
  const operations = {} as Record<Mode, OperationOnPaper[]>;
  for (const [mode, load] of Object.entries(loads) as [Mode, TokenLoad][]) {
    const byName = new Map<string, OperationOnPaper>();
    for (const operation of await model.operations(mode)) {
      const { name } = operation;
      const sum = byName.get(name) ?? { name, dispatches: 0, bytes: 0 };
      sum.dispatches += operation.dispatches(1).length;
      sum.bytes += operation.reads(load);
      byName.set(name, sum);
    }
    operations[mode] = [...byName.values()];
  }
  return { operations, deviceBytes };
}
