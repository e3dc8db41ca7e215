/** Every row of the table on tiny random models: config, mapping of tensors, pack and back, forward pass. */
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ARCHITECTURES, openModel } from '../../src/model/index.js';
import { LLAMA_BLOCK, LLAMA_ENDS } from '../../src/model/block.js';
import { readConfig } from '../../src/model/config.js';
import { locate } from '../../src/model/tensor-names.js';
import type { TensorName, WeightSource } from '../../src/model/types.js';
import { convert } from '../../src/pack/convert.js';
import { packSource } from '../../src/pack/pack-source.js';
import { openPack } from '../../src/pack/reader.js';
import { plainForward } from '../engine/plain-forward.js';
import { baseConfig, randomTensors, writeModel } from '../helpers/any-model.js';
import { ROWS, type DeepPartial } from '../helpers/architecture-rows.js';
import { rejection } from '../helpers/expect-reject.js';
import { packedCode, writePackedTernary } from '../helpers/packed-ternary.js';
import { tempFolder } from '../helpers/tiny-models.js';

const TOKENS = Array.from({ length: 12 }, (_, i) => (i * 53 + 7) % 288);
const merged = <T extends object>(base: T, over?: DeepPartial<T>): T =>
  Object.fromEntries(
    Object.entries(base).map(([key, value]) => {
      const other = (over as Record<string, unknown> | undefined)?.[key];
      const deep =
        typeof value === 'object' && value !== null && !Array.isArray(value) && other !== undefined;
      return [key, deep ? merged(value as object, other as object) : other === undefined ? value : other];
    }),
  ) as T;

async function allRows(source: WeightSource, name: TensorName): Promise<Float32Array> {
  const { shape } = source.tensors.get(name)!;
  return source.readRows(name, 0, shape.length === 1 ? 1 : shape[0]);
}

describe('the table of architectures', () => {
  it('has a case here for every row', () => {
    expect(ROWS.map(([name]) => name).sort()).toEqual(ARCHITECTURES.map((row) => row.name).sort());
  });

  it.each(ROWS)('%s: its config is described', (name, fields, expected) => {
    const { config } = readConfig(baseConfig(name, fields), 'config.json');
    expect(config.block).toEqual(merged(LLAMA_BLOCK, expected.block));
    expect(config.ends).toEqual(merged(LLAMA_ENDS, expected.ends));
    expect(config).toMatchObject(expected.config ?? {});
  });

  it.each(ROWS)('%s: a pack holds what the files hold, and computes the same', async (name, fields) => {
    const folder = writeModel(baseConfig(name, fields));
    const path = join(tempFolder(), 'any.pack');
    const source = await openModel(folder);
    expect(source.warnings).toEqual([]);
    await convert(source, path, { quant: 'f32', threads: 1 });
    const pack = packSource(openPack(path));
    expect(pack.config).toEqual(source.config);
    expect([...pack.tensors.keys()]).toEqual([...source.tensors.keys()]);
    for (const tensor of source.tensors.keys()) {
      expect(await allRows(pack, tensor), tensor).toEqual(await allRows(source, tensor));
    }
    const { logits } = await plainForward(pack, TOKENS);
    expect(logits.flatMap((row) => [...row]).every(Number.isFinite)).toBe(true);
    expect(new Set(logits.map((row) => row.indexOf(Math.max(...row)))).size).toBeGreaterThan(1);
    await pack.close();
    await source.close();
  });

  it.each(ROWS)('%s: a tensor that is missing is named', async (name, fields) => {
    const config = baseConfig(name, fields);
    const tensors = randomTensors(config);
    const read = readConfig(config, 'config.json');
    const down = locate(read.config, read.naming, 'layers.1.down', [32, read.config.intermediateSize]);
    const lost = down.pieces[0].file;
    expect(tensors.delete(lost)).toBe(true);
    expect((await rejection(writeModel(config, tensors))).message).toContain(`tensor ${lost} is missing`);
  });
});

describe('tensors that files keep in another form', () => {
  const value = (tensors: ReturnType<typeof randomTensors>, name: string) => tensors.get(name)!;

  it('are parts of a fused matrix by key/value head: Falcon', async () => {
    const config = baseConfig('FalconForCausalLM', {
      activation: 'relu',
      new_decoder_architecture: true,
      num_kv_heads: 2,
      ffn_hidden_size: 48,
      bias: true,
    });
    const tensors = randomTensors(config);
    const source = await openModel(writeModel(config, tensors));
    const fused = value(tensors, 'transformer.h.1.self_attention.query_key_value.weight').data;
    const bias = value(tensors, 'transformer.h.1.self_attention.query_key_value.bias').data;
    // Groups of two query heads, a key head and a value head, of 8 rows each.
    const rows = (heads: number[]) => heads.flatMap((h) => [...fused.subarray(h * 8 * 32, (h + 1) * 8 * 32)]);
    const values = (heads: number[]) => heads.flatMap((h) => [...bias.subarray(h * 8, (h + 1) * 8)]);
    expect([...(await allRows(source, 'layers.1.q'))]).toEqual(rows([0, 1, 4, 5]));
    expect([...(await allRows(source, 'layers.1.k'))]).toEqual(rows([2, 6]));
    expect([...(await allRows(source, 'layers.1.v'))]).toEqual(rows([3, 7]));
    expect([...(await allRows(source, 'layers.1.qBias'))]).toEqual(values([0, 1, 4, 5]));
    expect([...(await allRows(source, 'layers.1.vBias'))]).toEqual(values([3, 7]));
    // Any range of rows, across the groups.
    expect(await source.readRows('layers.1.q', 13, 18)).toEqual(
      (await allRows(source, 'layers.1.q')).slice(13 * 32, 18 * 32),
    );
    await source.close();
  });

  it('are one norm for both branches: Falcon-7B', async () => {
    const config = baseConfig('FalconForCausalLM', { activation: 'relu', num_key_value_heads: null });
    const tensors = randomTensors(config);
    const source = await openModel(writeModel(config, tensors));
    expect(source.config).toMatchObject({ kvHeads: 1, block: { parallel: true } });
    expect(await allRows(source, 'layers.0.ffnNorm')).toEqual(await allRows(source, 'layers.0.attnNorm'));
    expect(tensors.has('transformer.h.0.ln_attn.weight')).toBe(false);
    await source.close();
  });

  it('are stacked in one matrix: Phi-3', async () => {
    const config = baseConfig('Phi3ForCausalLM');
    const tensors = randomTensors(config);
    const source = await openModel(writeModel(config, tensors));
    const { data } = value(tensors, 'model.layers.0.mlp.gate_up_proj.weight');
    expect(await allRows(source, 'layers.0.gate')).toEqual(data.slice(0, 48 * 32));
    expect(await allRows(source, 'layers.0.up')).toEqual(data.slice(48 * 32));
    await source.close();
  });

  it('are experts, side by side in the layer’s neurons', async () => {
    const config = baseConfig('MixtralForCausalLM', { num_local_experts: 3, num_experts_per_tok: 1 });
    const tensors = randomTensors(config);
    const source = await openModel(writeModel(config, tensors));
    const expert = (e: number, w: string) =>
      value(tensors, `model.layers.1.block_sparse_moe.experts.${e}.${w}.weight`).data;
    const gate = await allRows(source, 'layers.1.gate');
    const down = await allRows(source, 'layers.1.down');
    for (let e = 0; e < 3; e++) {
      expect(gate.slice(e * 48 * 32, (e + 1) * 48 * 32)).toEqual(expert(e, 'w1'));
      for (let row = 0; row < 32; row++) {
        expect(down.slice(row * 144 + e * 48, row * 144 + (e + 1) * 48)).toEqual(
          expert(e, 'w2').slice(row * 48, (row + 1) * 48),
        );
      }
    }
    await source.close();
  });

  it('are heads whose neighbouring dimensions turn: Cohere', async () => {
    const config = baseConfig('CohereForCausalLM');
    const tensors = randomTensors(config);
    const source = await openModel(writeModel(config, tensors));
    const stored = value(tensors, 'model.layers.1.self_attn.k_proj.weight').data;
    const rows = (order: number[]) => order.flatMap((r) => [...stored.subarray(r * 32, (r + 1) * 32)]);
    expect([...(await allRows(source, 'layers.1.k'))]).toEqual(
      rows([0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]),
    );
    await source.close();
  });

  it('are norms stored less one: Nemotron', async () => {
    const config = baseConfig('NemotronForCausalLM', { hidden_act: 'relu2' });
    const tensors = randomTensors(config);
    const source = await openModel(writeModel(config, tensors));
    const stored = value(tensors, 'model.layers.0.input_layernorm.weight').data;
    expect(await allRows(source, 'layers.0.attnNorm')).toEqual(stored.map((v) => v + 1));
    expect(await allRows(source, 'layers.0.attnNormBias')).toEqual(
      value(tensors, 'model.layers.0.input_layernorm.bias').data,
    );
    await source.close();
  });

  it('are multiplied with the norm before them: BitNet’s down', async () => {
    const config = baseConfig('BitNetForCausalLM', { hidden_act: 'relu2' });
    const tensors = randomTensors(config);
    const source = await openModel(writeModel(config, tensors));
    const down = value(tensors, 'model.layers.0.mlp.down_proj.weight').data;
    const norm = value(tensors, 'model.layers.0.mlp.ffn_sub_norm.weight').data;
    expect(await allRows(source, 'layers.0.down')).toEqual(down.map((v, i) => v * norm[i % 48]));
    await source.close();
  });
});

describe('packed ternary weights', () => {
  it('are unpacked and scaled', async () => {
    const source = await openModel(writePackedTernary());
    expect(source.tensors.get('layers.0.gate')!.dtype).toBe('ternary');
    const gate = await allRows(source, 'layers.0.gate');
    expect([...gate]).toEqual(
      Array.from({ length: 48 * 32 }, (_, i) => (packedCode(Math.floor(i / 32), i % 32) - 1) * 0.5),
    );
    expect(await source.readRows('layers.0.gate', 10, 27)).toEqual(gate.slice(10 * 32, 27 * 32));
    await source.close();
  });

  it('of any bytes are -1, 0 and 1 by their bits, or refused at the first row with a fourth code', async () => {
    const random = fc.uint8Array({ minLength: 8 * 32, maxLength: 8 * 32 });
    const allowed = random.map((bytes) => bytes.map((byte) => byte & ~((byte >> 1) & 0x55)));
    await fc.assert(
      fc.asyncProperty(fc.oneof(random, allowed), async (bytes) => {
        const folder = writePackedTernary({}, (stored) => {
          stored.set('model.layers.0.self_attn.q_proj.weight', { dtype: 'U8', shape: [8, 32], bytes });
        });
        const codes = Array.from({ length: 32 }, (_, row) =>
          Array.from({ length: 32 }, (__, c) => (bytes[(row % 8) * 32 + c] >> (2 * Math.floor(row / 8))) & 3),
        );
        const bad = codes.findIndex((row) => row.includes(3));
        const source = await openModel(folder);
        const read = allRows(source, 'layers.0.q');
        if (bad < 0) expect([...(await read)]).toEqual(codes.flat().map((code) => (code - 1) * 0.5 + 0));
        else await expect(read).rejects.toThrow(`q_proj.weight, row ${bad}: a packed code of 3`);
        await source.close();
      }),
      { numRuns: 30 },
    );
  });

  it('of the older kind are divided by the scale', async () => {
    const source = await openModel(writePackedTernary({ quantization_config: { quant_method: 'bitnet' } }));
    expect(new Set(await allRows(source, 'layers.0.o'))).toEqual(new Set([-2, 0, 2]));
    await source.close();
  });

  it('become q4 unless asked otherwise, without a loss', async () => {
    const source = await openModel(writePackedTernary());
    const path = join(tempFolder(), 'ternary.pack');
    const header = await convert(source, path, { quant: null });
    expect(header.quant).toBe('q4');
    expect(header.converted).toContainEqual({ role: 'gate', from: 'ternary', to: 'q4', tensors: 2 });
    const pack = packSource(openPack(path));
    const [before, after] = [await allRows(source, 'layers.1.gate'), await allRows(pack, 'layers.1.gate')];
    before.forEach((v, i) => expect(Math.abs(after[i] - v)).toBeLessThan(0.5 / 128));
    await pack.close();
    await source.close();
  });
});

describe('what a row does not support is refused in one line', () => {
  it.each<[string, Record<string, unknown>, RegExp]>([
    ['FalconForCausalLM', { activation: 'relu', alibi: true }, /alibi positions is not supported/],
    ['FalconForCausalLM', { activation: 'mish' }, /hidden_act "mish" is not supported/],
    ['OPTForCausalLM', { ffn_dim: 48, layer_norm_elementwise_affine: false }, /norms without weights/],
    [
      'Phi3ForCausalLM',
      { rope_scaling: { type: 'longrope', short_factor: [1], long_factor: [1] } },
      /longrope has 1 factors for 4 pairs/,
    ],
    ['MixtralForCausalLM', {}, /does not say how many experts/],
    ['Qwen3MoeForCausalLM', { num_experts: 5000 }, /: num_experts: Too big/],
    ['OPTForCausalLM', { ffn_dim: -1 }, /: ffn_dim: /],
    ['MixtralForCausalLM', { num_local_experts: 2, num_experts_per_tok: 3 }, /3 active experts of 2/],
    ['SmallThinkerForCausalLM', { hidden_act: null }, /without moe_num_primary_experts/],
    [
      'SmallThinkerForCausalLM',
      { hidden_act: null, num_local_experts: 4, num_experts_per_tok: 2, rope_layout: [1] },
      /another length/,
    ],
    [
      'LlamaForCausalLM',
      { quantization_config: { quant_method: 'gptq' } },
      /quantization_config: weights that are already quantised/,
    ],
    [
      'BitNetForCausalLM',
      { quantization_config: { quant_method: 'bitnet', quantization_mode: 'online' } },
      /become ternary when the model runs/,
    ],
    ['CohereForCausalLM', { use_qk_norm: true }, /use_qk_norm is not supported/],
    [
      'Qwen3MoeForCausalLM',
      { num_experts: 4, num_experts_per_tok: 2, mlp_only_layers: [0] },
      /layers without experts/,
    ],
    [
      'OlmoeForCausalLM',
      { num_experts: 2, num_experts_per_tok: 1, clip_qkv: 8 },
      /clip_qkv is not supported/,
    ],
    ['StableLmForCausalLM', { qk_layernorm: true }, /qk_layernorm is not supported/],
    [
      'LlamaForCausalLM',
      { rope_parameters: { full_attention: { rope_type: 'default' } } },
      /each kind of layer/,
    ],
    ['Phi3ForCausalLM', { partial_rotary_factor: 0.4 }, /3 of 8 head dimensions rotate/],
  ])('%s with %j', (name, fields, message) => {
    expect(() => readConfig(baseConfig(name, fields), 'config.json')).toThrow(message);
  });
});
