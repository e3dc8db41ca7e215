/** config.json in its dialects -> ModelConfig. zod checks the form, the code below it the meaning. */
import { z } from 'zod';
import { ModelError } from '../errors.js';
import { isObject } from '../io/strict-json.js';
import type { ActivationKind } from '../kernels/kernels.js';
import {
  ACTIVATIONS,
  findArchitecture,
  likeLlama,
  supportedNames,
  type Architecture,
} from './architectures.js';
import { rotaryDims } from './block.js';
import { configSchema, type RawConfig, type RawRope } from './config-schema.js';
import * as limits from './limits.js';
import { longropeMagnitude, yarnMagnitude } from './rope.js';
import { HUGGING_FACE, type Naming } from './tensor-names.js';
import type { ModelConfig, RopeScaling } from './types.js';

export interface ReadConfig {
  config: ModelConfig;
  /** What the model's files call its tensors. */
  naming: Naming;
  /** Remarks for the user. */
  warnings: string[];
}

/**
 * @param value parsed config.json
 * @param name of the file, for messages
 * @throws ModelError MODEL_INVALID or MODEL_UNSUPPORTED, naming the field
 */
export function readConfig(value: unknown, name: string): ReadConfig {
  // The architecture first: a model of another kind should be refused by its name, not by a missing field.
  const architecture = pickArchitecture(value, name);
  const parsed = configSchema.safeParse(usualNames(value, architecture));
  if (!parsed.success) {
    const found = parsed.error.issues.map(({ path: [field, ...inside], message }) => {
      const own = nameInFile(value, architecture, field);
      return `${[own, ...inside].join('.')}: ${message}`;
    });
    throw new ModelError('MODEL_INVALID', `${name}: ${found.join('; ')}`);
  }
  const raw = parsed.data;
  const warnings: string[] = [];
  const refuse = (what: string, hint = ''): never => {
    throw new ModelError('MODEL_UNSUPPORTED', `${name}: ${what} is not supported`, { hint });
  };
  const other = architecture.describe?.(raw, refuse) ?? {};
  const { block, ends } = likeLlama(other);
  const rope = raw.rope_parameters ?? raw.rope_scaling;
  const headDim = raw.head_dim ?? raw.hidden_size / raw.num_attention_heads;
  const original = rope?.original_max_position_embeddings ?? raw.original_max_position_embeddings;
  const scaling = readRopeScaling(rope, name, raw.max_position_embeddings, original);
  if (block.attention.rotaryDims === null) {
    const share = rope?.partial_rotary_factor ?? raw.partial_rotary_factor ?? 1;
    if (share !== 1) block.attention.rotaryDims = Math.trunc(headDim * share);
  }

  const config: ModelConfig = {
    architecture: architecture.name,
    hiddenSize: raw.hidden_size,
    intermediateSize: raw.intermediate_size * (block.ffn.experts?.count ?? 1),
    layers: raw.num_hidden_layers,
    heads: raw.num_attention_heads,
    kvHeads: other.kvHeads ?? raw.num_key_value_heads ?? raw.num_attention_heads,
    headDim,
    vocabSize: raw.vocab_size,
    maxContext: contextOf(raw.max_position_embeddings, scaling),
    rmsEpsilon: raw.rms_norm_eps,
    ropeTheta: rope?.rope_theta ?? raw.rope_theta ?? 10000,
    ropeScaling: scaling,
    activation: readActivation(raw, architecture, name, warnings),
    qkvBias: other.qkvBias ?? false,
    outputBias: other.outputBias ?? false,
    tiedEmbeddings: raw.tie_word_embeddings ?? false,
    embeddingScale: other.embeddingScale ?? 1,
    residualScale: other.residualScale ?? 1,
    logitScale: other.logitScale ?? 1,
    block,
    ends,
    bosId: raw.bos_token_id ?? null,
    eosIds: raw.eos_token_id === undefined ? [] : [raw.eos_token_id].flat(),
  };
  checkShape(config, name);
  checkTokenIds(config, name);
  const names = other.names ?? architecture.names ?? HUGGING_FACE;
  return { config, naming: withQuantisation(names, raw, name), warnings };
}

function pickArchitecture(value: unknown, name: string): Architecture {
  const names = z.object({ architectures: z.array(z.string()).min(1) }).safeParse(value);
  if (!names.success) {
    throw new ModelError(
      'MODEL_INVALID',
      `${name}: expected "architectures" to name the model's architecture`,
    );
  }
  const found = names.data.architectures[0];
  const row = findArchitecture(found);
  if (row) return row;
  throw new ModelError('MODEL_UNSUPPORTED', `${name}: architecture ${found} is not supported`, {
    hint: `Supported: ${supportedNames()}.`,
  });
}

/** The config with its architecture's defaults, and its fields under the usual names. */
function usualNames(value: unknown, { fields = {}, defaults = {} }: Architecture): unknown {
  if (!isObject(value)) return value;
  const all = new Map(Object.entries(value));
  for (const [key, byDefault] of Object.entries(defaults)) {
    if ((all.get(key) ?? null) === null) all.set(key, byDefault);
  }
  for (const [theirs, usual] of Object.entries(fields)) {
    const found = all.get(theirs) ?? null;
    if (found !== null) all.set(usual, found);
  }
  return Object.fromEntries(all);
}

/** What the file, or else its architecture, calls a field. */
function nameInFile(value: unknown, { fields = {} }: Architecture, usual: PropertyKey): PropertyKey {
  const own = isObject(value) ? value : {};
  const theirs = Object.keys(fields).filter((name) => fields[name] === usual);
  return theirs.find((name) => (own[name] ?? null) !== null) ?? (usual in own ? usual : (theirs[0] ?? usual));
}

/** Published weights that are quantised already: BitNet's packed ternary ones are read, others are not. */
function withQuantisation(names: Naming, raw: RawConfig, name: string): Naming {
  const quantisation = raw.quantization_config;
  if (quantisation === undefined) return names;
  const { quant_method: method, quantization_mode: mode, linear_class: kind } = quantisation;
  if (method !== 'bitnet' || mode === 'online') {
    const what =
      method === 'bitnet'
        ? 'weights that become ternary when the model runs'
        : 'weights that are already quantised';
    throw new ModelError('MODEL_UNSUPPORTED', `${name}: quantization_config: ${what} are not supported`, {
      hint:
        method === 'bitnet'
          ? 'Use the model with packed ternary weights.'
          : 'Use the F16 or BF16 model, or a GGUF file.',
    });
  }
  return {
    ...names,
    packedTernary: true,
    // transformers' BitLinear divides by the scale, AutoBitLinear multiplies.
    scaleOf: {
      name: (matrix) => matrix.replace(/\.weight$/, '.weight_scale'),
      divide: kind !== 'autobitlinear',
      required: true,
    },
  };
}

// ---- positions ---------------------------------------------------------------------------------------------

/** What scaling stretches the context to, where a config states the original one. */
const contextOf = (maxPosition: number, scaling: RopeScaling): number =>
  scaling?.type === 'yarn' || scaling?.type === 'dynamic'
    ? Math.min(
        limits.MAX_CONTEXT,
        Math.max(maxPosition, Math.floor(scaling.factor * scaling.originalMaxPosition)),
      )
    : maxPosition;

function readRopeScaling(
  rope: RawRope | undefined,
  name: string,
  maxPosition: number,
  originalMaxPosition = maxPosition,
): RopeScaling {
  if (rope?.full_attention !== undefined || rope?.sliding_attention !== undefined) {
    throw new ModelError(
      'MODEL_UNSUPPORTED',
      `${name}: rope_parameters for each kind of layer are not supported`,
    );
  }
  const type = rope?.rope_type ?? rope?.type ?? 'default';
  if (rope === undefined || type === 'default') return null;
  const need = (field: 'factor' | 'low_freq_factor' | 'high_freq_factor'): number => {
    const value = rope[field];
    if (value !== undefined) return value;
    throw new ModelError('MODEL_INVALID', `${name}: rope scaling ${type} without ${field}`);
  };
  switch (type) {
    case 'linear':
      return { type, factor: need('factor') };
    case 'dynamic':
      return { type, factor: need('factor'), originalMaxPosition };
    case 'yarn':
      return {
        type,
        factor: need('factor'),
        originalMaxPosition,
        betaFast: rope.beta_fast ?? 32,
        betaSlow: rope.beta_slow ?? 1,
        attentionFactor: yarnFactor(rope),
        truncate: rope.truncate ?? true,
      };
    case 'llama3': {
      const scaling: RopeScaling = {
        type,
        factor: need('factor'),
        lowFreqFactor: need('low_freq_factor'),
        highFreqFactor: need('high_freq_factor'),
        originalMaxPosition,
      };
      if (scaling.highFreqFactor > scaling.lowFreqFactor) return scaling;
      throw new ModelError(
        'MODEL_INVALID',
        `${name}: rope scaling llama3: high_freq_factor must be above low_freq_factor`,
      );
    }
    case 'longrope':
      return {
        type,
        shortFactors: pairFactors(rope, 'short_factor', name),
        longFactors: pairFactors(rope, 'long_factor', name),
        originalMaxPosition,
        attentionFactor:
          rope.attention_factor ?? longropeMagnitude(maxPosition / originalMaxPosition, originalMaxPosition),
      };
    default:
      throw new ModelError(
        'MODEL_UNSUPPORTED',
        `${name}: rope scaling ${JSON.stringify(type)} is not supported`,
        { hint: 'Supported: default, linear, llama3, yarn, dynamic, longrope.' },
      );
  }
}

function pairFactors(rope: RawRope, field: 'short_factor' | 'long_factor', name: string): number[] {
  const factors = rope[field];
  if (factors) return factors;
  throw new ModelError('MODEL_INVALID', `${name}: rope scaling longrope without ${field}`);
}

/** As transformers: given, or by DeepSeek's two scales, or YaRN's own rule. */
function yarnFactor({ attention_factor: given, factor = 1, mscale, mscale_all_dim: all }: RawRope): number {
  if (given !== undefined) return given;
  if (mscale !== undefined && all !== undefined)
    return yarnMagnitude(factor, mscale) / yarnMagnitude(factor, all);
  return yarnMagnitude(factor);
}

// ---- activation --------------------------------------------------------------------------------------------

function readActivation(
  raw: RawConfig,
  architecture: Architecture,
  name: string,
  warnings: string[],
): ModelConfig['activation'] {
  const byType = ownEntry(architecture.activationByModelType, raw.model_type);
  if (byType !== undefined) {
    if (raw.hidden_act !== undefined && raw.hidden_act !== byType) {
      warnings.push(
        `hidden_act says ${raw.hidden_act}; model_type ${raw.model_type} computes ${byType}, which is used`,
      );
    }
    return { kind: byType, threshold: 0 };
  }
  const act = raw.hidden_act ?? 'silu';
  const known = architecture.activations ?? ACTIVATIONS;
  const kind = ownEntry(known, act);
  if (kind === undefined) {
    throw new ModelError('MODEL_UNSUPPORTED', `${name}: hidden_act ${JSON.stringify(act)} is not supported`, {
      hint: `${architecture.name} supports: ${Object.keys(known).join(', ')}.`,
    });
  }
  if (kind !== 'fatrelu') return { kind, threshold: 0 };
  const threshold = raw.hidden_act_param;
  if (threshold === undefined || threshold < 0) {
    throw new ModelError(
      'MODEL_INVALID',
      `${name}: hidden_act fatrelu needs hidden_act_param >= 0, found ${threshold}`,
    );
  }
  return { kind, threshold };
}

/** Own properties only: a hidden_act named `constructor` is not a function of Object.prototype. */
const ownEntry = (
  table: Readonly<Record<string, ActivationKind>> | undefined,
  key: string | undefined,
): ActivationKind | undefined =>
  table !== undefined && key !== undefined && Object.hasOwn(table, key) ? table[key] : undefined;

// ---- shared with GGUF --------------------------------------------------------------------------------------

/** The relations between a config's numbers. */
export function checkShape(config: ModelConfig, name: string): void {
  const { heads, kvHeads, headDim, hiddenSize, intermediateSize, block, ends, maxContext } = config;
  const invalid = (message: string) => new ModelError('MODEL_INVALID', `${name}: ${message}`);
  if (!Number.isInteger(headDim))
    throw invalid(`hidden size ${hiddenSize} does not divide into ${heads} heads`);
  if (headDim % 2 !== 0) throw invalid(`head_dim ${headDim} is odd; RoPE needs pairs`);
  const rotary = rotaryDims(config);
  if (!Number.isInteger(rotary) || rotary % 2 !== 0 || rotary > headDim)
    throw invalid(`${rotary} of ${headDim} head dimensions rotate; RoPE needs pairs`);
  const scaling = config.ropeScaling;
  const pairs = scaling?.type === 'longrope' ? [scaling.shortFactors, scaling.longFactors] : [];
  for (const { length } of pairs) {
    if (length !== rotary / 2) throw invalid(`longrope has ${length} factors for ${rotary / 2} pairs`);
  }
  if (kvHeads > heads || heads % kvHeads !== 0)
    throw invalid(`${heads} heads do not divide into ${kvHeads} key/value heads`);
  if (intermediateSize > limits.MAX_INTERMEDIATE)
    throw invalid(`${intermediateSize} neurons in a layer, expected at most ${limits.MAX_INTERMEDIATE}`);
  const learned = ends.learnedPositions;
  if (learned && learned.rows - learned.offset < maxContext)
    throw invalid(`${learned.rows} learned positions for a context of ${maxContext}`);
  const { experts } = block.ffn;
  if (experts && experts.active > experts.count)
    throw invalid(`${experts.active} active experts of ${experts.count}`);
}

export function checkTokenIds(config: ModelConfig, name: string): void {
  for (const id of [config.bosId, ...config.eosIds]) {
    if (id !== null && id >= config.vocabSize) {
      throw new ModelError(
        'MODEL_INVALID',
        `${name}: token id ${id} is outside the vocabulary of ${config.vocabSize}`,
      );
    }
  }
}
