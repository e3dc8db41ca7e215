/**
 * Recording what the FFNs saw, for the profiler and for evaluation: per layer the input after the norm and
 * the intermediate activation x1 (zero where a neuron is not active), in the model's own neuron order. Of a
 * mixture the neurons of the chosen experts stand side by side, x1 before it meets the expert's weight. A
 * recording job runs one sequence from its first position, so that a row's position is its place.
 */
import { shareBegin } from './control.js';
import { chunkSize } from './ffn-plan.js';
import type { LaneContext } from './lane-context.js';
import type { Ptr } from '../kernels/kernels.js';
import type { LayerPlacement, RowLists } from './layout.js';
import type { Rows } from './rows.js';
import type { Step } from './step.js';

/**
 * Plain data that crosses to the lanes: one SharedArrayBuffer per kind, [layers][tokens][d, or the neurons that a
 * token meets] f32.
 */
export interface TraceRequest {
  tokens: number;
  inputs: SharedArrayBuffer | null;
  gates: SharedArrayBuffer | null;
  activations: SharedArrayBuffer | null;
  /** Chosen experts, ascending, u32 [layers][tokens][active], and their weights, f32. Of mixtures only. */
  experts: SharedArrayBuffer | null;
  expertWeights: SharedArrayBuffer | null;
}

export class TraceBuffers {
  private readonly inputs: Float32Array | null;
  private readonly gates: Float32Array | null;
  private readonly activations: Float32Array | null;
  private readonly experts: Uint32Array | null;
  private readonly expertWeights: Float32Array | null;

  constructor(private readonly request: TraceRequest) {
    const { inputs, gates, activations, experts, expertWeights } = request;
    this.inputs = inputs && new Float32Array(inputs);
    this.gates = gates && new Float32Array(gates);
    this.activations = activations && new Float32Array(activations);
    this.experts = experts && new Uint32Array(experts);
    this.expertWeights = expertWeights && new Float32Array(expertWeights);
  }

  /** The routing of all rows; every lane knows it, one of them calls this. */
  recordExperts({ layout, routing }: LaneContext, l: number, n: number, step: Step): void {
    if (!this.experts || !this.expertWeights) return;
    const { activeExperts: active } = layout.block;
    for (let t = 0; t < n; t++) {
      const to = this.rowAt(l, step.position[t], active);
      this.experts.set(routing.experts.subarray(t * active, (t + 1) * active), to);
      this.expertWeights.set(routing.weights.subarray(t * active, (t + 1) * active), to);
    }
  }

  /** The normed FFN inputs of this lane's share of the rows. */
  recordInputs(context: LaneContext, l: number, rows: Rows, step: Step): void {
    if (!this.inputs) return;
    const { lane, layout, arenas } = context;
    const d = layout.config.hiddenSize;
    const { f32 } = arenas[layout.layers[l].arena];
    const own = rows.own
      ? { begin: shareBegin(rows.count, lane, layout.laneCount), end: shareBegin(rows.count, lane + 1, layout.laneCount) } // prettier-ignore
      : rows;
    for (let t = own.begin; t < own.end; t++) {
      const at = (rows.normed.f32 + t * rows.normed.f32Row) >>> 2;
      this.inputs.set(f32.subarray(at, at + d), this.rowAt(l, step.position[t], d));
    }
  }

  /** All gates of a chunk, from scratch.gate. */
  recordGates(
    context: LaneContext,
    layer: LayerPlacement,
    l: number,
    chunk: number,
    n: number,
    step: Step,
  ): void {
    if (!this.gates) return;
    const { begin } = layer.chunks[chunk];
    const size = chunkSize(layer.chunks[chunk]);
    const { f32 } = context.arenas[layer.arena];
    for (let t = 0; t < n; t++) {
      const to = this.rowAt(l, step.position[t], context.layout.config.intermediateSize);
      const from = (context.scratch.gate >>> 2) + t * size;
      for (let r = 0; r < size; r++) this.gates[to + modelId(layer, begin + r)] = f32[from + r];
    }
  }

  /** Gates of the neurons in scratch.candidates. */
  recordListedGates(context: LaneContext, layer: LayerPlacement, l: number, n: number, step: Step): void {
    const { candidates, gate } = context.scratch;
    if (this.gates) this.recordListed(this.gates, candidates, gate, context, layer, l, n, step);
  }

  /** x1 of the neurons in scratch.active. */
  recordActivations(context: LaneContext, layer: LayerPlacement, l: number, n: number, step: Step): void {
    const { active } = context.scratch;
    if (this.activations) {
      this.recordListed(this.activations, active, active.act, context, layer, l, n, step);
    }
  }

  private recordListed(
    into: Float32Array,
    { offsets, ids }: RowLists,
    values: Ptr,
    context: LaneContext,
    layer: LayerPlacement,
    l: number,
    n: number,
    step: Step,
  ): void {
    const { u32, f32 } = context.arenas[layer.arena];
    const { experts, activeExperts: active } = context.layout.block;
    const chosen = context.routing.experts;
    const size = context.layout.config.intermediateSize / experts;
    for (let t = 0; t < n; t++) {
      const to = this.rowAt(l, step.position[t], active * size);
      const end = u32[(offsets >>> 2) + t + 1];
      for (let k = u32[(offsets >>> 2) + t]; k < end; k++) {
        const id = modelId(layer, u32[(ids >>> 2) + k]);
        let place = 0;
        if (experts > 1) while (chosen[t * active + place] !== Math.floor(id / size)) place++;
        into[to + place * size + (id % size)] = f32[(values >>> 2) + k];
      }
    }
  }

  /** Where [layer l][token row] begins. */
  private rowAt(l: number, row: number, width: number): number {
    return (l * this.request.tokens + row) * width;
  }
}

const modelId = (layer: LayerPlacement, at: number): number => (layer.order ? layer.order[at] : at);
