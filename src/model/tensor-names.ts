/** The tensors that a description asks for, and where files keep them. */
import { embeddingSize, expertShape } from './block.js';
import type { GlobalTensor, LayerTensor, ModelConfig, Role, TensorName } from './types.js';

/** [role, shape] of every tensor the model must have, in the order the forward pass uses them. */
export function expectedTensors(config: ModelConfig): [TensorName, number[]][] {
  const { hiddenSize: d, intermediateSize: nFf, vocabSize, headDim, block, ends } = config;
  const { norm, attention, ffn } = block;
  const e = embeddingSize(config);
  const qRows = config.heads * headDim;
  const kvRows = config.kvHeads * headDim;
  const all = attention.headNorm === 'all';
  const some = <T>(condition: boolean, ...list: T[]): T[] => (condition ? list : []);
  type Entry<Name> = [Name, number[]];
  const layer: Entry<LayerTensor>[] = [
    ['attnNorm', [d]],
    ['q', [qRows, d]],
    ['k', [kvRows, d]],
    ['v', [kvRows, d]],
    ['o', [d, qRows]],
    ['ffnNorm', [d]],
    ['gate', [nFf, d]],
    ...some<Entry<LayerTensor>>(ffn.gated, ['up', [nFf, d]]),
    ['down', [d, nFf]],
    ...some<Entry<LayerTensor>>(config.qkvBias, ['qBias', [qRows]], ['kBias', [kvRows]], ['vBias', [kvRows]]),
    ...some<Entry<LayerTensor>>(config.outputBias, ['oBias', [d]]),
    ...some<Entry<LayerTensor>>(norm.bias, ['attnNormBias', [d]], ['ffnNormBias', [d]]),
    ...some<Entry<LayerTensor>>(
      attention.headNorm !== 'none',
      ['qNorm', [all ? qRows : headDim]],
      ['kNorm', [all ? kvRows : headDim]],
    ),
    ...some<Entry<LayerTensor>>(attention.outputNorm, ['oNorm', [qRows]]),
    ...some<Entry<LayerTensor>>(ffn.experts !== null, ['router', [ffn.experts?.count ?? 0, d]]),
    ...some<Entry<LayerTensor>>(ffn.bias, ['gateBias', [nFf]]),
    ...some<Entry<LayerTensor>>(ffn.bias && ffn.gated, ['upBias', [nFf]]),
    ...some<Entry<LayerTensor>>(ffn.bias, ['downBias', [d]]),
  ];
  const first: Entry<GlobalTensor>[] = [
    ['embed', [vocabSize, e]],
    ...some<Entry<GlobalTensor>>(ends.learnedPositions !== null, [
      'positions',
      [ends.learnedPositions?.rows ?? 0, d],
    ]),
    ...some<Entry<GlobalTensor>>(ends.embeddingSize !== null, ['projectIn', [d, e]]),
  ];
  const last: Entry<GlobalTensor>[] = [
    ...some<Entry<GlobalTensor>>(ends.finalNorm, ['outNorm', [d]]),
    ...some<Entry<GlobalTensor>>(ends.finalNorm && norm.bias, ['outNormBias', [d]]),
    ...some<Entry<GlobalTensor>>(ends.embeddingSize !== null, ['projectOut', [e, d]]),
    ...some<Entry<GlobalTensor>>(!config.tiedEmbeddings, ['lmHead', [vocabSize, e]]),
  ];
  const layers = Array.from({ length: config.layers }, (_, l) =>
    layer.map(([role, shape]): [TensorName, number[]] => [`layers.${l}.${role}`, shape]),
  );
  return [...first, ...layers.flat(), ...last];
}

// ---- where files keep them -------------------------------------------------------------------------------

/**
 * A tensor of its own by name ({l} layer, {e} expert), or part of one:
 *     qkv             rows of q, then k, then v
 *     qkv-by-group    for each key/value head: the rows of its query heads, then its k, then its v
 *     gate-up         rows of gate, then up
 *     experts         one matrix per expert, stacked
 */
export type Place = string | { in: string; as: 'qkv' | 'qkv-by-group' | 'gate-up' | 'experts' };

export interface Naming {
  places: Readonly<Partial<Record<Role, Place>>>;
  /** Weight of the norm before down, which becomes part of down. */
  downNorm?: string;
  /** Weights of the norms before attention, FFN and head are stored less one. */
  normsLessOne?: boolean;
  /** Heads of q and k keep the two halves of their rotating dimensions interleaved. */
  interleavedHeads?: boolean;
  /** A scalar that a matrix is to be multiplied with (or divided by): `name` of the matrix -> name of the scalar. */
  scaleOf?: { name(matrix: string): string; divide: boolean; required: boolean };
  /** Matrices in uint8, four ternary values a byte: row r of R stands in bits 2 (r div R/4) of byte row r mod R/4. */
  packedTernary?: boolean;
}

/** A rectangle of a stored tensor; stored dimensions before the last count as rows. */
export interface FilePiece {
  file: string;
  shape: number[];
  firstRow: number;
  rows: number;
  firstCol: number;
  cols: number;
}

export interface FileTensor {
  /** How the pieces make the tensor: one under the other, or side by side. */
  along: 'rows' | 'columns';
  pieces: FilePiece[];
}

/** @param shape as expectedTensors says */
export function locate(config: ModelConfig, naming: Naming, name: TensorName, shape: number[]): FileTensor {
  const parts = name.split('.');
  const role = parts[parts.length - 1] as Role;
  const place = naming.places[role];
  if (place === undefined) throw new Error(`no file name for ${role}`);
  const layer = parts.length === 3 ? parts[1] : '';
  const text = (typeof place === 'string' ? place : place.in).replace('{l}', layer);
  const [rows, cols] = shape.length === 1 ? [1, shape[0]] : shape;
  if (typeof place !== 'string' && place.as !== 'experts') {
    const matrix = shape.length === 2;
    const { total, ranges } = rangesIn(config, place.as, role);
    const pieces = ranges.map(([from, length]): FilePiece =>
      matrix
        ? { file: text, shape: [total, cols], firstRow: from, rows: length, firstCol: 0, cols }
        : { file: text, shape: [total], firstRow: 0, rows: 1, firstCol: from, cols: length },
    );
    return { along: matrix ? 'rows' : 'columns', pieces };
  }
  const experts = config.block.ffn.experts;
  if (experts === null || !/^(gate|up|down)$/.test(role)) {
    return { along: 'rows', pieces: [{ file: text, shape, firstRow: 0, rows, firstCol: 0, cols }] };
  }
  const { size } = expertShape(config);
  const own = role === 'down' ? [rows, size] : [size, cols];
  const stacked = typeof place !== 'string';
  const pieces = Array.from({ length: experts.count }, (_, e): FilePiece => ({
    file: text.replace('{e}', String(e)),
    shape: stacked ? [experts.count, ...own] : own,
    firstRow: stacked ? e * own[0] : 0,
    rows: own[0],
    firstCol: 0,
    cols: own[1],
  }));
  return { along: role === 'down' ? 'columns' : 'rows', pieces };
}

/** Where a role's rows (or a bias's values) stand in a fused tensor: [first, how many]. */
function rangesIn(
  config: ModelConfig,
  as: 'qkv' | 'qkv-by-group' | 'gate-up',
  role: Role,
): { total: number; ranges: [number, number][] } {
  const { heads, kvHeads, headDim, intermediateSize: nFf } = config;
  if (as === 'gate-up') return { total: 2 * nFf, ranges: [[role.startsWith('gate') ? 0 : nFf, nFf]] };
  const groups = as === 'qkv' ? 1 : kvHeads;
  const [q, kv] = [(heads / groups) * headDim, (kvHeads / groups) * headDim];
  const size = q + 2 * kv;
  const [from, length] = role.startsWith('q') ? [0, q] : role.startsWith('k') ? [q, kv] : [q + kv, kv];
  return {
    total: groups * size,
    ranges: Array.from({ length: groups }, (_, g) => [g * size + from, length]),
  };
}

// ---- the usual names ---------------------------------------------------------------------------------------

const HF = 'model.layers.{l}.';
export const HUGGING_FACE: Naming = {
  places: {
    embed: 'model.embed_tokens.weight',
    outNorm: 'model.norm.weight',
    outNormBias: 'model.norm.bias',
    lmHead: 'lm_head.weight',
    attnNorm: `${HF}input_layernorm.weight`,
    attnNormBias: `${HF}input_layernorm.bias`,
    q: `${HF}self_attn.q_proj.weight`,
    k: `${HF}self_attn.k_proj.weight`,
    v: `${HF}self_attn.v_proj.weight`,
    o: `${HF}self_attn.o_proj.weight`,
    qBias: `${HF}self_attn.q_proj.bias`,
    kBias: `${HF}self_attn.k_proj.bias`,
    vBias: `${HF}self_attn.v_proj.bias`,
    oBias: `${HF}self_attn.o_proj.bias`,
    qNorm: `${HF}self_attn.q_norm.weight`,
    kNorm: `${HF}self_attn.k_norm.weight`,
    ffnNorm: `${HF}post_attention_layernorm.weight`,
    ffnNormBias: `${HF}post_attention_layernorm.bias`,
    gate: `${HF}mlp.gate_proj.weight`,
    up: `${HF}mlp.up_proj.weight`,
    down: `${HF}mlp.down_proj.weight`,
    gateBias: `${HF}mlp.gate_proj.bias`,
    upBias: `${HF}mlp.up_proj.bias`,
    downBias: `${HF}mlp.down_proj.bias`,
  },
};

const BLK = 'blk.{l}.';
export const GGUF: Naming = {
  places: {
    embed: 'token_embd.weight',
    outNorm: 'output_norm.weight',
    outNormBias: 'output_norm.bias',
    lmHead: 'output.weight',
    attnNorm: `${BLK}attn_norm.weight`,
    attnNormBias: `${BLK}attn_norm.bias`,
    q: `${BLK}attn_q.weight`,
    k: `${BLK}attn_k.weight`,
    v: `${BLK}attn_v.weight`,
    o: `${BLK}attn_output.weight`,
    qBias: `${BLK}attn_q.bias`,
    kBias: `${BLK}attn_k.bias`,
    vBias: `${BLK}attn_v.bias`,
    oBias: `${BLK}attn_output.bias`,
    qNorm: `${BLK}attn_q_norm.weight`,
    kNorm: `${BLK}attn_k_norm.weight`,
    oNorm: `${BLK}attn_sub_norm.weight`,
    ffnNorm: `${BLK}ffn_norm.weight`,
    ffnNormBias: `${BLK}ffn_norm.bias`,
    router: `${BLK}ffn_gate_inp.weight`,
    gate: `${BLK}ffn_gate.weight`,
    up: `${BLK}ffn_up.weight`,
    down: `${BLK}ffn_down.weight`,
    gateBias: `${BLK}ffn_gate.bias`,
    upBias: `${BLK}ffn_up.bias`,
    downBias: `${BLK}ffn_down.bias`,
  },
};

/** Rows of q, k and v in one matrix, and their biases, where there are some, in one vector. */
export const fusedQkv = (stem: string, as: 'qkv' | 'qkv-by-group'): Naming['places'] => {
  const [weight, bias] = [`${stem}.weight`, `${stem}.bias`].map((name) => ({ in: name, as }));
  return { q: weight, k: weight, v: weight, qBias: bias, kBias: bias, vBias: bias };
};

/** `naming` with other places (and more) than the usual ones. */
export const namedLike = (base: Naming, other: Partial<Naming>): Naming => ({
  ...base,
  ...other,
  places: { ...base.places, ...other.places },
});

/** `layers.3.gate` -> `blk.3.ffn_gate.weight`, for exports. */
export function ggufName(name: TensorName): string {
  const parts = name.split('.');
  const place = GGUF.places[parts[parts.length - 1] as Role];
  if (typeof place !== 'string') throw new Error(`no GGUF name for ${name}`);
  return place.replace('{l}', parts[1]);
}

/** The name that a Llama block's tensor has in a Hugging Face folder. */
export function huggingFaceName(name: TensorName): string {
  const [first, layer, role] = name.split('.');
  return (HUGGING_FACE.places[(role ?? first) as Role] as string).replace('{l}', layer);
}
