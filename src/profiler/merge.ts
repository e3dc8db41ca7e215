/** Several profiles of one model as one, as if their texts had been one. */
import { ArtifactError } from '../errors.js';
import { acquireLock } from '../io/lock.js';
import { artifactInvalid } from '../predictor/artifact-file.js';
import { readProfile, writeProfile, type ProfileArtifact, type ProfileLayer } from './artifact.js';
import { layerHotness } from './hotness.js';

/** @throws ArtifactError ARTIFACT_INVALID, ARTIFACT_MISMATCH; HybridError LOCKED, IO_FAILED */
export async function mergeProfileFiles(paths: readonly string[], out: string): Promise<ProfileArtifact> {
  const lock = acquireLock(`${out}.lock`);
  try {
    const merged = mergeProfiles(paths.map((path) => ({ path, profile: readProfile(path) })));
    await writeProfile(out, merged);
    return merged;
  } finally {
    lock.release();
  }
}

/**
 * Several profiles of one model as one: counts add up, as if their texts had been one.
 * @throws ArtifactError ARTIFACT_MISMATCH when they belong to different models
 */
export function mergeProfiles(
  profiles: readonly { path: string; profile: ProfileArtifact }[],
): ProfileArtifact {
  const [first, ...others] = profiles;
  const { model } = first.profile;
  for (const { path, profile } of others) {
    if (profile.model.fingerprint === model.fingerprint) continue;
    throw new ArtifactError(
      'ARTIFACT_MISMATCH',
      `${path} belongs to the model ${profile.model.name}, ${first.path} to ${model.name}`,
      { hint: 'Merge profiles of one model only.' },
    );
  }
  const tokens = profiles.reduce((sum, { profile }) => sum + profile.tokens, 0);
  if (tokens >= 2 ** 32)
    throw artifactInvalid(`the profiles have ${tokens} tokens together, at most 2^32 - 1`);
  const layers = first.profile.layers.map((_, l): ProfileLayer => {
    const all = profiles.map(({ profile }) => profile.layers[l]);
    const summed = (pick: (of: ProfileLayer) => Uint32Array) =>
      Uint32Array.from(pick(all[0]), (_, i) => all.reduce((sum, of) => sum + pick(of)[i], 0));
    const counts = summed((of) => of.counts);
    const routed = all.every((of) => of.routed) ? summed((of) => of.routed!) : undefined;
    // Pairs cannot be counted again without the text: the profile with the most tokens speaks for all.
    const largest = profiles.reduce((a, b) => (b.profile.tokens > a.profile.tokens ? b : a));
    const { coActivation } = largest.profile.layers[l];
    return { counts, coActivation, ...(routed ? { routed } : {}), ...layerHotness(counts, tokens, routed) };
  });
  return { model, sources: profiles.flatMap(({ profile }) => profile.sources), tokens, layers };
}
