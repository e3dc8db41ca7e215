/**
 * profiles/<model>.profile: which neurons are hot and which are cold, and on what text that was seen. The
 * engine orders neurons by it, the placement on a GPU starts from it, and profiles of one model can be merged.
 */
import { z } from 'zod';
import { modelSchema, provenanceSchema, type ArtifactModel, type Provenance } from '../predictor/artifact.js';
import {
  artifactInvalid,
  parse,
  readArtifact,
  toBytes,
  u32Schema,
  writeArtifact,
  type ArtifactKind,
} from '../predictor/artifact-file.js';
import { layerHotness, type CoActivation, type LayerHotness } from './hotness.js';

export const PROFILE_FILE: ArtifactKind = { magic: 'HYBPROF\0', version: 1, name: 'profile' };

export interface ProfileLayer extends LayerHotness {
  /** u32 [nFf]: tokens in which the neuron was active */
  counts: Uint32Array;
  coActivation: CoActivation;
  /** u32 [experts]: tokens that met each expert. @default no mixture */
  routed?: Uint32Array;
}

export interface ProfileArtifact {
  model: ArtifactModel;
  /** One entry a run; merged profiles have several. */
  sources: Provenance[];
  /** Tokens behind the counts. */
  tokens: number;
  layers: ProfileLayer[];
}

const metaSchema = z.strictObject({
  model: modelSchema,
  sources: z.array(provenanceSchema).min(1).max(10_000),
  tokens: z.number().int().min(1),
});
const neuron = z.number().int().min(0);
const layerSchema = z.strictObject({
  counts: u32Schema,
  routed: u32Schema.optional(),
  coActivation: z.strictObject({
    neurons: neuron,
    jaccard: z.number(),
    independent: z.number(),
    strongest: z.array(z.strictObject({ a: neuron, b: neuron, jaccard: z.number() })).max(1000),
  }),
});

export function writeProfile(
  path: string,
  { model, sources, tokens, layers }: ProfileArtifact,
): Promise<void> {
  return writeArtifact(path, PROFILE_FILE, {
    meta: { model, sources, tokens },
    // Everything else follows from the counts.
    blocks: layers.map(({ counts, coActivation, routed }) => ({
      counts: toBytes(counts),
      coActivation,
      ...(routed ? { routed: toBytes(routed) } : {}),
    })),
  });
}

/** @throws ArtifactError ARTIFACT_INVALID; HybridError when the file cannot be read */
export function readProfile(path: string): ProfileArtifact {
  const raw = readArtifact(path, PROFILE_FILE);
  const meta = parse(metaSchema, raw.meta, `${path}: header`);
  const { model, tokens } = meta;
  if (raw.blocks.length !== model.layers) {
    throw artifactInvalid(`${path}: expected ${model.layers} layers, found ${raw.blocks.length}`);
  }
  const layers = raw.blocks.map((block, l) => {
    const layer = parse(layerSchema, block, `${path}: layer ${l}`);
    if (layer.counts.length !== model.intermediateSize) {
      throw artifactInvalid(
        `${path}: layer ${l}: expected ${model.intermediateSize} counts, found ${layer.counts.length}`,
      );
    }
    if (layer.counts.some((count) => count > tokens)) {
      throw artifactInvalid(`${path}: layer ${l}: a neuron was active in more than ${tokens} tokens`);
    }
    const { counts, routed } = layer;
    if (routed && (counts.length % routed.length !== 0 || routed.some((met) => met > tokens))) {
      throw artifactInvalid(`${path}: layer ${l}: the tokens of its experts are damaged`);
    }
    return { ...layer, ...layerHotness(counts, tokens, routed) };
  });
  return { ...meta, layers };
}

/** Activation frequencies of a layer, f32 [nFf]. */
export const frequencies = (layer: ProfileLayer, tokens: number): Float32Array =>
  Float32Array.from(layer.counts, (count) => count / tokens);
