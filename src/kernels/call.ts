/**
 * Kernels as the compiled backends take them: names of formats become numbers, everything else is a number
 * already. Only a kernel's first argument is ever a name.
 */
import { ACTIVATION_KINDS, KV_FORMATS } from './kernels.js';
import { ROW_FORMATS } from './layout.js';
import { KERNEL_NAMES, KERNELS, type Declaration, type KernelFunctions } from './table.js';

/** A KV format has the number of the row format of its name. */
const NUMBER_OF: Record<string, number> = Object.fromEntries(
  [ROW_FORMATS, KV_FORMATS, ACTIVATION_KINDS].flatMap((names) =>
    names.map((name, number): [string, number] => [name, number]),
  ),
);

/** The longest list of arguments: that of attention. */
export const MAX_ARGUMENTS = 16;

/** Any kernel, with `undefined` behind its last argument. A fixed list costs a third of a rest parameter. */
type AnyKernel = (
  a0: number | string,
  a1: number,
  a2: number,
  a3: number,
  a4: number,
  a5: number,
  a6: number,
  a7: number,
  a8: number,
  a9: number,
  a10: number,
  a11: number,
  a12: number,
  a13: number,
) => number;

/** A function that takes numbers only. */
export type NumberKernel = (...numbers: number[]) => number | undefined;

/** Every kernel of the table, made by `make`. */
function eachKernel(
  make: (name: keyof KernelFunctions, declaration: Declaration) => unknown,
): KernelFunctions {
  return Object.fromEntries(KERNEL_NAMES.map((name) => [name, make(name, KERNELS[name])])) as KernelFunctions;
}

/** Kernels that are functions of numbers: the exports of the wasm module. */
export function kernelsOfNumbers(functions: Record<string, NumberKernel>): KernelFunctions {
  return eachKernel((name, { result, args }) => {
    const run = functions[name] as AnyKernel;
    const named = args[0][1] !== 'count' && typeof args[0][1] === 'string';
    if (!named && result !== 'count') return run;
    const kernel: AnyKernel = (a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13) => {
      const first = typeof a0 === 'string' ? NUMBER_OF[a0] : a0;
      return run(first, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13);
    };
    if (result !== 'count') return kernel;
    // An i32 of WebAssembly, which is a u32 here.
    const counting: AnyKernel = (a0, a1, a2, a3, a4, a5, a6, a7) =>
      run(typeof a0 === 'string' ? NUMBER_OF[a0] : a0, a1, a2, a3, a4, a5, a6, a7, 0, 0, 0, 0, 0, 0) >>> 0;
    return counting;
  });
}

/**
 * Kernels without arguments that find them in `p` and leave their result in p[0]: what the native addon has.
 * Writing a dozen numbers is several times faster than passing them through Node-API.
 */
export function kernelsOfParameters(p: Float64Array, functions: Record<string, () => void>): KernelFunctions {
  return eachKernel((name) => {
    const run = functions[name];
    const kernel: AnyKernel = (a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13) => {
      p[0] = typeof a0 === 'string' ? NUMBER_OF[a0] : a0;
      p[1] = a1;
      p[2] = a2;
      p[3] = a3;
      p[4] = a4;
      p[5] = a5;
      p[6] = a6;
      p[7] = a7;
      p[8] = a8;
      p[9] = a9;
      p[10] = a10;
      p[11] = a11;
      p[12] = a12;
      p[13] = a13;
      run();
      return p[0];
    };
    return kernel;
  });
}
