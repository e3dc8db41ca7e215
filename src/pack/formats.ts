/** Which format each part of a pack gets. */
import { createHash } from 'node:crypto';
import { WEIGHT_FORMATS, type WeightFormat } from '../kernels/layout.js';
import { STORED_TYPES, bitsPerValue } from '../model/decode.js';
import { TERNARY } from '../model/bind.js';
import type { LayerTensor, TensorName, WeightSource } from '../model/types.js';
import { GLOBAL_SECTIONS, LAYER_SECTIONS } from './layout.js';

export interface LayerFormats {
  qkv: WeightFormat;
  o: WeightFormat;
  gate: WeightFormat;
  ffn: WeightFormat;
}

export interface PackFormats {
  embed: WeightFormat;
  /** Ignored when the embedding is tied. */
  lmHead: WeightFormat;
  layers: readonly LayerFormats[];
}

/** How the tensors of one role and type were stored: what a pack's bits were made from. */
export interface Converted {
  role: string;
  from: string;
  to: WeightFormat;
  tensors: number;
}

/**
 * One format for all layers. In q4 packs the embedding and the lm_head stay q8: one embedding row is read per
 * token, and the head decides between near-equal tokens. Measured on the demo model's validation text, KL
 * divergence from f32 and agreement of the top token: 0.0128 and 92.0 % so; 0.0168 and 89.8 % with a q4 head;
 * 0.0191 and 89.2 % with both in q4. For a 7B model q8 costs 2 * 65 MB in the file, 65 MB per token.
 */
export function formatsFor(quant: WeightFormat, layers: number): PackFormats {
  const outer: WeightFormat = quant === 'q4' ? 'q8' : quant;
  const layer: LayerFormats = { qkv: quant, o: quant, gate: quant, ffn: quant };
  return { embed: outer, lmHead: outer, layers: Array.from({ length: layers }, () => layer) };
}

/** The sections of a layer whose format is a choice, and the tensors that share each. */
const SECTION_ROLES = Object.fromEntries(
  LAYER_SECTIONS.filter(({ format }) => format !== 'f32').map(({ format, roles }) => [format, roles]),
) as Readonly<Record<keyof LayerFormats, readonly LayerTensor[]>>;

/**
 * Weights that need more bits than this are not squeezed into four: q4's own error would be the larger one.
 * (Q4_1, the widest of the 4-bit types, takes 5 bits with its scales; Q5_0 and Q5_K take 5.5.)
 */
const MOST_BITS_FOR_Q4 = 5;

/**
 * @param quant null: what the model's own types ask for. A quantised file's tensors of 4 bits and less become
 *   q4, others q8, section by section (tensors that share one get what its best needs)
 * @param unquantised the format of models that are not quantised, when `quant` is null
 * @returns `quant`: the format of most FFN weights, and the pack's name for its own
 */
export function chooseFormats(
  source: WeightSource,
  quant: WeightFormat | null,
  unquantised: WeightFormat,
): { quant: WeightFormat; formats: PackFormats } {
  const { layers } = source.config;
  if (quant !== null || !isQuantised(source)) {
    const all = quant ?? unquantised;
    return { quant: all, formats: formatsFor(all, layers) };
  }
  const formatOf = (layer: number, section: keyof LayerFormats): WeightFormat => {
    const bits = SECTION_ROLES[section].map((role) => storedBits(source, `layers.${layer}.${role}`));
    return Math.max(...bits) > MOST_BITS_FOR_Q4 ? 'q8' : 'q4';
  };
  const chosen = Array.from({ length: layers }, (_, l): LayerFormats => ({
    qkv: formatOf(l, 'qkv'),
    o: formatOf(l, 'o'),
    gate: formatOf(l, 'gate'),
    ffn: formatOf(l, 'ffn'),
  }));
  const ffn = chosen.flatMap(({ gate, ffn: records }) => [gate, records, records]);
  const q4 = ffn.filter((format) => format === 'q4').length;
  return {
    quant: 2 * q4 > ffn.length ? 'q4' : 'q8',
    formats: { embed: 'q8', lmHead: 'q8', layers: chosen },
  };
}

/** A short name for files: `q8`, or `mixed-` and a digest where layers or parts differ. */
export function formatsKey(formats: PackFormats): string {
  const text = JSON.stringify(formats);
  const same = WEIGHT_FORMATS.find(
    (quant) => JSON.stringify(formatsFor(quant, formats.layers.length)) === text,
  );
  return same ?? `mixed-${createHash('sha256').update(text).digest('hex').slice(0, 8)}`;
}

/** Some weights share scales in blocks, or have few values. */
const isQuantised = (source: WeightSource): boolean =>
  [...source.tensors.values()].some(({ dtype }) => typesOf(dtype).some(({ quantised }) => quantised));

/** Bits of a tensor's widest type; 0: the model has no such tensor. */
const storedBits = (source: WeightSource, name: TensorName): number =>
  Math.max(0, ...typesOf(source.tensors.get(name)?.dtype ?? '').map(({ bits }) => bits));

/** A tensor of several parts (experts) may have several types, joined by +. */
const typesOf = (dtype: string): { bits: number; quantised: boolean }[] =>
  dtype.split('+').flatMap((part) => {
    if (part === TERNARY) return [{ bits: 2, quantised: true }];
    const type = Object.hasOwn(STORED_TYPES, part) ? STORED_TYPES[part] : undefined;
    return type ? [{ bits: bitsPerValue(type), quantised: type.blockElements > 1 }] : [];
  });

/** What becomes of the tensors of a model: one line per role, type and format, most bytes first. */
export function describeConversion(source: WeightSource, formats: PackFormats): Converted[] {
  const lines = new Map<string, Converted & { bytes: number }>();
  for (const [name, { dtype, bytes }] of source.tensors) {
    const to = formatOfTensor(name, formats);
    if (to === null) continue;
    const role = name.slice(name.lastIndexOf('.') + 1);
    const key = `${role} ${dtype} ${to}`;
    const line = lines.get(key) ?? { role, from: dtype, to, tensors: 0, bytes: 0 };
    line.tensors++;
    line.bytes += bytes;
    lines.set(key, line);
  }
  return [...lines.values()]
    .sort((a, b) => b.bytes - a.bytes)
    .map(({ role, from, to, tensors }) => ({ role, from, to, tensors }));
}

/** null: norms and biases, which stay f32. */
function formatOfTensor(name: TensorName, formats: PackFormats): WeightFormat | null {
  const [prefix, layer, role] = name.split('.');
  const contents = layer === undefined ? GLOBAL_SECTIONS : LAYER_SECTIONS;
  const content = contents.find(({ roles }) => (roles as readonly string[]).includes(role ?? prefix));
  if (content === undefined || content.kind === 'vector') return null;
  const { format } = content;
  if (format === 'f32') return format;
  return format === 'embed' || format === 'lmHead' ? formats[format] : formats.layers[Number(layer)][format];
}
