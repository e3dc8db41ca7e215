/** Where every section of a pack lies: computed from the config and the formats, by writer and reader alike. */
import { alignUp, rowBytes, type WeightFormat } from '../kernels/layout.js';
import { expectedTensors } from '../model/tensor-names.js';
import type { GlobalTensor, LayerTensor, ModelConfig, Role } from '../model/types.js';
import type { LayerFormats, PackFormats } from './formats.js';
import type { PackHeader, PackLayer, PackSection } from './types.js';

/** Sections begin at cache lines, so that a row never straddles one more line than it must. */
export const SECTION_ALIGNMENT = 64;
/** The data begins at a page: reads into a page-aligned arena then stay aligned. */
export const DATA_ALIGNMENT = 4096;

/**
 * What a section holds of the model's tensors:
 *     vector    vectors one after the other in one f32 row
 *     rows      rows of matrices, one matrix after the other
 *     records   for each neuron its row of the first matrix (if the model has it) and its column of the last
 */
export interface SectionContent<Section extends string, Name extends Role> {
  section: Section;
  kind: 'vector' | 'rows' | 'records';
  roles: readonly Name[];
  /** Whose format it has; f32: always. */
  format: keyof LayerFormats | 'embed' | 'lmHead' | 'f32';
}

type GlobalSection =
  'embed' | 'positions' | 'projectIn' | 'outNorm' | 'outNormBias' | 'projectOut' | 'lmHead';

/** In the order of the file. */
export const GLOBAL_SECTIONS: readonly SectionContent<GlobalSection, GlobalTensor>[] = [
  { section: 'embed', kind: 'rows', roles: ['embed'], format: 'embed' },
  { section: 'positions', kind: 'rows', roles: ['positions'], format: 'embed' },
  { section: 'projectIn', kind: 'rows', roles: ['projectIn'], format: 'embed' },
  { section: 'outNorm', kind: 'vector', roles: ['outNorm'], format: 'f32' },
  { section: 'outNormBias', kind: 'vector', roles: ['outNormBias'], format: 'f32' },
  { section: 'projectOut', kind: 'rows', roles: ['projectOut'], format: 'embed' },
  { section: 'lmHead', kind: 'rows', roles: ['lmHead'], format: 'lmHead' },
];

const vector = (section: keyof PackLayer, ...roles: LayerTensor[]) =>
  ({ section, kind: 'vector', roles, format: 'f32' }) as const;

export const LAYER_SECTIONS: readonly SectionContent<keyof PackLayer, LayerTensor>[] = [
  vector('attnNorm', 'attnNorm'),
  vector('attnNormBias', 'attnNormBias'),
  { section: 'qkv', kind: 'rows', roles: ['q', 'k', 'v'], format: 'qkv' },
  vector('qkvBias', 'qBias', 'kBias', 'vBias'),
  vector('qNorm', 'qNorm'),
  vector('kNorm', 'kNorm'),
  vector('oNorm', 'oNorm'),
  { section: 'o', kind: 'rows', roles: ['o'], format: 'o' },
  vector('oBias', 'oBias'),
  vector('ffnNorm', 'ffnNorm'),
  vector('ffnNormBias', 'ffnNormBias'),
  // A wrong expert costs more than a wrong weight, and the router is a small part of a layer.
  { section: 'router', kind: 'rows', roles: ['router'], format: 'f32' },
  { section: 'gate', kind: 'rows', roles: ['gate'], format: 'gate' },
  vector('gateBias', 'gateBias'),
  { section: 'ffn', kind: 'records', roles: ['up', 'down'], format: 'ffn' },
  vector('upBias', 'upBias'),
  vector('downBias', 'downBias'),
];

export type PackSections = Pick<PackHeader, GlobalSection | 'layers' | 'fileBytes'>;

/** Lays the sections out one after the other from `dataStart` (a multiple of DATA_ALIGNMENT). */
export function layoutSections(config: ModelConfig, formats: PackFormats, dataStart: number): PackSections {
  const shapes = new Map<string, number[]>(expectedTensors(config));
  let end = dataStart;

  function place(
    content: SectionContent<string, Role>,
    prefix: string,
    format: WeightFormat,
  ): PackSection | null {
    const found = content.roles
      .map((role) => shapes.get(prefix + role))
      .filter((shape) => shape !== undefined);
    if (found.length === 0) return null;
    const offset = alignUp(end, SECTION_ALIGNMENT);
    const sum = (of: (shape: number[]) => number) => found.reduce((total, shape) => total + of(shape), 0);
    const [rows, cols, vectors] = {
      vector: () => [1, sum(([n]) => n), 1],
      rows: () => [sum(([n]) => n), found[0][1], 1],
      // The last one is down: [d, nFf].
      records: () => [found[found.length - 1][1], found[found.length - 1][0], found.length],
    }[content.kind]();
    const stride = vectors * rowBytes(format, cols);
    end = offset + rows * stride;
    return { offset, bytes: rows * stride, format, rows, cols, stride };
  }

  const globals = Object.fromEntries(
    GLOBAL_SECTIONS.map((content) => [
      content.section,
      place(content, '', globalFormat(content.format, formats)),
    ]),
  ) as Record<GlobalSection, PackSection | null>;
  const layers = formats.layers.map((layer, l) =>
    Object.fromEntries(
      LAYER_SECTIONS.map((content) => [
        content.section,
        place(content, `layers.${l}.`, layerFormat(content.format, layer)),
      ]),
    ),
  ) as unknown as PackLayer[];
  return {
    ...globals,
    embed: globals.embed!,
    outNorm: globals.outNorm ?? emptySection(dataStart, config.hiddenSize),
    layers,
    fileBytes: end,
  };
}

/** A model without a norm before its head. */
const emptySection = (offset: number, cols: number): PackSection => ({
  offset,
  bytes: 0,
  format: 'f32',
  rows: 0,
  cols,
  stride: rowBytes('f32', cols),
});

type FormatName = SectionContent<string, Role>['format'];

const globalFormat = (name: FormatName, formats: PackFormats): WeightFormat =>
  name === 'embed' || name === 'lmHead' ? formats[name] : 'f32';
const layerFormat = (name: FormatName, formats: LayerFormats): WeightFormat =>
  name === 'embed' || name === 'lmHead' || name === 'f32' ? 'f32' : formats[name];

/** Every section of a header with its name, in file order. */
export function* namedSections(header: PackSections): Generator<[string, PackSection]> {
  for (const { section } of GLOBAL_SECTIONS) {
    const found = header[section];
    if (found) yield [section, found];
  }
  for (const [l, layer] of header.layers.entries()) {
    for (const { section } of LAYER_SECTIONS) {
      const found = layer[section];
      if (found) yield [`layers.${l}.${section}`, found];
    }
  }
}
