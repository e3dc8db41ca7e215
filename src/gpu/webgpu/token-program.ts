/**
 * The pieces of a token beside its FFNs: what engine/forward.ts computes, built once for a loaded model. A
 * sublayer's sum is added to the residual stream by the norm that comes next (`join`), so that it costs no dispatch
 * of its own.
 */
import { blockShape, type BlockShape } from '../../engine/block-shape.js';
import type { GpuStepLayout } from '../../engine/gpu-step.js';
import { KV_PAGE, type WeightFormat } from '../../kernels/layout.js';
import type { KvFormat } from '../../kernels/kernels.js';
import { layerType } from '../../model/block.js';
import type { ModelConfig } from '../../model/types.js';
import type { GpuDevice } from './device.js';
import type { BufferPart, KernelText, Workgroups } from './kernel.js';
import { attentionKernel } from './kernels/attention.js';
import { chooseKernel } from './kernels/choose.js';
import { embedGroups, embedKernel } from './kernels/embed.js';
import { headsKernel, kvRowWords } from './kernels/heads.js';
import { normKernel, type NormShape, type NormWeights } from './kernels/norm.js';
import { rowDot } from './kernels/row-dot.js';
import { bytesOfRow, named, type Operation } from './operation.js';
import { oneDispatch, type Piece } from './piece.js';
import type { GpuRows } from './rows.js';
import type { TokenScratch } from './scratch.js';
import type { Tuning } from './tuning.js';
import type { LayerVectors } from './vectors.js';

/** What a layer has on the device beside its FFN. */
export interface TokenLayer {
  vectors: LayerVectors;
  qkv: GpuRows;
  o: GpuRows;
  keys: GPUBuffer;
  values: GPUBuffer;
}

export interface TokenEnds {
  embed: GpuRows;
  positions: GpuRows | null;
  projectIn: GpuRows | null;
  vectors: GPUBuffer;
  outNorm: NormWeights | null;
  projectOut: GpuRows | null;
  lmHead: GpuRows;
}

/** A sum that waits to be added to x. */
interface Pending {
  f: GPUBuffer;
  vectors: GPUBuffer;
  bias: number;
  norm: NormWeights;
}

export interface CacheShape {
  kvPages: number;
  kvFormat: KvFormat;
  tablePages: number;
}

export class TokenProgram {
  private readonly block: BlockShape;
  /** Every piece before the FFN of a layer stands in order; `ffn` is where that of layer l goes. */
  readonly pieces: (Piece | { ffn: number })[] = [];
  private pending: Pending | null = null;

  constructor(
    private readonly gpu: GpuDevice,
    private readonly config: ModelConfig,
    private readonly scratch: TokenScratch,
    private readonly at: GpuStepLayout['request'],
    private readonly cache: CacheShape,
    private readonly angles: GPUBuffer,
    private readonly tuning: Tuning,
  ) {
    this.block = blockShape(config);
  }

  // ---- before the layers -------------------------------------------------------------------------------------

  async embed({ embed, positions, projectIn }: TokenEnds): Promise<void> {
    const { scratch, at, config } = this;
    const table = (
      rows: GpuRows,
      into: GPUBuffer,
      outStride: number,
      source: number,
      shift: number,
      scale: number,
      add: boolean,
    ) =>
      // prettier-ignore
      this.each(rows.parts, async ({ buffer, first, rows: count }) => {
        const { cols, stride } = rows;
        const format = rows.format as WeightFormat;
        const text = embedKernel({ format, cols, stride, outStride, firstRow: first, rows: count, source, shift, scale, add }); // prettier-ignore
        const groups = (rows: number): Workgroups => [embedGroups(cols), rows];
        await this.add(text, [scratch.step, buffer, into], groups, 'rows', () => first === 0 ? bytesOfRow(rows) : 0);
      });
    const into = projectIn ? scratch.ends! : scratch.x;
    const width = projectIn ? scratch.rowEnds : scratch.rowX;
    await table(embed, into, width, at.token, 0, config.embeddingScale, false);
    if (projectIn) await this.product('project_in', projectIn, scratch.ends!, scratch.x, scratch.rowX);
    const shift = config.ends.learnedPositions?.offset ?? 0;
    if (positions) await table(positions, scratch.x, scratch.rowX, at.position, shift, 1, true);
  }

  // ---- a layer -------------------------------------------------------------------------------------------------

  /** @returns the buffer that the layer's FFN reads; it writes scratch.ffnOut */
  async layer(l: number, layer: TokenLayer): Promise<void> {
    const { scratch, block } = this;
    const { vectors } = layer;
    await this.enter(vectors.buffer, block.normsInputs ? vectors.attnNorm : null, scratch.normed);
    await this.attention(l, layer);
    const attended: Pending = {
      f: scratch.proj,
      vectors: vectors.buffer,
      bias: vectors.oBias,
      norm: vectors.attnNorm,
    };
    if (block.parallel) {
      const norm = { ...this.normShape(), out: block.normsInputs ? vectors.ffnNorm : null };
      if (norm.out) {
        await this.add(
          normKernel(norm),
          [scratch.step, vectors.buffer, vectors.buffer, scratch.x, scratch.ffnNormed],
          (rows) => [rows],
        );
      }
    } else {
      this.pending = attended;
      await this.enter(vectors.buffer, block.normsInputs ? vectors.ffnNorm : null, scratch.ffnNormed);
    }
    this.pieces.push({ ffn: l });
    if (block.parallel) {
      this.pending = attended;
      await this.enter(vectors.buffer, null, scratch.normed);
    }
    this.pending = {
      f: scratch.ffnOut,
      vectors: vectors.buffer,
      bias: vectors.downBias,
      norm: vectors.ffnNorm,
    };
  }

  /** Where a layer's FFN reads. */
  get ffnInput(): GPUBuffer {
    return this.block.normsInputs ? this.scratch.ffnNormed : this.scratch.x;
  }

  private async attention(l: number, layer: TokenLayer): Promise<void> {
    const { scratch, block, config, at, cache } = this;
    const { heads, kvHeads, headDim } = config;
    const { vectors } = layer;
    const { rotates, window } = layerType(config, l);
    const input = block.normsInputs ? scratch.normed : scratch.x;
    await this.product('q, k, v', layer.qkv, input, scratch.qkv, scratch.rowQkv);
    if (block.normsAllHeads) {
      for (const [offset, width, weight] of [
        [0, heads * headDim, vectors.qNorm],
        [heads * headDim, kvHeads * headDim, vectors.kNorm],
      ]) {
        const bias = vectors.qkvBias < 0 ? -1 : vectors.qkvBias + offset;
        await this.normInPlace(scratch.qkv, scratch.rowQkv, offset, width, vectors.buffer, weight, bias);
      }
    }
    const pages = {
      kvRows: cache.kvPages * KV_PAGE,
      kvFormat: cache.kvFormat,
      position: at.position,
      slot: at.slot,
      tables: at.tables,
      tablePages: cache.tablePages,
    };
    const { step, qkv } = scratch;
    const { keys, values } = layer;
    await this.add(
      headsKernel({
        ...pages,
        heads,
        kvHeads,
        headDim,
        rotaryDims: rotates ? block.rotaryDims : 0,
        bias: vectors.qkvBias,
        qNorm: block.normsHeads ? vectors.qNorm : -1,
        kNorm: block.normsHeads ? vectors.kNorm : -1,
        biasOnValuesOnly: block.normsAllHeads,
        epsilon: config.rmsEpsilon,
      }),
      [step, vectors.buffer, this.angles, qkv, keys, values],
      (rows) => [heads + 2 * kvHeads, rows],
    );
    await this.add(
      attentionKernel({
        ...pages,
        heads,
        kvHeads,
        headDim,
        outStride: scratch.rowAttended,
        scale: block.attentionScale,
        window: window ?? Infinity,
      }),
      [step, qkv, keys, values, scratch.attended],
      (rows) => [heads, rows],
      'rows',
      ({ context }) =>
        8 * kvRowWords(cache.kvFormat, headDim) * kvHeads * Math.min(context, window ?? Infinity),
    );
    if (vectors.oNorm >= 0) {
      const width = heads * headDim;
      await this.normInPlace(
        scratch.attended,
        scratch.rowAttended,
        0,
        width,
        vectors.buffer,
        vectors.oNorm,
        -1,
      );
    }
    await this.product('output projection', layer.o, scratch.attended, scratch.proj, scratch.rowX);
  }

  /** Adds what is pending to x, and makes what a sublayer reads. @param norm null: it reads x itself */
  private async enter(vectors: GPUBuffer, norm: NormWeights | null, into: GPUBuffer): Promise<void> {
    const { scratch, pending } = this;
    this.pending = null;
    if (!pending && !norm) return;
    const shape = { ...this.join(pending), out: norm };
    const buffers = [scratch.step, pending?.vectors ?? vectors];
    if (norm) buffers.push(vectors);
    buffers.push(scratch.x);
    if (pending) buffers.push(pending.f);
    if (norm) buffers.push(into);
    await this.add(normKernel(shape), buffers, (rows) => [rows]);
  }

  /** x += scale * f with the norm that stands behind it. */
  private join(pending: Pending | null): NormShape {
    const { block, config } = this;
    const shape = this.normShape();
    if (!pending) return shape;
    const { bias, norm } = pending;
    return {
      ...shape,
      branch: { bias, scale: config.residualScale, norm: block.normsOutputs ? norm : null },
      sum: block.normsSums ? norm : null,
    };
  }

  // ---- behind the layers -----------------------------------------------------------------------------------------

  /** Of the rows whose logits are wanted. @returns where their hidden states stand */
  async head(ends: TokenEnds): Promise<void> {
    const { scratch, at, config, pending } = this;
    const { outNorm, projectOut, lmHead } = ends;
    const out = outNorm ?? ('copy' as const);
    const shape = { ...this.join(pending), out, gather: at.output };
    const buffers = [scratch.step, pending?.vectors ?? ends.vectors];
    if (out !== 'copy') buffers.push(ends.vectors);
    buffers.push(scratch.x);
    if (pending) buffers.push(pending.f);
    buffers.push(scratch.normed);
    await this.add(normKernel(shape), buffers, (outputs) => [outputs], 'outputs');
    if (projectOut)
      await this.product(
        'project_out',
        projectOut,
        scratch.normed,
        scratch.ends!,
        scratch.rowEnds,
        'outputs',
      );
    const input = projectOut ? scratch.ends! : scratch.normed;
    await this.product('head', lmHead, input, scratch.logits, config.vocabSize, 'outputs');
    await this.add(
      chooseKernel({
        vocabSize: config.vocabSize,
        logitScale: config.logitScale,
        wanted: at.wanted,
        topK: at.topK,
        draws: at.draws,
      }),
      [scratch.step, scratch.logits, scratch.chosen],
      (outputs) => [outputs],
      'outputs',
    );
  }

  // ---- pieces --------------------------------------------------------------------------------------------------------

  private async add(
    text: KernelText,
    buffers: readonly BufferPart[],
    workgroups: (rows: number) => Workgroups,
    of: Piece['of'] = 'rows',
    reads?: Operation['reads'],
  ): Promise<void> {
    this.pieces.push({ operation: await oneDispatch(this.gpu, text, buffers, workgroups, reads), of });
  }

  private async product(
    name: string,
    w: GpuRows,
    x: GPUBuffer,
    out: GPUBuffer,
    outStride: number,
    of: Piece['of'] = 'rows',
  ): Promise<void> {
    const step = of === 'rows' ? this.scratch.rows : this.scratch.outputs;
    const operation = await rowDot(this.gpu, this.tuning, w, { outStride }, { x, step, out });
    this.pieces.push({ operation: named(name, operation), of });
  }

  private normInPlace(
    x: GPUBuffer,
    stride: number,
    offset: number,
    width: number,
    vectors: GPUBuffer,
    weight: number,
    bias: number,
  ): Promise<void> {
    const shape = {
      ...this.normShape(),
      layerNorm: false,
      stride,
      offset,
      width,
      bias,
      sum: { weight, bias: -1 },
    };
    const text = normKernel({ ...shape, workgroup: workgroupFor(width) });
    return this.add(text, [this.scratch.step, vectors, x], (rows) => [rows]);
  }

  private normShape(): NormShape {
    const { config, block, scratch } = this;
    return {
      width: config.hiddenSize,
      stride: scratch.rowX,
      offset: 0,
      branchStride: scratch.rowX,
      outStride: scratch.rowX,
      epsilon: config.rmsEpsilon,
      layerNorm: block.layerNorm,
      branch: null,
      bias: -1,
      sum: null,
      out: null,
      gather: -1,
      workgroup: workgroupFor(config.hiddenSize),
    };
  }

  private async each<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
    for (const item of items) await work(item);
  }
}

/** Threads for a row of so many values: each has a few. */
const workgroupFor = (width: number): number => (width >= 1024 ? 256 : width >= 256 ? 128 : 64);
