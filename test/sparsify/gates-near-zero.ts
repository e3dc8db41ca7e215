/** Gates that lie so near zero that rounding decides whether their ReLU is open. */
import type { ModelConfig } from '../../src/model/types.js';
import { GraphBuilder } from '../../src/onnx/graph-builder.js';
import { f32Tensor, OnnxSession, type TensorValue } from '../../src/onnx/session.js';
import { Tape, type Value } from '../../src/onnx/tape.js';
import type { Tokens } from '../../src/sparsify/lanes.js';
import { activationOperator, forward, type Batch } from '../../src/sparsify/model-graph.js';
import { weightInputs, weightsFrom, type Parameter } from '../../src/sparsify/parameters.js';

/** A gate of one token, and the weight that moves it most. */
export interface Gate {
  value: number;
  /** Flat index of the weight in the neuron's row of the gate matrix that meets the largest input. */
  weight: number;
  input: number;
  /** For people: layer, neuron, token of its part. */
  where: string;
}

/** The gates nearest zero over all layers and parts, nearest first. */
export async function gatesNearZero(
  config: ModelConfig,
  parameters: readonly Parameter[],
  weights: Float32Array,
  parts: readonly Tokens[],
  batch: Batch,
  count: number,
): Promise<Gate[]> {
  const t = new Tape(new GraphBuilder('gates'));
  const ids = t.indexInput('ids', [batch.windows * batch.tokens]);
  const inner = weightsFrom(t, weightInputs(t, parameters));
  const gates: { name: string; input: Value; gate: Value }[] = [];
  const watched = {
    get: inner.get,
    linear(name: Parameters<typeof inner.linear>[0], input: Value): Value {
      const gate = inner.linear(name, input);
      if (name.endsWith('.gate')) gates.push({ name, input, gate });
      return gate;
    },
  };
  forward(t, config, watched, ids, batch, activationOperator({ kind: 'relu' }));
  gates.forEach(({ input, gate }, l) => {
    t.output(input, `input ${l}`);
    t.output(gate, `gate ${l}`);
  });
  const session = await OnnxSession.create(t.g.build());
  const found: Gate[] = [];
  for (const [p, part] of parts.entries()) {
    const feeds: Record<string, TensorValue> = {
      ids: { type: 'int64', dims: [part.ids.length], data: part.ids },
    };
    for (const { name, shape, begin, size } of parameters)
      feeds[name] = f32Tensor(weights.slice(begin, begin + size) as Float32Array<ArrayBuffer>, shape);
    const result = await session.run(feeds);
    for (const [l, { name, input }] of gates.entries()) {
      const values = result[`gate ${l}`].data as Float32Array;
      const inputs = result[`input ${l}`].data as Float32Array;
      const width = input.shape[1];
      const { begin, shape } = parameters.find((q) => q.name === name)!;
      values.forEach((value, i) => {
        if (found.length === count && Math.abs(value) >= Math.abs(found[count - 1].value)) return;
        const [token, neuron] = [Math.floor(i / shape[0]), i % shape[0]];
        const row = inputs.subarray(token * width, (token + 1) * width);
        const column = row.reduce((best, h, c) => (Math.abs(h) > Math.abs(row[best]) ? c : best), 0);
        found.push({
          ...{ value, input: row[column], weight: begin + neuron * width + column },
          where: `${name}, neuron ${neuron}, part ${p}, token ${token}`,
        });
        found.sort((a, b) => Math.abs(a.value) - Math.abs(b.value));
        found.length = Math.min(found.length, count);
      });
    }
  }
  await session.release();
  return found;
}
