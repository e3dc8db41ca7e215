/**
 * Shared libraries a provider needs and this machine lacks, by name. For CUDA the list comes from the
 * provider library itself (its ELF "needed" entries), so it is right for whatever CUDA version that
 * library was built against; without it, from NVIDIA's names for the version onnxruntime-node installs.
 */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';

import { onnxRuntimeFolder } from '../onnx/runtime.js';
import { neededLibraries } from './elf.js';
import type { GpuProvider } from './providers.js';

/** Not shipped in the npm package: its install script fetches them. */
export const CUDA_PROVIDER_FILES = [
  'libonnxruntime_providers_shared.so',
  'libonnxruntime_providers_cuda.so',
] as const;
/** Used only while the provider library, which would tell, is absent itself. */
const CUDA_12_LIBRARIES = [
  'libcudart.so.12',
  'libcublas.so.12',
  'libcublasLt.so.12',
  'libcurand.so.10',
  'libcufft.so.11',
  'libcudnn.so.9',
];
const CUDA_DRIVER = 'libcuda.so.1';
const VULKAN_LOADER = 'libvulkan.so.1';
/** Folders the dynamic loader looks into besides its cache and LD_LIBRARY_PATH. */
const DEFAULT_FOLDERS = ['/lib', '/usr/lib', '/lib64', '/usr/lib64'];

/** Folder of the native binding, null when onnxruntime-node is not installed for this platform. */
export function bindingFolder(): string | null {
  const installed = onnxRuntimeFolder();
  if (installed === null) return null;
  const folder = join(installed, 'bin', 'napi-v6', process.platform, process.arch);
  return existsSync(folder) ? folder : null;
}

/** Names of what is missing; empty when everything was found, or where there is no way to tell. */
export function missingLibraries(provider: GpuProvider): string[] {
  if (process.platform !== 'linux') return [];
  if (provider === 'webgpu') return [VULKAN_LOADER].filter((name) => !findLibrary(name));
  if (provider !== 'cuda') return [];
  const folder = bindingFolder();
  if (folder === null) return [...CUDA_PROVIDER_FILES];
  const absent = CUDA_PROVIDER_FILES.filter((name) => !existsSync(join(folder, name)));
  const providerFile = join(folder, CUDA_PROVIDER_FILES[1]);
  const needed = absent.length === 0 ? neededLibraries(providerFile) : CUDA_12_LIBRARIES;
  const names = new Set([...needed, CUDA_DRIVER]);
  return [...absent, ...[...names].filter((name) => !findLibrary(name) && !existsSync(join(folder, name)))];
}

/** As the dynamic loader would: LD_LIBRARY_PATH, its cache, the default folders. */
export function findLibrary(name: string): boolean {
  const folders = [...(process.env.LD_LIBRARY_PATH ?? '').split(':').filter(Boolean), ...DEFAULT_FOLDERS];
  return folders.some((folder) => existsSync(join(folder, name))) || loaderCache().has(name);
}

let cache: Set<string> | undefined;

/** Names in `ldconfig -p`. Empty where there is no ldconfig (musl). */
function loaderCache(): Set<string> {
  if (cache !== undefined) return cache;
  cache = new Set();
  for (const command of ['ldconfig', '/sbin/ldconfig']) {
    try {
      const listing = execFileSync(command, ['-p'], {
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'ignore'],
      });
      for (const line of listing.split('\n')) cache.add(line.trim().split(' ')[0]);
      break;
    } catch {
      continue;
    }
  }
  return cache;
}
