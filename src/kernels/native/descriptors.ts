/**
 * The kernel table as numbers, for the addon: eight a argument, `struct Argument` of addon.cc. The order of the
 * names below is that of its enumerations.
 */
import { KERNEL_NAMES, KERNELS, type Argument, type Declaration, type Item, type Pointer } from '../table.js';

const KINDS = ['rowFormat', 'weightFormat', 'kvFormat', 'activation', 'count', 'real', 'pointer'] as const;
const ITEMS: readonly Item[] = [
  ...(['f32', 'u32', 'byte', 'q8a', 'row', 'storedRow', 'vector', 'sums', 'kvRow', 'kvScale'] as const),
];
const MEASURES = ['one', 'value', 'next', 'half', 'pages', 'aligned', 'last', 'reach', 'rows'] as const;

export interface KernelDescriptor {
  name: string;
  /** [arguments][8] */
  arguments: Uint32Array;
}

/** All kernels, in the order of the table. */
export const describeKernels = (): KernelDescriptor[] =>
  KERNEL_NAMES.map((name) => ({ name, arguments: describe(KERNELS[name]) }));

function describe({ args }: Declaration): Uint32Array {
  return Uint32Array.from(args.flatMap(([, type]) => describeArgument(type, args)));
}

function describeArgument(type: Argument[1], args: readonly Argument[]): number[] {
  if (typeof type === 'string') return [KINDS.indexOf(type), 0, 0, 0, 0, 0, 0, 0];
  const { of, size, times, stride, floatStride, optional }: Pointer = type;
  const strideAt = stride ?? floatStride;
  return [
    KINDS.indexOf('pointer') | (optional ? 0x100 : 0),
    ITEMS.indexOf(of),
    ...measure(size, args),
    ...measure(times, args),
    // The argument's number plus one; 0 where items stand side by side.
    strideAt === undefined ? 0 : indexOf(strideAt, args) + 1,
    floatStride === undefined ? 1 : 4,
  ];
}

/** Which measure, of which argument. */
function measure(text: string | undefined, args: readonly Argument[]): [number, number] {
  if (text === undefined) return [MEASURES.indexOf('one'), 0];
  const derived = /^(\w+)\((\w+)\)$/.exec(text);
  const next = /^(\w+) \+ 1$/.exec(text);
  const [how, name] = derived ? [derived[1], derived[2]] : next ? ['next', next[1]] : ['value', text];
  const number = MEASURES.indexOf(how as (typeof MEASURES)[number]);
  if (number < 0) throw new Error(`kernel table: no measure ${how}`);
  return [number, indexOf(name, args)];
}

function indexOf(name: string, args: readonly Argument[]): number {
  const index = args.findIndex((arg) => arg[0] === name);
  if (index < 0) throw new Error(`kernel table: no argument ${name}`);
  return index;
}
