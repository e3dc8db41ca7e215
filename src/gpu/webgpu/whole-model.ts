/**
 * A model and its KV cache on one GPU: a step (engine/gpu-step.ts) goes in, tokens come out, and nothing crosses
 * between. The same equations as engine/forward.ts, as one list of dispatches:
 *
 *     embed ─► [ norm ─ q, k, v ─ heads ─ attention ─ output projection ─ norm ─ FFN ] x layers ─► norm ─ head ─ choose
 *
 * Every row is computed by work-groups of its own, or in an order that does not know its companions: a token's
 * result does not depend on them.
 */
import { blockShape } from '../../engine/block-shape.js';
import {
  COUNTS,
  gpuStepLayout,
  MODE_NUMBER,
  RequestWord,
  stepShapeOf,
  type GpuStepLayout,
  type GpuStepShape,
} from '../../engine/gpu-step.js';
import type { FfnMode, FfnPlan } from '../../engine/ffn-plan.js';
import { Wanted } from '../../engine/step.js';
import { HybridError } from '../../errors.js';
import { alignUp, KV_PAGE } from '../../kernels/layout.js';
import { ropeTable } from '../../model/rope.js';
import type { PackHeader, PackSection } from '../../pack/types.js';
import { packReader } from '../weights.js';
import { createFrom, createStorage, Readback } from './buffers.js';
import type { GpuDevice } from './device.js';
import {
  createFfnScratch,
  downLengths,
  layerFfn,
  neuronOrder,
  predictedLayer,
  predictorNeeds,
  uploadFfn,
  uploadPredictor,
  type FfnParts,
  type LayerFfn,
} from './ffn.js';
import type { WholeShape } from './fits.js';
import { encode } from './kernel.js';
import { kvRowWords } from './kernels/heads.js';
import type { Operation } from './operation.js';
import type { Piece } from './piece.js';
import { uploadSection, type GpuRows } from './rows.js';
import { createScratch, type TokenScratch } from './scratch.js';
import { TokenProgram, type TokenEnds } from './token-program.js';
import { tuningFor } from './tuning.js';
import { uploadVectors, VectorFile } from './vectors.js';

type MakeFfn = (mode: FfnMode) => Promise<LayerFfn>;
const MODES = Object.keys(MODE_NUMBER) as FfnMode[];

export interface WholeModelOptions extends WholeShape {
  header: PackHeader;
  fd: number;
  packPath: string;
  batchTokens: number;
  /** Predictors and cuts; null: none. */
  plan: FfnPlan | null;
  /** After every layer that was uploaded. @returns false: nobody wants the rest */
  onUnit?: (bytes: number, ms: number) => boolean;
}

export class WholeModel {
  /** Of every layer, by mode: made when first asked for. */
  private readonly made: Map<FfnMode, LayerFfn>[];

  private constructor(
    private readonly gpu: GpuDevice,
    private readonly shape: GpuStepShape,
    private readonly layout: GpuStepLayout,
    private readonly scratch: TokenScratch,
    private readonly logitScale: number,
    private readonly counts: GPUBuffer,
    private readonly back: Readback,
    private readonly pieces: (Piece | { ffn: number })[],
    private readonly headPieces: Piece[],
    private readonly ffns: MakeFfn[],
  ) {
    this.made = ffns.map(() => new Map());
  }

  /** @throws HybridError OUT_OF_MEMORY, GPU_FAILED; what was made is given back with the device */
  static async load(gpu: GpuDevice, options: WholeModelOptions): Promise<WholeModel> {
    const { header, fd, packPath, batchTokens: T, kvPages, kvFormat } = options;
    const { config } = header;
    const shape = stepShapeOf(options);
    const layout = gpuStepLayout(shape);
    const block = blockShape(config);
    const read = packReader(fd, packPath);
    const source = { fd, read, header };
    let [before, began] = [0, performance.now()];
    const done = (): void => {
      const go = options.onUnit?.(gpu.allocatedBytes - before, performance.now() - began) ?? true;
      if (!go) throw new HybridError('ABORTED', 'loading the model onto the GPU was aborted');
      [before, began] = [gpu.allocatedBytes, performance.now()];
    };
    const rows = (name: string, section: PackSection): Promise<GpuRows> =>
      uploadSection(gpu, name, fd, section);
    const maybe = (name: string, section: PackSection | null): Promise<GpuRows | null> =>
      section ? rows(name, section) : Promise.resolve(null);

    const scratch = await createScratch(gpu, config, block.parallel, T, layout.request.words);
    const cache = { kvPages, kvFormat, tablePages: shape.tablePages };
    const angles = await createFrom(gpu, 'angles', angleTable(header, options.contextLength));
    const tuning = tuningFor(gpu.facts);
    const program = new TokenProgram(gpu, config, scratch, layout.request, cache, angles, tuning);

    const vectors = new VectorFile(read);
    const outNorm = config.ends.finalNorm ? vectors.norm(header.outNorm, header.outNormBias) : null;
    const embed = await rows('the embedding', header.embed);
    const ends: TokenEnds = {
      embed,
      positions: await maybe('positions', header.positions),
      projectIn: await maybe('project_in', header.projectIn),
      vectors: await vectors.upload(gpu, 'the final norm'),
      outNorm,
      projectOut: await maybe('project_out', header.projectOut),
      lmHead: header.lmHead ? await rows('the output head', header.lmHead) : embed,
    };
    done();
    await program.embed(ends);
    const ffns: MakeFfn[] = [];
    const needs = predictorNeeds(options.plan);
    const ffnScratch = await createFfnScratch(gpu, config.hiddenSize, config.intermediateSize, needs, T);
    const countBytes = alignUp(T * COUNTS * 4, gpu.facts.bindingAlignment);
    const counts = await createStorage(gpu, 'counters', config.layers * countBytes);
    for (const [l, layer] of header.layers.entries()) {
      const name = `layer ${l}`;
      const kvBytes = config.kvHeads * kvPages * KV_PAGE * kvRowWords(kvFormat, config.headDim) * 4;
      if (kvBytes > gpu.facts.maxBindingBytes) throw tooLong(gpu, kvBytes);
      await program.layer(l, {
        vectors: await uploadVectors(gpu, read, layer, `vectors of ${name}`),
        qkv: await rows(`q, k, v of ${name}`, layer.qkv),
        o: await rows(`the output projection of ${name}`, layer.o),
        keys: await createStorage(gpu, `keys of ${name}`, kvBytes),
        values: await createStorage(gpu, `values of ${name}`, kvBytes),
      });
      const planned = options.plan && predictedLayer(options.plan.layers[l]);
      const weighs = Object.values(options.plan?.layers[l].cuts ?? {}).some((cut) => cut.contribution > 0);
      const rowsOfFfn = await uploadFfn(gpu, source, l, neuronOrder(planned, config.intermediateSize), name);
      const parts: FfnParts = {
        ...rowsOfFfn,
        norms: weighs ? await downLengths(gpu, rowsOfFfn) : null,
        predictor:
          planned && (await uploadPredictor(gpu, planned, rowsOfFfn.gate, `the predictor of ${name}`)),
      };
      const buffers = {
        x: program.ffnInput,
        step: scratch.rows,
        out: scratch.ffnOut,
        outStride: scratch.rowX,
        counts: { buffer: counts, offset: l * countBytes, size: countBytes },
      };
      ffns.push((mode) => layerFfn(gpu, tuning, parts, config.activation.kind, mode, ffnScratch, buffers));
      done();
    }
    const layers = program.pieces.splice(0);
    await program.head(ends);
    const head = program.pieces as Piece[];
    const staging = T * 4 + counts.size + T * (config.vocabSize + scratch.rowX) * 4;
    const back = await Readback.create(gpu, 'the answer', staging);
    done();
    return new WholeModel(gpu, shape, layout, scratch, config.logitScale, counts, back, layers, head, ffns);
  }

  /**
   * Runs the step in `x` and fills `y`: their words are a request and its answer (engine/gpu-step.ts).
   * @throws HybridError GPU_FAILED when the device is lost meanwhile
   */
  async run(_unit: number, _rows: number, x: Float32Array, y: Float32Array): Promise<void> {
    const words = (values: Float32Array): Int32Array =>
      new Int32Array(values.buffer, values.byteOffset, values.length);
    const [request, answer] = [words(x), words(y)];
    const { gpu, scratch, layout, shape, counts, back } = this;
    const size = {
      rows: request[layout.request.header + RequestWord.ROWS],
      outputs: request[layout.request.header + RequestWord.OUTPUTS],
    };
    const ffns = await this.layerFfns(request);
    this.send(request, size);
    const wanted = request.subarray(layout.request.wanted, layout.request.wanted + size.outputs);
    const wants = (what: number): boolean => wanted.some((bits) => bits & what);
    const [logits, hidden] = [wants(Wanted.LOGITS), wants(Wanted.HIDDEN)];

    const parts: { source: GPUBuffer; bytes: number; to: (content: Int32Array) => void }[] = [];
    const { answer: at } = layout;
    if (size.outputs > 0)
      parts.push({ source: scratch.chosen, bytes: size.outputs * 4, to: (c) => answer.set(c, at.chosen) });
    parts.push({
      source: counts,
      bytes: counts.size,
      to: (c) => {
        const [of, row] = [shape.batchTokens * COUNTS, c.length / shape.layers];
        for (let l = 0; l < shape.layers; l++)
          answer.set(c.subarray(l * row, l * row + of), at.counts + l * of);
      },
    });
    if (logits)
      parts.push({
        source: scratch.logits,
        bytes: size.outputs * shape.vocabSize * 4,
        to: (c) => this.takeLogits(c, answer),
      });
    if (hidden)
      parts.push({
        source: scratch.normed,
        bytes: size.outputs * scratch.rowX * 4,
        to: (c) => {
          for (let i = 0; i < size.outputs; i++) {
            const row = c.subarray(i * scratch.rowX, i * scratch.rowX + shape.hiddenSize);
            answer.set(row, at.hidden + i * shape.hiddenSize);
          }
        },
      });
    let bytes = 0;
    gpu.submit((encoder) => {
      const pass = encoder.beginComputePass();
      for (const entry of this.pieces) {
        const operations = 'ffn' in entry ? ffns[entry.ffn] : [entry.operation];
        for (const { dispatches } of operations)
          for (const dispatch of dispatches(size.rows)) encode(pass, dispatch);
      }
      if (size.outputs > 0) {
        for (const { operation } of this.headPieces)
          for (const dispatch of operation.dispatches(size.outputs)) encode(pass, dispatch);
      }
      pass.end();
      for (const { source, bytes: length } of parts) {
        back.copy(encoder, source, 0, length, bytes);
        bytes += length;
      }
    });
    const content = await back.read(bytes);
    let from = 0;
    for (const { bytes: length, to } of parts) {
      to(new Int32Array(content.buffer, from, length / 4));
      from += length;
    }
  }

  /** The FFNs that the request wants, with its cuts. */
  private async layerFfns(request: Int32Array): Promise<Operation[][]> {
    const { request: at } = this.layout;
    const floats = new Float32Array(request.buffer, request.byteOffset, at.words);
    const all: Operation[][] = [];
    for (let l = 0; l < this.ffns.length; l++) {
      const { operations, setCut } = await this.layerFfn(l, MODES[request[at.modes + l]]);
      setCut({ gate: floats[at.gateCuts + l], contribution: floats[at.contributionCuts + l] });
      all.push(operations);
    }
    return all;
  }

  private async layerFfn(l: number, mode: FfnMode): Promise<LayerFfn> {
    let ffn = this.made[l].get(mode);
    if (!ffn) this.made[l].set(mode, (ffn = await this.ffns[l](mode)));
    return ffn;
  }

  /** What a step whose layers have this mode dispatches, in order. */
  async operations(mode: FfnMode): Promise<Operation[]> {
    const all: Operation[] = [];
    for (const entry of this.pieces) {
      if ('ffn' in entry) all.push(...(await this.layerFfn(entry.ffn, mode)).operations);
      else all.push(entry.operation);
    }
    return [...all, ...this.headPieces.map(({ operation }) => operation)];
  }

  private takeLogits(content: Int32Array, answer: Int32Array): void {
    const at = this.layout.answer.logits;
    answer.set(content, at);
    if (this.logitScale === 1) return;
    const logits = new Float32Array(answer.buffer, answer.byteOffset + at * 4, content.length);
    for (let i = 0; i < logits.length; i++) logits[i] *= this.logitScale;
  }

  /** The request's words to the device: of the page tables only what the step reads. */
  private send(request: Int32Array, { rows, outputs }: { rows: number; outputs: number }): void {
    const { gpu, scratch, layout, shape } = this;
    const { request: at } = layout;
    const { queue } = gpu.raw;
    const write = (from: number, end: number): void =>
      queue.writeBuffer(scratch.step, from * 4, request.slice(from, end));
    write(0, at.tables);
    queue.writeBuffer(scratch.rows, 0, Uint32Array.of(rows));
    queue.writeBuffer(scratch.outputs, 0, Uint32Array.of(outputs));
    const used = Math.ceil(request[at.header + RequestWord.POSITIONS] / KV_PAGE);
    const slots = new Set(request.subarray(at.slot, at.slot + rows));
    for (const slot of slots) {
      const from = at.tables + slot * shape.tablePages;
      write(from, from + used);
    }
  }
}

/** [context][rotaryDims / 2] cos and sin, as engine/load.ts fills them. */
function angleTable({ config }: PackHeader, contextLength: number): Float32Array {
  const { frequencies, magnitude } = ropeTable(config, contextLength);
  const half = frequencies.length;
  const angles = new Float32Array(Math.max(1, contextLength * half) * 2);
  for (let p = 0; p < contextLength; p++) {
    for (let i = 0; i < half; i++) {
      angles[(p * half + i) * 2] = magnitude * Math.cos(p * frequencies[i]);
      angles[(p * half + i) * 2 + 1] = magnitude * Math.sin(p * frequencies[i]);
    }
  }
  return angles;
}

const tooLong = (gpu: GpuDevice, bytes: number): HybridError =>
  new HybridError(
    'OUT_OF_MEMORY',
    `the keys of one layer take ${bytes} bytes, ${gpu.facts.name} binds ${gpu.facts.maxBindingBytes} at once`,
    { hint: 'Use a smaller --context or --kv-memory.' },
  );
