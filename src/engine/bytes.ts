/** How many bytes one decoded token reads: counted densities times the sizes of what they touch. */
import type { ModelLayout } from './layout.js';
import { rowBytes } from '../kernels/layout.js';
import type { LayerDensity } from './stats.js';

export interface TokenBytes {
  attention: number;
  /** Rows of the router, in a mixture. */
  router: number;
  /** Gate rows of candidates, or of all neurons where those are chosen after the gate. */
  gate: number;
  /** Up rows and down columns of neurons that passed the gate. */
  upDown: number;
  predictor: number;
  head: number;
  kvCache: number;
  total: number;
}

/** @param positions mean number of cached positions the token attends to */
export function bytesPerToken(layout: ModelLayout, densities: LayerDensity[], positions: number): TokenBytes {
  const { config, block } = layout;
  const bytes = { attention: 0, router: 0, gate: 0, upDown: 0, predictor: 0, head: 0, kvCache: 0 };
  layout.layers.forEach((layer, l) => {
    bytes.attention +=
      layer.qkv.rows * layer.qkv.stride + layer.o.rows * layer.o.stride + 8 * config.hiddenSize;
    bytes.router += layer.router ? layer.router.rows * layer.router.stride : 0;
    bytes.gate += densities[l].gates * layer.gate.stride;
    bytes.upDown += densities[l].gated * layer.ffn.stride;
    const p = layer.predictor;
    if (p && layer.mode === 'predicted') {
      // Behind the gate some are scored, in a mixture those of the chosen experts: both are counted.
      const scored = p.afterGate || layer.router ? densities[l].scored : p.fc2.rows;
      bytes.predictor += scored * (p.fc2.stride + 4);
      if (p.afterGate)
        bytes.predictor += 4 * (block.activeExperts / block.experts) * p.fc2.rows; // bounds
      else if (p.fc1) bytes.predictor += p.fc1.rows * p.fc1.stride + 4 * p.rank;
    }
    const kvRow = layout.kvFormat === 'f32' ? config.headDim * 4 : config.headDim + 4;
    bytes.kvCache += 2 * config.kvHeads * kvRow * Math.min(positions, layer.window);
  });
  for (const matrix of [layout.lmHead, layout.projectIn, layout.projectOut]) {
    bytes.head += matrix ? matrix.rows * matrix.stride : 0;
  }
  bytes.head += rowBytes(layout.embed.format, layout.embed.cols) + (layout.positions?.stride ?? 0);
  const total = Object.values(bytes).reduce((a, b) => a + b, 0);
  return { ...bytes, total };
}
