/** What artifacts say of the model they belong to and of how they were made. */
import { createHash } from 'node:crypto';
import { basename } from 'node:path';
import { TOOL_VERSION } from '../pack/tool-version.js';
import type { PackHeader } from '../pack/types.js';
import type { ArtifactModel, Provenance } from '../predictor/artifact.js';
import type { ProfileOptions, ResolvedOptions } from './options.js';
import type { Passages } from './passages.js';
import type { WorkFolder } from './work-folder.js';

export const describeTexts = (options: ProfileOptions): Provenance['texts'] =>
  (options.texts ?? []).map(({ name, text }) => ({
    name: basename(name), // folders of a user's machine have no place in an artifact
    sha256: createHash('sha256').update(text).digest('hex'),
    bytes: Buffer.byteLength(text),
  }));

export const provenanceOf = (
  work: WorkFolder,
  resolved: ResolvedOptions,
  header: PackHeader,
  texts: Provenance['texts'],
  passages: Passages,
  kernels: string,
  figures: { samples: number; heldOutSamples: number },
): Provenance => ({
  toolVersion: TOOL_VERSION,
  createdAt: work.createdAt,
  texts,
  selfWritten: texts.length === 0,
  tokens: passages.windows.length * passages.window,
  ...figures,
  window: passages.window,
  seed: resolved.seed,
  quant: header.quant,
  kernels,
});

export const modelOf = (header: PackHeader): ArtifactModel => ({
  name: header.name,
  fingerprint: header.fingerprint,
  layers: header.config.layers,
  hiddenSize: header.config.hiddenSize,
  intermediateSize: header.config.intermediateSize,
});
