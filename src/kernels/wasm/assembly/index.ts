// The exports of the module: the kernels of ../../table.ts, with formats as numbers.
export { quantize, quantizeRows, dequantizeRow } from './quantize';
export { dot, dotLists } from './dot';
export { sumLists } from './sum';
export { activate, gateUp, contribution, keepLarge, selectAbove, biasRelu, addListed } from './neurons';
export { rmsNorm, layerNorm, rope, addScaled, softmax } from './layer';
export { storeKv, attention } from './attention';
export { readProbe } from './probe';
