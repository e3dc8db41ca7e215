/**
 * Kernels: WGSL text with named constants and a list of what it binds, compiled to a pipeline. A step is a list
 * of dispatches whose bind groups were made when the model was loaded; encoding it allocates nothing.
 */
import { HybridError } from '../../errors.js';
import { COMPUTE_STAGE } from './dawn.js';
import type { GpuDevice } from './device.js';

export interface KernelBinding {
  name: string;
  /** `read`, `write` (read and write): storage; a buffer may be bound for reading or for writing, not for both. */
  access: 'read' | 'write' | 'uniform';
  /** WGSL type, such as `array<vec4<u32>>`. */
  type: string;
}

/** Everything a pipeline is made of. Two equal texts are one kernel. */
export interface KernelText {
  /** In errors and in tables of dispatches. */
  name: string;
  /** Become `const NAME = value;` before the code: whole numbers u32, others as written, such as '1e-5f'. */
  constants: Readonly<Record<string, number | boolean | string>>;
  /** Group 0, in this order. */
  bindings: readonly KernelBinding[];
  /** WGSL with one entry point, `main`. */
  code: string;
  /** WGSL extensions, such as `subgroups`. */
  enable?: readonly string[];
}

export type BufferPart = GPUBuffer | { buffer: GPUBuffer; offset: number; size: number };

/** Work-groups in x, y, z (1 where left out); or three u32 in a buffer. */
export type Workgroups =
  readonly [x: number, y?: number, z?: number] | { readonly indirect: GPUBuffer; readonly offset: number };

/** One entry of a step. */
export interface Dispatch {
  kernel: Kernel;
  bindings: GPUBindGroup;
  workgroups: Workgroups;
}

export class Kernel {
  constructor(
    private readonly gpu: GpuDevice,
    readonly text: KernelText,
    readonly pipeline: GPUComputePipeline,
    private readonly layout: GPUBindGroupLayout,
  ) {}

  get name(): string {
    return this.text.name;
  }

  /** Buffers for the text's bindings, in their order. */
  bind(...parts: readonly BufferPart[]): GPUBindGroup {
    const { bindings, name } = this.text;
    if (parts.length !== bindings.length) {
      throw new RangeError(`${name}: expected ${bindings.length} buffers, found ${parts.length}`);
    }
    return this.gpu.raw.createBindGroup({
      label: name,
      layout: this.layout,
      entries: parts.map((part, binding) => ({
        binding,
        resource: 'buffer' in part ? part : { buffer: part },
      })),
    });
  }
}

/** Adds a dispatch to a compute pass. */
export function encode(pass: GPUComputePassEncoder, { kernel, bindings, workgroups }: Dispatch): void {
  pass.setPipeline(kernel.pipeline);
  pass.setBindGroup(0, bindings);
  if ('indirect' in workgroups) pass.dispatchWorkgroupsIndirect(workgroups.indirect, workgroups.offset);
  else pass.dispatchWorkgroups(workgroups[0], workgroups[1] ?? 1, workgroups[2] ?? 1);
}

/** Dispatches as one pass: each sees what those before it wrote. */
export function encodePass(encoder: GPUCommandEncoder, dispatches: Iterable<Dispatch>): void {
  const pass = encoder.beginComputePass();
  for (const dispatch of dispatches) encode(pass, dispatch);
  pass.end();
}

/** The WGSL that is compiled: extensions, constants, bindings, code. */
export function kernelSource({ constants, bindings, code, enable = [] }: KernelText): string {
  const access = { read: 'storage, read', write: 'storage, read_write', uniform: 'uniform' };
  return [
    ...enable.map((extension) => `enable ${extension};`),
    ...Object.entries(constants).map(([name, value]) => `const ${name} = ${literal(value)};`),
    ...bindings.map((b, i) => `@group(0) @binding(${i}) var<${access[b.access]}> ${b.name}: ${b.type};`),
    code,
  ].join('\n');
}

const literal = (value: number | boolean | string): string =>
  typeof value !== 'number'
    ? String(value)
    : Number.isInteger(value) && value >= 0
      ? `${value}u`
      : `${value}f`;

/** For GpuDevice.kernel, which keeps them. @throws HybridError GPU_FAILED: what the compiler says, with lines */
export async function compileKernel(gpu: GpuDevice, text: KernelText): Promise<Kernel> {
  gpu.check();
  const source = kernelSource(text);
  const device = gpu.raw;
  device.pushErrorScope('validation');
  const module = device.createShaderModule({ label: text.name, code: source });
  const types = { read: 'read-only-storage', write: 'storage', uniform: 'uniform' } as const;
  const layout = device.createBindGroupLayout({
    label: text.name,
    entries: text.bindings.map(({ access }, binding) => ({
      binding,
      visibility: COMPUTE_STAGE,
      buffer: { type: types[access] },
    })),
  });
  const pipelineLayout = device.createPipelineLayout({ bindGroupLayouts: [layout] });
  const compiling = device.createComputePipelineAsync({
    label: text.name,
    layout: pipelineLayout,
    compute: { module, entryPoint: 'main' },
  });
  const scope = device.popErrorScope();
  try {
    const pipeline = await compiling;
    await scope;
    return new Kernel(gpu, text, pipeline, layout);
  } catch (cause) {
    const error = await scope.catch(() => null);
    gpu.check();
    const said = await compilerMessages(module, source);
    const message = said || (error?.message ?? (cause as Error).message);
    throw new HybridError(
      'GPU_FAILED',
      `kernel ${text.name} does not compile on ${gpu.facts.name}: ${message}`,
      {
        cause,
      },
    );
  }
}

/** `line 12: what is wrong: the line`, for each error. */
async function compilerMessages(module: GPUShaderModule, source: string): Promise<string> {
  const lines = source.split('\n');
  const { messages } = await module.getCompilationInfo();
  return [...messages]
    .filter(({ type }) => type === 'error')
    .map(({ lineNum, message }) => `line ${lineNum}: ${message}: ${lines[lineNum - 1]?.trim() ?? ''}`)
    .join('; ');
}
