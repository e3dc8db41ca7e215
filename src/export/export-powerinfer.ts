/**
 * A model and its predictors as a PowerInfer GGUF file (magic `PWRI`): `ffn_down_t` holds the down projection
 * by neuron, `fc1` and `fc2` the predictor of each layer.
 *
 * PowerInfer computes ReLU (dReLU for architecture `bamboo`): a FATReLU threshold is lost, which makes more
 * neurons active than this program finds.
 */
import { isSmooth } from '../kernels/kernels.js';
import { HybridError } from '../errors.js';
import { describeBlock } from '../model/block.js';
import { expectedTensors, ggufName } from '../model/tensor-names.js';
import type { ModelConfig, WeightSource } from '../model/types.js';
import type { PredictorArtifact } from '../predictor/artifact.js';
import { exportTensor, writeGguf, type ExportOptions, type ExportTensor } from './export-gguf.js';
import type { GgufType } from './gguf-file.js';
import { homogeneousPredictor, type HomogeneousPredictor } from './homogeneous-predictor.js';
import { beyondLlama } from './llama-block.js';
import { modelMetadata } from './model-metadata.js';
import { tokenizerMetadata } from './tokenizer-metadata.js';

/**
 * @param options.type `f16` or `q4_0`, the two that PowerInfer runs. @default 'q4_0'
 * @throws HybridError MODEL_UNSUPPORTED for activations, shapes and predictors that PowerInfer has not
 */
export async function exportPowerInfer(
  source: WeightSource,
  artifact: PredictorArtifact,
  outPath: string,
  options: ExportOptions = {},
): Promise<{ bytes: number }> {
  const { config } = source;
  const type = options.type ?? 'q4_0';
  const arch = architectureOf(config, type);
  const metadata = new Map([
    ...(await modelMetadata(source, arch, type)),
    ...tokenizerMetadata(source.tokenizer, config),
    ['powerinfer.sparse_threshold', { f32: 0 }] as const,
  ]);

  const tensors: ExportTensor[] = [];
  for (const [name, shape] of expectedTensors(config)) {
    const tensor = exportTensor(source, name, shape, type);
    if (tensor.name.endsWith('ffn_down.weight')) tensors.push(byNeuron(tensor));
    else tensors.push(tensor);
  }
  const norm = (l: number) => source.readRows(`layers.${l}.ffnNorm`, 0, 1);
  for (let l = 0; l < config.layers; l++) {
    // Read here, so that a predictor that cannot be exported is refused before anything is written.
    const predictor = homogeneousPredictor(artifact.layers[l], await norm(l), config.intermediateSize);
    const lazily = async () =>
      homogeneousPredictor(artifact.layers[l], await norm(l), config.intermediateSize);
    tensors.push(...predictorTensors(l, predictor.hidden, lazily, config, type));
  }
  return writeGguf('PWRI', outPath, metadata, tensors, { ...options, type });
}

function architectureOf(config: ModelConfig, type: GgufType): string {
  const { kind } = config.activation;
  const block = beyondLlama(config) ?? describeBlock(config)[0];
  const problem =
    isSmooth(kind) || kind === 'relu2'
      ? `the activation ${kind}`
      : config.headDim * config.heads !== config.hiddenSize
        ? `a head size other than hidden size / heads`
        : block !== undefined
          ? block
          : config.ropeScaling && config.ropeScaling.type !== 'linear'
            ? `${config.ropeScaling.type} rope scaling`
            : type === 'q8_0'
              ? 'q8_0 weights'
              : null;
  if (problem === null) return kind === 'drelu' ? 'bamboo' : 'llama';
  throw new HybridError('MODEL_UNSUPPORTED', `PowerInfer does not run models with ${problem}`, {
    hint: 'It runs ReLU and dReLU models of the Llama family in f16 and q4_0.',
  });
}

/** [d][nFf] by output -> `ffn_down_t` [nFf][d] by neuron. */
const byNeuron = (tensor: ExportTensor): ExportTensor => ({
  ...tensor,
  name: tensor.name.replace('ffn_down', 'ffn_down_t'),
  rows: tensor.cols,
  cols: tensor.rows,
  columnsOf: tensor.cols,
  format: tensor.format === 'f32' ? 'f32' : tensor.rows % 32 === 0 ? tensor.format : 'f16',
});

/** fc1 [hidden][d] and fc2 [nFf][hidden]; one layer's predictor is in memory at a time. */
function predictorTensors(
  layer: number,
  hidden: number,
  load: () => Promise<HomogeneousPredictor>,
  config: ModelConfig,
  type: GgufType,
): ExportTensor[] {
  const { hiddenSize: d, intermediateSize: nFf } = config;
  let loaded: HomogeneousPredictor | null = null;
  const format = (cols: number) => (cols % 32 === 0 ? type : 'f16');
  return [
    {
      name: ggufName(`layers.${layer}.gate`).replace('ffn_gate', 'fc1'),
      rows: hidden,
      cols: d,
      vector: false,
      format: format(d),
      async read(begin, end, into) {
        loaded ??= await load();
        into.set(loaded.fc1.subarray(begin * d, end * d));
        return into;
      },
    },
    {
      name: ggufName(`layers.${layer}.gate`).replace('ffn_gate', 'fc2'),
      rows: nFf,
      cols: hidden,
      vector: false,
      format: format(hidden),
      async read(begin, end, into) {
        loaded ??= await load();
        for (let i = begin; i < end; i++) {
          loaded.fc2Row(i, into.subarray((i - begin) * hidden, (i - begin + 1) * hidden));
        }
        if (end === nFf) loaded = null;
        return into;
      },
    },
  ];
}
