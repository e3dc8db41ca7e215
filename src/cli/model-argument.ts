/** What `[model]` and `[prompt]` mean. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { HybridError, UsageError } from '../errors.js';
import { pulledPath } from '../hub/cached.js';
import { isHubName } from '../hub/repository.js';

const MODELS = fileURLToPath(new URL('../../models/', import.meta.url));
export const DEMO_NAME = 'tales-4m-relu';
/** The model that comes with the package. */
export const DEMO_MODEL = join(MODELS, DEMO_NAME);

/**
 * The path a user means: an existing path, a pulled model (`hf:owner/name`), or the demo model by its name;
 * none: the demo model.
 * @throws HybridError FILE_NOT_FOUND
 */
export function modelPath(argument: string | undefined): string {
  if (argument !== undefined && isHubName(argument)) return pulledPath(argument);
  if (argument === undefined || (argument === DEMO_NAME && !existsSync(argument))) return DEMO_MODEL;
  if (existsSync(argument)) return argument;
  throw new HybridError('FILE_NOT_FOUND', `${argument}: no such file or folder`, {
    hint: `Expected a model folder, a .gguf file, a pack, a pulled model (hf:owner/name), or nothing for the demo model (${DEMO_NAME}).`,
  });
}

/**
 * `run` takes `[model] [prompt]`, or `[model]` and a prompt named by an option. A single argument without that is
 * the model when it exists or looks like a path, and a prompt for the demo model otherwise.
 * @throws HybridError FILE_NOT_FOUND; UsageError when there are two prompts
 */
export function modelAndPrompt(
  first?: string,
  second?: string,
  named?: string,
): { model: string; prompt?: string } {
  if (named !== undefined) {
    if (second !== undefined)
      throw new UsageError(`two prompts: "${second}" and --prompt "${named}"`, 'Leave one of them out.');
    return { model: first === undefined ? DEMO_MODEL : modelPath(first), prompt: named };
  }
  if (first === undefined) return { model: DEMO_MODEL };
  if (second === undefined) {
    if (first === '-' || !(first === DEMO_NAME || existsSync(first) || looksLikePath(first)))
      return { model: DEMO_MODEL, prompt: first };
    return { model: modelPath(first) };
  }
  try {
    return { model: modelPath(first), prompt: second };
  } catch (error) {
    if (!(error instanceof HybridError) || looksLikePath(first)) throw error;
    throw new HybridError(error.code, error.message, {
      hint: `Two arguments are a model and a prompt; a prompt of several words needs quotes: "${first} ${second}".`,
    });
  }
}

/** A pulled model; or no spaces, and a separator, a leading dot or an ending that only model files have. */
function looksLikePath(text: string): boolean {
  return (
    isHubName(text) || (!/\s/.test(text) && /[/\\]|^\.|^~|\.(gguf|hpack|pack|safetensors|json)$/.test(text))
  );
}
