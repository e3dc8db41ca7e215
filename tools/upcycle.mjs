/**
 * A mixture of experts made of a dense model: every expert is a copy of its FFN, the router is random and the weights
 * of the chosen experts sum to one. It computes what the dense model does, whatever experts are chosen, so that its
 * profile can be held against the dense one's:
 *
 *     node tools/upcycle.mjs models/tales-4m-relu -o mixture [--experts 4] [--active 2]
 *
 * Reads a Hugging Face folder of Llama's layout with one model.safetensors, without biases in the FFN.
 */
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

const { values: args, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    output: { type: 'string', short: 'o' },
    experts: { type: 'string', default: '4' },
    active: { type: 'string', default: '2' },
    help: { type: 'boolean', default: false },
  },
});
const [source] = positionals;
if (args.help || !source || !args.output) {
  console.error('usage: node tools/upcycle.mjs MODEL -o FOLDER [--experts N] [--active N]');
  process.exit(args.help ? 0 : 2);
}
const [experts, active] = [args.experts, args.active].map(Number);
if (!(Number.isInteger(experts) && Number.isInteger(active) && 1 <= active && active <= experts)) {
  console.error('--experts and --active: whole numbers, at least one active, no more active than there are');
  process.exit(2);
}
const config = JSON.parse(readFileSync(join(source, 'config.json'), 'utf8'));
const { num_hidden_layers: layers, hidden_size: d } = config;

// ---- tensors ------------------------------------------------------------------------------------------

const file = readFileSync(join(source, 'model.safetensors'));
const dataAt = 8 + Number(file.readBigUInt64LE(0));
const { __metadata__: _, ...header } = JSON.parse(file.toString('utf8', 8, dataAt));
const OURS = { gate: 'w1', up: 'w3', down: 'w2' };
const tensors = Object.entries(header).flatMap(([name, { dtype, shape, data_offsets: offsets }]) => {
  const data = file.subarray(dataAt + offsets[0], dataAt + offsets[1]);
  const ffn = /^(model\.layers\.\d+)\.mlp\.(gate|up|down)_proj\.weight$/.exec(name);
  if (!ffn) return [{ name, dtype, shape, data }];
  return Array.from({ length: experts }, (_, e) => ({
    name: `${ffn[1]}.block_sparse_moe.experts.${e}.${OURS[ffn[2]]}.weight`,
    dtype,
    shape,
    data,
  }));
});
let state = 12345;
const random = () => (state = (state * 1103515245 + 12345) & 0x7fffffff) / 0x7fffffff;
for (let l = 0; l < layers; l++) {
  const router = Float32Array.from({ length: experts * d }, () => 0.3 * (2 * random() - 1));
  const name = `model.layers.${l}.block_sparse_moe.gate.weight`;
  tensors.push({ name, dtype: 'F32', shape: [experts, d], data: Buffer.from(router.buffer) });
}

// ---- the folder ---------------------------------------------------------------------------------------

let at = 0;
const described = Object.fromEntries(
  tensors.map(({ name, dtype, shape, data }) => {
    const data_offsets = [at, (at += data.length)];
    return [name, { dtype, shape, data_offsets }];
  }),
);
const text = JSON.stringify(described);
const padded = Buffer.from(text.padEnd(Math.ceil(text.length / 8) * 8));
const length = Buffer.alloc(8);
length.writeBigUInt64LE(BigInt(padded.length));
mkdirSync(args.output, { recursive: true });
writeFileSync(
  join(args.output, 'model.safetensors'),
  Buffer.concat([length, padded, ...tensors.map(({ data }) => data)]),
);
const mixture = {
  ...config,
  architectures: ['MixtralForCausalLM'],
  model_type: 'mixtral',
  num_local_experts: experts,
  num_experts_per_tok: active,
};
writeFileSync(join(args.output, 'config.json'), JSON.stringify(mixture, null, 2));
for (const name of ['tokenizer.json', 'tokenizer_config.json', 'generation_config.json']) {
  if (existsSync(join(source, name))) copyFileSync(join(source, name), join(args.output, name));
}
