/** Where every section of a pack lies: computed from the config and the formats, by writer and reader alike. */
import { alignUp, rowBytes, type WeightFormat } from '../kernels/layout.js';
import type { ModelConfig } from '../model/types.js';
import type { LayerFormats, PackFormats } from './formats.js';
import type { PackHeader, PackLayer, PackSection } from './types.js';

/** Sections begin at cache lines, so that a row never straddles one more line than it must. */
export const SECTION_ALIGNMENT = 64;
/** The data begins at a page: reads into a page-aligned arena then stay aligned. */
export const DATA_ALIGNMENT = 4096;

export type PackSections = Pick<PackHeader, 'embed' | 'outNorm' | 'lmHead' | 'layers' | 'fileBytes'>;

/** Lays the sections out one after the other from `dataStart` (a multiple of DATA_ALIGNMENT). */
export function layoutSections(config: ModelConfig, formats: PackFormats, dataStart: number): PackSections {
  const d = config.hiddenSize;
  const qRows = config.heads * config.headDim;
  const qkvRows = qRows + 2 * config.kvHeads * config.headDim;
  let end = dataStart;

  const add = (format: WeightFormat, rows: number, cols: number, vectorsPerRow = 1): PackSection => {
    const offset = alignUp(end, SECTION_ALIGNMENT);
    const stride = vectorsPerRow * rowBytes(format, cols);
    end = offset + rows * stride;
    return { offset, bytes: rows * stride, format, rows, cols, stride };
  };
  const layer = (f: LayerFormats): PackLayer => ({
    attnNorm: add('f32', 1, d),
    qkv: add(f.qkv, qkvRows, d),
    qkvBias: config.qkvBias ? add('f32', 1, qkvRows) : null,
    o: add(f.o, d, qRows),
    oBias: config.outputBias ? add('f32', 1, d) : null,
    ffnNorm: add('f32', 1, d),
    gate: add(f.gate, config.intermediateSize, d),
    ffn: add(f.ffn, config.intermediateSize, d, 2),
  });

  const embed = add(formats.embed, config.vocabSize, d);
  const outNorm = add('f32', 1, d);
  const lmHead = config.tiedEmbeddings ? null : add(formats.lmHead, config.vocabSize, d);
  const layers = formats.layers.map(layer);
  return { embed, outNorm, lmHead, layers, fileBytes: end };
}

/** Every section of a header with its name, in file order. */
export function* namedSections(header: PackSections): Generator<[string, PackSection]> {
  yield ['embed', header.embed];
  yield ['outNorm', header.outNorm];
  if (header.lmHead) yield ['lmHead', header.lmHead];
  for (const [l, layer] of header.layers.entries()) {
    for (const [role, section] of Object.entries(layer) as [string, PackSection | null][]) {
      if (section) yield [`layers.${l}.${role}`, section];
    }
  }
}
