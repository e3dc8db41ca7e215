/**
 * Is there a WebGPU adapter, and does onnxruntime run on it (its products serve fitting; models run through Dawn,
 * test/gpu/webgpu)? Chromium's software adapter (SwiftShader) counts: where its driver file lies
 * and nothing else was chosen, the tests use it.
 */
import { existsSync } from 'node:fs';
import { tmpdir } from 'node:os';

import type { GpuProvider } from '../../src/gpu/providers.js';
import { GraphBuilder } from '../../src/onnx/graph-builder.js';
import { f32Tensor, OnnxSession } from '../../src/onnx/session.js';

const SWIFTSHADER = '/usr/lib/chromium/vk_swiftshader_icd.json';

/** @returns why WebGPU tests cannot run here, null when they can */
export async function webgpuMissing(): Promise<string | null> {
  if (process.env.VK_ICD_FILENAMES === undefined && existsSync(SWIFTSHADER)) {
    process.env.VK_ICD_FILENAMES = SWIFTSHADER;
  }
  // Mesa's window-system layer, where it is installed too, complains on stderr without one.
  process.env.XDG_RUNTIME_DIR ??= tmpdir();
  const g = new GraphBuilder('probe');
  g.output(g.op('Relu', [g.input('x', 'float32', [1])], {}, 'y'), 'float32', [1]);
  try {
    const session = await OnnxSession.create(g.build(), { provider: 'webgpu', deviceOnly: true });
    await session.run({ x: f32Tensor(Float32Array.of(-1), [1]) });
    await session.release();
    return null;
  } catch (error) {
    return `no WebGPU adapter (Debian: apt-get install chromium libvulkan1 brings one): ${(error as Error).message}`;
  }
}

/**
 * Where the graph and worker tests run: onnxruntime's CPU provider always, WebGPU where there is an adapter,
 * and the provider that HYBRID_TEST_GPU names (tools/gpu-check sets it), which then must be there.
 */
export async function testProviders(): Promise<{ provider: GpuProvider | 'cpu'; reason: string | null }[]> {
  const named = process.env.HYBRID_TEST_GPU as GpuProvider | undefined;
  return [
    { provider: 'cpu', reason: null },
    ...(named === 'webgpu' ? [] : [{ provider: 'webgpu' as const, reason: await webgpuMissing() }]),
    ...(named ? [{ provider: named, reason: null }] : []),
  ];
}
