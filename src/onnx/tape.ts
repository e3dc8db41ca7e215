/**
 * Differentiation of ONNX graphs. A tape writes operators into a graph and remembers them; `gradients` walks
 * back over what it remembers and writes the backward graph with the same operators:
 *
 *     const t = new Tape(new GraphBuilder('training'));
 *     const w = t.input('w', [3, 4]);
 *     const y = t.apply(relu, t.apply(linear, x, w));
 *     const [dw] = t.gradients(t.apply(sum(), y), [w]);
 *
 * One rule per operator (`operators/`): the shapes of its outputs, its nodes, and its gradient. Shapes are
 * numbers: a rule must know what was broadcast.
 */
import { HybridError } from '../errors.js';
import type { GraphBuilder, TensorData } from './graph-builder.js';
import { add } from './operators/arithmetic.js';

/** A tensor of the graph. */
export interface Value {
  readonly name: string;
  readonly shape: readonly number[];
}

/** An operator that was applied: what its gradient may read. */
export interface Applied {
  readonly inputs: readonly Value[];
  /** The result first; what else the operator computes for its gradient after it. */
  readonly outputs: readonly Value[];
}

export interface Operator {
  readonly name: string;
  /** Shapes of the outputs. @throws HybridError when the inputs do not fit */
  shapes(inputs: readonly (readonly number[])[]): number[][];
  /** Writes the nodes. @returns names of the outputs */
  emit(g: GraphBuilder, inputs: readonly string[], shapes: readonly (readonly number[])[]): string[];
  /**
   * For each input how to write its gradient, given the result's; null: it has none (integers, constants).
   * They are written only where they are needed.
   */
  gradient(t: Tape, node: Applied, dy: Value): ((() => Value) | null)[];
}

interface Entry extends Applied {
  readonly operator: Operator;
}

export class Tape {
  private readonly entries: Entry[] = [];
  private readonly constants = new Map<string, Value>();

  constructor(readonly g: GraphBuilder) {}

  /** A float input of the graph. */
  input(name: string, shape: readonly number[]): Value {
    return { name: this.g.input(name, 'float32', shape), shape };
  }

  /** Whole numbers that choose rows or columns. */
  indexInput(name: string, shape: readonly number[]): Value {
    return { name: this.g.input(name, 'int64', shape), shape };
  }

  /** A constant table stored in the graph. */
  table(shape: readonly number[], data: TensorData): Value {
    return { name: this.g.constant('float32', data, shape), shape };
  }

  /** A number. Equal numbers are stored once. */
  scalar(value: number): Value {
    const key = `${value}`;
    const known = this.constants.get(key);
    if (known) return known;
    const made = { name: this.g.constant('float32', value), shape: [] };
    this.constants.set(key, made);
    return made;
  }

  /** Writes the operator and remembers it. @returns its result */
  apply(operator: Operator, ...inputs: Value[]): Value {
    const shapes = operator.shapes(inputs.map(({ shape }) => shape));
    const names = operator.emit(
      this.g,
      inputs.map(({ name }) => name),
      inputs.map(({ shape }) => shape),
    );
    const outputs = names.map((name, i) => ({ name, shape: shapes[i] }));
    this.entries.push({ operator, inputs, outputs });
    return outputs[0];
  }

  output(value: Value, name: string): void {
    this.g.output(this.g.op('Identity', [value.name], {}, name), 'float32', value.shape);
  }

  /** Elements of everything that was computed so far: what a backward pass may have to keep. */
  get computedElements(): number {
    const size = (shape: readonly number[]): number => shape.reduce((product, n) => product * n, 1);
    return this.entries.reduce(
      (sum, { outputs }) => sum + outputs.reduce((s, { shape }) => s + size(shape), 0),
      0,
    );
  }

  /**
   * Gradients of a number with respect to values.
   * @param loss shape []
   * @throws HybridError ONNX_FAILED when the loss does not depend on one of them
   */
  gradients(loss: Value, wrt: readonly Value[]): Value[] {
    const forward = this.entries.slice();
    const needed = new Set(wrt.map(({ name }) => name));
    for (const { inputs, outputs } of forward) {
      if (inputs.some(({ name }) => needed.has(name))) outputs.forEach(({ name }) => needed.add(name));
    }
    const gradient = new Map<string, Value>([[loss.name, this.scalar(1)]]);
    for (const entry of forward.reverse()) {
      const dy = gradient.get(entry.outputs[0].name);
      if (!dy || !entry.inputs.some(({ name }) => needed.has(name))) continue;
      const rules = entry.operator.gradient(this, entry, dy);
      entry.inputs.forEach((input, i) => {
        if (!needed.has(input.name)) return;
        const write = rules[i];
        if (!write) throw notDifferentiable(`${entry.operator.name} has no gradient for input ${i}`);
        const dx = write();
        const before = gradient.get(input.name);
        gradient.set(input.name, before ? this.apply(add, before, dx) : dx);
      });
    }
    return wrt.map((value) => {
      const found = gradient.get(value.name);
      if (!found) throw notDifferentiable(`the loss does not depend on ${value.name}`);
      return found;
    });
  }
}

const notDifferentiable = (message: string): HybridError =>
  new HybridError('ONNX_FAILED', `gradients: ${message}`, {
    hint: 'This is a defect of hybrid-infer: please report it.',
  });
