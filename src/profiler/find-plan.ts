/** From artifacts to the engine's plan: where they are looked for, and what they become. */
import { existsSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { FfnPlan, LayerPlan } from '../engine/ffn-plan.js';
import { UsageError } from '../errors.js';
import type { Pack } from '../pack/types.js';
import {
  cutsAt,
  isArtifactError,
  readPredictor,
  requireModel,
  type PredictorArtifact,
  type PredictorLayer,
} from '../predictor/artifact.js';
import { frequencies, readProfile, type ProfileArtifact } from './artifact.js';
import { equalSlopes } from './thresholds.js';

export interface FindPlanOptions {
  /** A profile file to use. @default looked for by name, used when it fits the model */
  profile?: string;
  /** A predictor file to use. @default as for `profile` */
  predictor?: string;
  /** Added to every layer's threshold: below 0 finds more neurons, above 0 fewer. @default 0 */
  thresholdShift?: number;
  /** Choose the thresholds for this mean recall on the held-out samples, instead of the stored ones. */
  recall?: number;
}

/** Folders of the installed package. */
const PACKAGE = fileURLToPath(new URL('../../', import.meta.url));

/** Names of models reach file names: only what is harmless there. */
export const artifactName = (model: string): string =>
  model.replace(/[^\p{L}\p{N}._-]+/gu, '-').replace(/^\.+/, '') || 'model';

export const profilePath = (folder: string, model: string): string =>
  join(folder, 'profiles', `${artifactName(model)}.profile`);
export const predictorPath = (folder: string, model: string): string =>
  join(folder, 'predictors', `${artifactName(model)}.predictor`);

/**
 * The plan for an opened pack. Files named in the options must fit; others are looked for in the current
 * folder, beside the pack and in the package, and ones of another model are passed over.
 * @returns null when there is no artifact for this model
 * @throws ArtifactError ARTIFACT_INVALID, ARTIFACT_MISMATCH
 */
export function findPlan(pack: Pack, options: FindPlanOptions = {}): FfnPlan | null {
  const found = findArtifacts(pack, options);
  const wanted = options.recall !== undefined || options.thresholdShift !== undefined;
  if (wanted && !found.predictor) {
    throw new UsageError(
      'there is no predictor for this model whose thresholds could be changed',
      'Make one: hybrid-infer profile <model>',
    );
  }
  if (!found.predictor && !found.profile) return null;
  return planOf(found.predictor?.artifact ?? null, found.profile?.artifact ?? null, options);
}

export interface FoundArtifacts {
  profile: { path: string; artifact: ProfileArtifact } | null;
  predictor: { path: string; artifact: PredictorArtifact } | null;
}

/** What artifacts are found by. */
type ModelIdentity = { header: Pick<Pack['header'], 'name' | 'fingerprint'>; path?: string };

/** The artifacts that fit a model, and where they are. */
export function findArtifacts(pack: ModelIdentity, options: FindPlanOptions = {}): FoundArtifacts {
  const { name } = pack.header;
  return {
    profile: findOne(pack, options.profile, profilePath, readProfile, name),
    predictor: findOne(pack, options.predictor, predictorPath, readPredictor, name),
  };
}

function findOne<T extends { model: { fingerprint: string; name: string; layers: number } & object }>(
  pack: ModelIdentity,
  given: string | undefined,
  pathIn: (folder: string, model: string) => string,
  read: (path: string) => T & { model: PredictorArtifact['model'] },
  name: string,
): { path: string; artifact: T } | null {
  const { fingerprint } = pack.header;
  if (given !== undefined) {
    const artifact = read(given);
    requireModel(given, artifact.model, fingerprint, name);
    return { path: given, artifact };
  }
  const beside = pack.path === undefined ? [] : [dirname(pack.path)];
  for (const folder of ['.', ...beside, PACKAGE]) {
    const path = pathIn(folder, name);
    if (!existsSync(path) || !statSync(path).isFile()) continue;
    try {
      const artifact = read(path);
      if (artifact.model.fingerprint === fingerprint) return { path, artifact };
    } catch (error) {
      // A damaged file in the user's own folders is worth an error; what the package ships was tested.
      if (folder !== PACKAGE || !isArtifactError(error)) throw error;
    }
  }
  return null;
}

/** @param options thresholdShift and recall, as for findPlan */
export function planOf(
  predictor: PredictorArtifact | null,
  profile: ProfileArtifact | null,
  options: FindPlanOptions,
): FfnPlan {
  const frequency = profile?.layers.map((layer) => frequencies(layer, profile.tokens)) ?? null;
  if (!predictor) {
    return { layers: frequency!.map((of) => layerPlan(null, of, 0)) };
  }
  const { layers } = predictor;
  const shift = options.thresholdShift ?? 0;
  const thresholds =
    options.recall === undefined
      ? layers.map((layer) => layer.threshold)
      : thresholdsFor(layers, options.recall);
  return {
    layers: layers.map((layer, l) => layerPlan(layer, frequency?.[l] ?? null, thresholds[l] + shift)),
  };
}

/** Thresholds of the layers for a mean recall, from the stored curves. */
export function thresholdsFor(layers: readonly PredictorLayer[], recall: number): number[] {
  const curves = layers.map((layer) => layer.curve);
  return equalSlopes(curves, recall).map((at, l) => curves[l].threshold[at]);
}

/** @param layer null: only the order of the neurons is known */
export function layerPlan(
  layer: PredictorLayer | null,
  frequency: Float32Array | null,
  threshold: number,
  mode = layer?.mode ?? 'exact',
): LayerPlan {
  if (!layer || mode !== 'predicted') {
    const none = new Uint32Array(0);
    return { mode, always: none, scored: none, predictor: null, frequency, cuts: layer?.cuts ?? null };
  }
  const { kind, rank, fc1, b1, fc2, reach = null, always, scoredIds } = layer.predictor;
  const cut = cutsAt(layer.predictor, threshold);
  return {
    mode,
    always,
    scored: scoredIds,
    predictor: { rank, fc1, b1, fc2, reach, contribution: kind === 'contribution', cut },
    frequency,
    cuts: layer.cuts ?? null,
  };
}
