/**
 * The device that WebGPU tests run on. Chromium's software adapter (SwiftShader) counts: where its driver file
 * lies and nothing else was chosen, they use it.
 */
import { existsSync } from 'node:fs';
import { tmpdir } from 'node:os';

import { GpuDevice } from '../../../src/gpu/webgpu/device.js';

const SWIFTSHADER = '/usr/lib/chromium/vk_swiftshader_icd.json';

/** Where the drivers are told of the software adapter. Before the first device is opened. */
export function useSoftwareAdapter(): void {
  if (process.env.VK_ICD_FILENAMES === undefined && existsSync(SWIFTSHADER)) {
    process.env.VK_ICD_FILENAMES = SWIFTSHADER;
  }
  // Mesa's window-system layer, where it is installed too, complains on stderr without one.
  process.env.XDG_RUNTIME_DIR ??= tmpdir();
}

/** @returns why WebGPU tests cannot run here, null when they can */
export async function webgpuMissing(): Promise<string | null> {
  useSoftwareAdapter();
  try {
    await (await GpuDevice.open()).close();
    return null;
  } catch (error) {
    return `no WebGPU adapter (Debian: apt-get install chromium libvulkan1 brings one): ${(error as Error).message}`;
  }
}

/** Skips with its reason where there is none. */
export const reason = await webgpuMissing();
