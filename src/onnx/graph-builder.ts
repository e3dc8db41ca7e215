/**
 * ONNX graphs built in memory. The predictors' training graphs and the GPU graphs are written with this,
 * node by node, in the order the data flows:
 *
 *     const g = new GraphBuilder('linear');
 *     const x = g.input('x', 'float32', ['n', 4]);
 *     const w = g.initializer('w', 'float32', [4, 2], weights);
 *     g.output(g.op('MatMul', [x, w], {}, 'y'), 'float32', ['n', 2]);
 *     const model = g.build();
 */
import { mkdirSync, openSync, closeSync, writeSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { HybridError } from '../errors.js';
import { toFloat16 } from './float16.js';
import {
  ATTRIBUTE_TYPE,
  DATA_LOCATION_EXTERNAL,
  DATA_TYPE,
  IR_VERSION,
  MICROSOFT_DOMAIN,
  ModelProto,
  OPSET_VERSION,
  type AttributeMessage,
  type DataType,
  type GraphMessage,
  type NodeMessage,
  type TensorMessage,
  type ValueInfoMessage,
} from './schema.js';

/** A fixed size, or the name of a size that is known only at run time. */
export type Dimension = number | string;
export type Shape = readonly Dimension[];
/** Numbers are converted to the tensor's type; a typed array must already hold it (float16: Uint16Array). */
export type TensorData = ArrayBufferView | readonly number[];

/**
 * protobuf counts message bytes in a signed 32-bit integer. 64 MiB are left for names and nodes around
 * the weights; above this the weights go to a file of their own (`save`).
 */
export const MAX_MODEL_BYTES = 2 ** 31 - 64 * 2 ** 20;
/** Tensors below this stay inside the model file: onnxruntime needs shapes and axes at load time. */
const MIN_EXTERNAL_BYTES = 1024;
/** External tensors begin at page boundaries, so that onnxruntime may map them. */
const EXTERNAL_ALIGNMENT = 4096;

// ---- attributes: ONNX tells 1 from 1.0, JavaScript does not --------------------------------------------

export type Attribute = Omit<AttributeMessage, 'name'>;
export type Attributes = Readonly<Record<string, Attribute>>;

export const int = (i: number): Attribute => ({ type: ATTRIBUTE_TYPE.int, i });
export const ints = (values: readonly number[]): Attribute => ({
  type: ATTRIBUTE_TYPE.ints,
  ints: [...values],
});
export const float = (f: number): Attribute => ({ type: ATTRIBUTE_TYPE.float, f });
export const floats = (values: readonly number[]): Attribute => ({
  type: ATTRIBUTE_TYPE.floats,
  floats: [...values],
});
export const text = (s: string): Attribute => ({ type: ATTRIBUTE_TYPE.string, s: Buffer.from(s, 'utf8') });
/** A body for Loop, If or Scan, made with `GraphBuilder.subgraph`. */
export const graph = (body: GraphBuilder): Attribute => ({ type: ATTRIBUTE_TYPE.graph, g: body.message });

// ---- the builder ----------------------------------------------------------------------------------------

export class GraphBuilder {
  /** The graph so far, in the shape of the protobuf message. */
  readonly message: GraphMessage;
  /** Shared with subgraphs, so that no generated name ever hides one of an outer graph. */
  private readonly counter: { next: number };
  private readonly defined: Set<string>;

  constructor(name: string, parent?: GraphBuilder) {
    this.message = { name, node: [], initializer: [], input: [], output: [] };
    this.counter = parent?.counter ?? { next: 0 };
    this.defined = parent === undefined ? new Set() : new Set(parent.defined);
  }

  /** A body graph (Loop, If, Scan). Its nodes may read this graph's values by name. */
  subgraph(name: string): GraphBuilder {
    return new GraphBuilder(name, this);
  }

  /** @returns the name, to be used as a node's input */
  input(name: string, type: DataType, shape: Shape): string {
    this.define(name);
    this.message.input.push(valueInfo(name, type, shape));
    return name;
  }

  /** A constant stored in the model: weights, axes, scalars (shape []). @returns the name */
  initializer(name: string, type: DataType, shape: readonly number[], data: TensorData): string {
    this.define(name);
    this.message.initializer.push(tensor(name, type, shape, data));
    return name;
  }

  /** An initializer with a generated name; a single number is a scalar. */
  constant(type: DataType, data: TensorData | number, shape?: readonly number[]): string {
    const values = typeof data === 'number' ? [data] : data;
    const length = 'length' in values ? (values.length as number) : values.byteLength;
    return this.initializer(
      this.fresh('const'),
      type,
      shape ?? (typeof data === 'number' ? [] : [length]),
      values,
    );
  }

  /** One operator. Empty input names stand for optional inputs that are left out. */
  node(
    opType: string,
    inputs: readonly string[],
    outputs: readonly string[],
    attributes: Attributes = {},
    domain = '',
  ): void {
    for (const name of inputs) {
      if (name !== '' && !this.defined.has(name)) {
        throw graphError(`${opType}: input "${name}" is not defined before it is used`);
      }
    }
    for (const name of outputs) if (name !== '') this.define(name);
    const node: NodeMessage = {
      name: this.fresh(opType),
      opType,
      domain,
      input: [...inputs],
      output: [...outputs],
      attribute: Object.entries(attributes).map(([name, attribute]) => ({ ...attribute, name })),
    };
    this.message.node.push(node);
  }

  /** One operator with one output. @returns the output's name, generated unless `output` gives it */
  op(
    opType: string,
    inputs: readonly string[],
    attributes: Attributes = {},
    output = this.fresh(opType.toLowerCase()),
    domain = '',
  ): string {
    this.node(opType, inputs, [output], attributes, domain);
    return output;
  }

  /** A name that nothing else has, for nodes with several outputs. */
  name(stem: string): string {
    return this.fresh(stem);
  }

  /** Declares a value as output of the graph, in the order of the calls. */
  output(name: string, type: DataType, shape: Shape): void {
    if (!this.defined.has(name)) throw graphError(`output "${name}" is not made by any node`);
    this.message.output.push(valueInfo(name, type, shape));
  }

  /** Bytes of all initializers of this graph (bodies not counted). */
  get initializerBytes(): number {
    return this.message.initializer.reduce((sum, t) => sum + (t.rawData?.byteLength ?? 0), 0);
  }

  /**
   * The model as bytes for `createSession`.
   * @throws HybridError when the weights are too large for one protobuf message: use `save`
   */
  build(): Uint8Array {
    if (this.initializerBytes > MAX_MODEL_BYTES) {
      throw graphError(
        `${this.initializerBytes} bytes of weights do not fit into one ONNX file (limit ${MAX_MODEL_BYTES})`,
        'Save the graph with external data, or split it.',
      );
    }
    return encode(this.message);
  }

  /**
   * The model as files: `<name>.onnx`, and `<name>.weights` with every initializer of 1 KiB or more as
   * external data. For graphs above 2 GB.
   * @returns the path of the .onnx file, for `createSession`
   */
  save(folder: string): string {
    mkdirSync(folder, { recursive: true });
    const { name } = this.message;
    const fd = openSync(join(folder, `${name}.weights`), 'w');
    let offset = 0;
    try {
      const initializer = this.message.initializer.map((t) => {
        const bytes = t.rawData;
        if (bytes === undefined || bytes.byteLength < MIN_EXTERNAL_BYTES) return t;
        const external = externalTensor(t, `${name}.weights`, offset, bytes.byteLength);
        writeAll(fd, bytes, offset);
        offset = Math.ceil((offset + bytes.byteLength) / EXTERNAL_ALIGNMENT) * EXTERNAL_ALIGNMENT;
        return external;
      });
      const path = join(folder, `${name}.onnx`);
      writeFileSync(path, encode({ ...this.message, initializer }));
      return path;
    } catch (cause) {
      throw new HybridError('IO_FAILED', `cannot write ONNX graph ${name} to ${folder}`, {
        cause,
        hint: 'Check free space and permissions of that folder.',
      });
    } finally {
      closeSync(fd);
    }
  }

  private fresh(stem: string): string {
    return `${stem}_${this.counter.next++}`;
  }

  private define(name: string): void {
    if (this.defined.has(name)) throw graphError(`value "${name}" is defined twice`);
    this.defined.add(name);
  }
}

// ---- messages --------------------------------------------------------------------------------------------

function encode(graphMessage: GraphMessage): Uint8Array {
  return ModelProto.encode({
    irVersion: IR_VERSION,
    producerName: 'hybrid-infer',
    graph: graphMessage,
    opsetImport: [
      { domain: '', version: OPSET_VERSION },
      { domain: MICROSOFT_DOMAIN, version: 1 },
    ],
  } as never).finish();
}

function valueInfo(name: string, type: DataType, shape: Shape): ValueInfoMessage {
  const dim = shape.map((d) => (typeof d === 'number' ? { dimValue: d } : { dimParam: d }));
  return { name, type: { tensorType: { elemType: DATA_TYPE[type], shape: { dim } } } };
}

const BYTES_PER_ELEMENT: Record<DataType, number> = {
  float32: 4,
  float16: 2,
  int64: 8,
  int32: 4,
  uint8: 1,
  int8: 1,
  bool: 1,
};

function tensor(name: string, type: DataType, shape: readonly number[], data: TensorData): TensorMessage {
  const view = ArrayBuffer.isView(data) ? data : convert(type, data);
  const elements = shape.reduce((product, d) => product * d, 1);
  if (view.byteLength !== elements * BYTES_PER_ELEMENT[type]) {
    throw graphError(
      `initializer "${name}": ${type} [${shape.join(', ')}] needs ${elements * BYTES_PER_ELEMENT[type]} bytes, ` +
        `got ${view.byteLength}`,
    );
  }
  return {
    name,
    dims: [...shape],
    dataType: DATA_TYPE[type],
    rawData: new Uint8Array(view.buffer, view.byteOffset, view.byteLength),
  };
}

function convert(type: DataType, values: readonly number[]): ArrayBufferView {
  switch (type) {
    case 'float32':
      return Float32Array.from(values);
    case 'float16':
      return Uint16Array.from(values, toFloat16);
    case 'int64':
      return BigInt64Array.from(values, (v) => BigInt(v));
    case 'int32':
      return Int32Array.from(values);
    case 'int8':
      return Int8Array.from(values);
    case 'uint8':
    case 'bool':
      return Uint8Array.from(values);
  }
}

function externalTensor(t: TensorMessage, location: string, offset: number, length: number): TensorMessage {
  return {
    name: t.name,
    dims: t.dims,
    dataType: t.dataType,
    dataLocation: DATA_LOCATION_EXTERNAL,
    externalData: [
      { key: 'location', value: location },
      { key: 'offset', value: String(offset) },
      { key: 'length', value: String(length) },
    ],
  };
}

/** writeSync may write less than asked, and takes at most 2 GiB at once. */
function writeAll(fd: number, bytes: Uint8Array, position: number): void {
  const CHUNK = 2 ** 30;
  for (let done = 0; done < bytes.byteLength;) {
    done += writeSync(fd, bytes, done, Math.min(CHUNK, bytes.byteLength - done), position + done);
  }
}

function graphError(
  message: string,
  hint = 'This is a defect of hybrid-infer: please report it.',
): HybridError {
  return new HybridError('ONNX_FAILED', `ONNX graph: ${message}`, { hint });
}
