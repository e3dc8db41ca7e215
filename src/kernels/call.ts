/**
 * Kernels as the compiled backends take them: names of formats become numbers, everything else is a number
 * already. Only a kernel's first argument is ever a name.
 *
 * Every kernel gets a function of its own, written from its declaration: in one body for all, which V8 compiles
 * once, each call would write the longest list of arguments and look up whom to call. In the demo model, whose
 * kernels take less than a microsecond, that is a tenth of a token's time.
 */
import { ACTIVATION_KINDS, KV_FORMATS } from './kernels.js';
import { ROW_FORMATS } from './layout.js';
import { KERNEL_NAMES, KERNELS, type Argument, type Declaration, type KernelFunctions } from './table.js';

/** Names in the order of their numbers. A KV format has the number of the row format of its name. */
const NAMES: Partial<Record<string, readonly string[]>> = {
  rowFormat: ROW_FORMATS,
  weightFormat: ROW_FORMATS,
  kvFormat: KV_FORMATS,
  activation: ACTIVATION_KINDS,
};

/** The longest list of arguments that the native addon reads: addon.cc says the same. */
export const MAX_ARGUMENTS = 16;

/** A function that takes numbers only. */
export type NumberKernel = (...numbers: number[]) => number | undefined;

/** Kernels that are functions of numbers: the exports of the wasm module. */
export function kernelsOfNumbers(functions: Record<string, NumberKernel>): KernelFunctions {
  return eachKernel(({ result, args }) => {
    const call = `run(${args.map(asNumber).join(', ')})`;
    // An i32 of WebAssembly, which is a u32 here.
    return `return ${call}${result === 'count' ? ' >>> 0' : ''};`;
  }, functions);
}

/**
 * Kernels without arguments that find them in `p` and leave their result in p[0]: what the native addon has.
 * Writing a dozen numbers is several times faster than passing them through Node-API.
 */
export function kernelsOfParameters(p: Float64Array, functions: Record<string, () => void>): KernelFunctions {
  return eachKernel(
    ({ result, args }) => {
      const writes = args.map((arg, i) => `p[${i}] = ${asNumber(arg)};`).join(' ');
      return `${writes} run();${result === 'nothing' ? '' : ' return p[0];'}`;
    },
    functions,
    p,
  );
}

/** Every kernel of the table, with the body that `body` writes: it may use `run` (that kernel's own) and `p`. */
function eachKernel(
  body: (declaration: Declaration) => string,
  functions: Record<string, unknown>,
  p?: Float64Array,
): KernelFunctions {
  const kernels = KERNEL_NAMES.map((name) => {
    const parameters = KERNELS[name].args.map(([argument]) => argument).join(', ');
    const make = new Function(
      'run',
      'p',
      `return function ${name}(${parameters}) { ${body(KERNELS[name])} };`,
    ) as (run: unknown, p?: Float64Array) => unknown;
    return [name, make(functions[name], p)];
  });
  return Object.fromEntries(kernels) as KernelFunctions;
}

/** The expression for an argument's number; that of an unknown name is NaN, which every kernel's checks refuse. */
function asNumber([argument, type]: Argument): string {
  const names = typeof type === 'string' ? NAMES[type] : undefined;
  if (!names) return argument;
  return `${names.map((name, number) => `${argument} === '${name}' ? ${number} : `).join('')}NaN`;
}
