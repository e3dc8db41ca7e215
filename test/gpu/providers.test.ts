import { describe, expect, it } from 'vitest';

import { describeSelection, probeProvider, selectProvider } from '../../src/gpu/providers.js';
import { webgpuMissing } from './adapter.js';

const missing = await webgpuMissing();
/** On a machine with CUDA these would find it, which is not what they test. */
const cuda = (await probeProvider('cuda')).ok;

describe('selectProvider', () => {
  it('runs nothing for off', async () => {
    expect(await selectProvider('off')).toEqual({ chosen: null, tried: [] });
  });

  it('refuses a name it does not know', async () => {
    await expect(selectProvider('vulkan' as 'cuda')).rejects.toMatchObject({ code: 'USAGE' });
  });

  it.skipIf(cuda)(
    'is an error, with missing libraries by name, when the one asked for is absent',
    async () => {
      await expect(selectProvider('cuda')).rejects.toMatchObject({
        code: 'GPU_UNAVAILABLE',
        exitCode: 2,
        message: expect.stringMatching(
          process.platform === 'linux' ? /libonnxruntime_providers_cuda\.so/ : /cuda/,
        ),
      });
    },
  );

  it('is an error to ask for a provider of another platform', async () => {
    const absent = process.platform === 'win32' ? 'coreml' : 'dml';
    await expect(selectProvider(absent)).rejects.toMatchObject({ code: 'GPU_UNAVAILABLE' });
  });

  it.skipIf(cuda)('says why auto did not take what it tried first', async () => {
    const selection = await selectProvider('auto');
    expect(describeSelection(selection)).toMatch(missing === null ? /^webgpu \(cuda: / : /^off \(/);
  });
});

describe('probeProvider', () => {
  it.skipIf(missing !== null)('proves a working adapter by a kernel and measures a crossing', async () => {
    const probe = await probeProvider('webgpu');
    expect(probe.ok).toBe(true);
    expect(probe.reason).toMatch(/^proof run on (the|a software) adapter ./);
    expect(probe.report).toMatchObject({ packed: true, nodes: [] });
    expect(probe.report!.crossingUs).toBeGreaterThan(0);
  });

  it.skipIf(missing !== null)('does not take an adapter that is not there', async () => {
    const { VK_ICD_FILENAMES } = process.env;
    process.env.VK_ICD_FILENAMES = '/nowhere.json';
    try {
      const probe = await probeProvider('webgpu');
      expect(probe.ok).toBe(false);
      expect(probe.reason).toMatch(/adapter/);
    } finally {
      process.env.VK_ICD_FILENAMES = VK_ICD_FILENAMES;
    }
  });
});
