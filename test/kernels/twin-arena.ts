/**
 * Two arenas with the same content: the kernels under test work on one, the reference on the other, with
 * the same pointers. Every allocation is followed by guard bytes, so a kernel that writes past its output
 * is caught.
 */
import { expect } from 'vitest';
import type { Kernels, Ptr } from '../../src/kernels/kernels.js';
import { alignUp } from '../../src/kernels/layout.js';
import { createReferenceKernels } from '../../src/kernels/reference.js';

const PAGE = 65_536;
const GUARD_BYTES = 64;
const GUARD = 0xa5;

export class TwinArena {
  readonly subject: Kernels;
  readonly reference: Kernels;
  private readonly memories: WebAssembly.Memory[];
  private readonly guards: Ptr[] = [];
  private next: number;

  /** @param base first pointer handed out: tests of far pointers begin above 2 GiB (untouched pages cost nothing) */
  constructor(create: (memory: WebAssembly.Memory) => Kernels, bytes = 1 << 24, base = 64) {
    const pages = Math.ceil((base + bytes) / PAGE);
    const make = (): WebAssembly.Memory =>
      new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    this.memories = [make(), make()];
    this.subject = create(this.memories[0]);
    this.reference = createReferenceKernels(this.memories[1]);
    this.next = base;
  }

  /** A 16-byte aligned block (or 4-byte aligned and no better: `misalign`), zero in both arenas. */
  alloc(bytes: number, misalign = false): Ptr {
    const ptr = alignUp(this.next, 16) + (misalign ? 4 : 0);
    const guard = alignUp(ptr + bytes, 4);
    for (const { buffer } of this.memories) {
      new Uint8Array(buffer, ptr, guard - ptr).fill(0);
      new Uint8Array(buffer, guard, GUARD_BYTES).fill(GUARD);
    }
    this.guards.push(guard);
    this.next = guard + GUARD_BYTES;
    return ptr;
  }

  floats(values: ArrayLike<number>, misalign = false): Ptr {
    const ptr = this.alloc(values.length * 4, misalign);
    for (const { buffer } of this.memories) new Float32Array(buffer, ptr, values.length).set(values);
    return ptr;
  }

  ints(values: ArrayLike<number>): Ptr {
    const ptr = this.alloc(values.length * 4, true);
    for (const { buffer } of this.memories) new Uint32Array(buffer, ptr, values.length).set(values);
    return ptr;
  }

  /** `count` blocks of `bytes`, copied in turn from the `given` ones at `ptr`. */
  repeat(ptr: Ptr, bytes: number, given: number, count: number): Ptr {
    const to = this.alloc(count * bytes);
    for (const { buffer } of this.memories) {
      const u8 = new Uint8Array(buffer);
      for (let i = 0; i < count; i++) {
        const from = ptr + (i % given) * bytes;
        u8.copyWithin(to + i * bytes, from, from + bytes);
      }
    }
    return to;
  }

  /** Gives the kernels under test what the reference wrote: inputs must not depend on the subject. */
  copyToSubject(ptr: Ptr, bytes: number): void {
    new Uint8Array(this.memories[0].buffer, ptr, bytes).set(
      new Uint8Array(this.memories[1].buffer, ptr, bytes),
    );
  }

  /** The reference's bytes themselves, to be written. */
  referenceBytes(ptr: Ptr, bytes: number): Uint8Array {
    return new Uint8Array(this.memories[1].buffer, ptr, bytes);
  }

  /** Runs the same call on both; returns both results. */
  both<T>(call: (kernels: Kernels) => T): [subject: T, reference: T] {
    return [call(this.subject), call(this.reference)];
  }

  /** A copy of the subject's (0) or the reference's (1) floats. */
  read(which: 0 | 1, ptr: Ptr, n: number): Float32Array {
    return new Float32Array(this.memories[which].buffer, ptr, n).slice();
  }

  bytes(which: 0 | 1, ptr: Ptr, n: number): Uint8Array {
    return new Uint8Array(this.memories[which].buffer, ptr, n).slice();
  }

  expectSameBytes(ptr: Ptr, n: number, what: string): void {
    const [a, b] = [this.bytes(0, ptr, n), this.bytes(1, ptr, n)];
    const at = a.findIndex((value, i) => value !== b[i]);
    if (at >= 0) expect.fail(`${what}: byte ${at} of ${n} is ${a[at]}, the reference has ${b[at]}`);
  }

  expectGuardsIntact(): void {
    for (const guard of this.guards) {
      for (const which of [0, 1] as const) {
        const bytes = this.bytes(which, guard, GUARD_BYTES);
        if (bytes.some((byte) => byte !== GUARD)) {
          expect.fail(`${[this.subject, this.reference][which].name} wrote past a block, at ${guard}`);
        }
      }
    }
  }
}

/** Largest difference seen per kernel, as a share of that kernel's tolerance scale: printed after the suite. */
export class Differences {
  private readonly worst = new Map<string, { difference: number; tolerance: number }>();

  constructor(private readonly smallest = SMALLEST) {}

  /**
   * |subject - reference| <= tolerance * scale for every element; the same infinity, or NaN on both sides,
   * is equal. `scale` is what rounding errors are proportional to, such as the sum of |w x| of a dot product.
   */
  check(
    kernel: string,
    subject: Float32Array,
    reference: Float32Array,
    scale: number | ArrayLike<number>,
    tolerance: number,
  ): void {
    for (let i = 0; i < reference.length; i++) {
      if (Object.is(subject[i], reference[i])) continue;
      const unit = (typeof scale === 'number' ? scale : scale[i]) + this.smallest;
      const difference = Math.abs(subject[i] - reference[i]) / unit;
      if (!(difference <= tolerance)) {
        expect.fail(
          `${kernel}: element ${i} is ${subject[i]}, the reference has ${reference[i]}: ` +
            `a difference of ${difference.toExponential(2)}, tolerance ${tolerance}`,
        );
      }
      const worst = this.worst.get(kernel);
      if (worst === undefined || difference > worst.difference)
        this.worst.set(kernel, { difference, tolerance });
    }
  }

  report(name: string): string {
    const lines = [...this.worst].map(
      ([kernel, { difference, tolerance }]) =>
        `  ${kernel.padEnd(22)} ${difference.toExponential(2).padStart(9)}  (tolerance ${tolerance.toExponential(0)})`,
    );
    return [`${name}: largest difference from the reference`, ...lines].join('\n');
  }
}

/** Added to every scale: differences between denormal results are no errors. */
const SMALLEST = 1e-36;
/** The same where denormal products are zero too, some hundreds in a sum: WGSL leaves that to the device. */
export const SMALLEST_OF_FLUSHED = 2e-30;
