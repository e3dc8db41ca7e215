/**
 * The kernel table as the C++ header declarations.h, so that the addon's checks are compiled and not looked up.
 * The header is in the repository, because an install builds the addon before there is any compiled TypeScript;
 * `npm run build` writes it again (tools/declare-kernels.mjs), and a test compares.
 */
import { createHash } from 'node:crypto';
import { KERNEL_NAMES, KERNELS, type Argument, type Declaration } from '../table.js';

const KINDS = ['rowFormat', 'weightFormat', 'kvFormat', 'activation', 'count', 'real', 'pointer'] as const;
const ITEMS = 'f32 u32 byte q8a row storedRow vector sums kvRow kvScale'.split(' ');
const MEASURES = ['one', 'value', 'next', 'half', 'pages', 'aligned', 'last', 'reach', 'rows'] as const;

/** The text of declarations.h. */
export function declarationsHeader(): string {
  return `// What ../table.ts declares. Written by tools/declare-kernels.mjs: change the table, then run \`npm run build\`.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hybrid_infer {

enum class Kind { ${KINDS.join(', ')} };
enum class Item { ${ITEMS.join(', ')} };
enum class Measure { ${MEASURES.join(', ')} };

struct Argument {
  Kind kind;
  // The rest is about pointers.
  bool optional;  // offset 0 stands for "none"
  Item item;
  Measure size;
  size_t sizeOf;  // the argument that is measured
  Measure times;
  size_t timesOf;
  size_t stride;       // 1 + the argument that holds it; 0: items stand side by side
  size_t strideBytes;  // of one unit of that argument
};

namespace declared {

constexpr size_t kKernels = ${KERNEL_NAMES.length};
constexpr char kDigest[] = "${declarationsDigest()}";

${structs()}
}  // namespace declared
}  // namespace hybrid_infer
`;
}

/** Names what the header declares: an addon that has another one is not used. */
export function declarationsDigest(): string {
  return createHash('sha256').update(structs()).digest('hex');
}

const structs = (): string => KERNEL_NAMES.map((name) => struct(name, KERNELS[name])).join('\n');

function struct(name: string, { args }: Declaration): string {
  const lines = args.map(([argument, type]) => `      {${fields(type, args).join(', ')}},  // ${argument}\n`);
  return `struct ${name} {
  static constexpr char name[] = "${name}";
  static constexpr Argument arguments[] = {
${lines.join('')}  };
};
`;
}

/** The fields of `struct Argument`. */
function fields(type: Argument[1], args: readonly Argument[]): (string | number | boolean)[] {
  if (typeof type === 'string') return [`Kind::${type}`, ...fields({ of: 'byte' }, args).slice(1)];
  const { of, size, times, stride, floatStride, optional = false } = type;
  const strideName = stride ?? floatStride;
  return [
    'Kind::pointer',
    optional,
    `Item::${of}`,
    ...measure(size, args),
    ...measure(times, args),
    strideName === undefined ? 0 : indexOf(strideName, args) + 1,
    floatStride === undefined ? 1 : 4,
  ];
}

/** Which measure, of which argument. */
function measure(text: string | undefined, args: readonly Argument[]): [string, number] {
  if (text === undefined) return ['Measure::one', 0];
  const derived = /^(\w+)\((\w+)\)$/.exec(text);
  const next = /^(\w+) \+ 1$/.exec(text);
  const [how, name] = derived ? [derived[1], derived[2]] : next ? ['next', next[1]] : ['value', text];
  if (!(MEASURES as readonly string[]).includes(how)) throw new Error(`kernel table: no measure ${how}`);
  return [`Measure::${how}`, indexOf(name, args)];
}

function indexOf(name: string, args: readonly Argument[]): number {
  const index = args.findIndex((arg) => arg[0] === name);
  if (index < 0) throw new Error(`kernel table: no argument ${name}`);
  return index;
}
