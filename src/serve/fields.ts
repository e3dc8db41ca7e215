/** Fields that several routes share. What is not exactly what a field takes is refused, never rounded or clamped. */
import { z } from 'zod';
import * as limits from './limits.js';

/** Clients write null for what they leave out. */
export const maybe = <T extends z.ZodType>(schema: T) => schema.nullish().transform((v) => v ?? undefined);

const between = (min: number, max: number) => z.number().min(min).max(max);
const whole = (min: number, max: number) => z.number().int().min(min).max(max);

const stopText = z.string().min(1).max(limits.MAX_STOP_LENGTH);
const biasKey = z.string().regex(/^\d{1,10}$/, 'expected token ids as keys');

export const functionName = z
  .string()
  .regex(/^[A-Za-z0-9_-]{1,64}$/, 'expected a name of letters, digits, _ and -, at most 64');

/** How tokens are chosen: OpenAI's names, and those that llama-server and vLLM use for what OpenAI lacks. */
export const samplingFields = {
  model: maybe(z.string().min(1).max(512)),
  temperature: maybe(between(0, 2)),
  top_p: maybe(z.number().gt(0).max(1)),
  top_k: maybe(whole(0, 2 ** 31 - 1)),
  min_p: maybe(between(0, 1)),
  repetition_penalty: maybe(between(0.01, 100)),
  presence_penalty: maybe(between(-2, 2)),
  frequency_penalty: maybe(between(-2, 2)),
  seed: maybe(whole(0, limits.MAX_SEED)),
  stop: maybe(z.union([stopText, z.array(stopText).max(limits.MAX_STOPS)])),
  logit_bias: maybe(
    z
      .record(biasKey, between(-100, 100))
      .refine(
        (bias) => Object.keys(bias).length <= limits.MAX_BIASES,
        `expected at most ${limits.MAX_BIASES} tokens`,
      ),
  ),
  n: maybe(whole(1, 128)),
  stream: maybe(z.boolean()),
  stream_options: maybe(
    z.strictObject({ include_usage: maybe(z.boolean()), include_obfuscation: maybe(z.literal(false)) }),
  ),
};

/** Fields that ask for nothing here: who asks, and values that are the only behaviour there is. */
export const harmlessFields = {
  user: maybe(z.string().max(1024)),
  safety_identifier: maybe(z.string().max(1024)),
  prompt_cache_key: maybe(z.string().max(1024)),
  metadata: maybe(z.record(z.string().max(64), z.string().max(512))),
  store: maybe(z.literal(false, 'answers are not stored: expected false')),
  service_tier: maybe(z.enum(['auto', 'default'])),
};

/** Compute the full gate beside the predictor and report recall. */
const measureRecall = { measure_recall: maybe(z.boolean()) };

/** This server's own: what a measurement wants to see of the sparsity. */
export const recallField = maybe(z.strictObject(measureRecall));

/** And what a page does: densities of every layer, in a stream while the answer is written. */
export const layersField = maybe(z.strictObject({ ...measureRecall, layers: maybe(z.boolean()) }));

export const schemaObject = z.union([z.record(z.string(), z.unknown()), z.boolean()]);

/** Text given as such or in parts; pictures and sound are refused by the name of their type. */
export const textContent = z.union([
  z.string(),
  z
    .array(
      z.strictObject({ type: z.literal('text', 'only parts of type text are supported'), text: z.string() }),
    )
    .max(limits.MAX_MESSAGES)
    .transform((parts) => parts.map((part) => part.text).join('')),
]);

type SamplingField = Exclude<keyof typeof samplingFields, 'model' | 'n' | 'stream' | 'stream_options'>;
/** What a request says about sampling, read. */
export type Sampling = { [K in SamplingField]?: z.output<(typeof samplingFields)[K]> };
