/**
 * Arenas: shared WebAssembly memories of at most 4 GiB that hold weights, KV cache and activations. Both
 * kernel backends work on them. Allocation is planned first (ArenaPlan), then made in one piece.
 */
import { HybridError } from '../errors.js';
import { alignUp } from '../kernels/layout.js';

const PAGE_BYTES = 65_536;
const MAX_PAGES = 65_536;
/** One page less than the 32-bit address space, so that the end of every range is still a 32-bit number. */
export const MAX_ARENA_BYTES = (MAX_PAGES - 1) * PAGE_BYTES;
/** Cache-line alignment of every allocation; byte 0 stays unused so that 0 can mean "none". */
const ALIGNMENT = 64;

/** Hands out byte ranges of one future arena. */
export class ArenaPlan {
  private used = ALIGNMENT;

  constructor(private readonly limit = MAX_ARENA_BYTES) {}

  get bytes(): number {
    return this.used;
  }

  /** Would `bytes` more fit? */
  fits(bytes: number): boolean {
    return this.used + alignUp(bytes, ALIGNMENT) <= this.limit;
  }

  /** @returns the byte offset of a new range, a multiple of 64 */
  take(bytes: number): number {
    if (!this.fits(bytes)) {
      throw new HybridError(
        'OUT_OF_MEMORY',
        `one part of the model needs ${bytes} bytes more than an arena of ${this.limit} bytes has`,
        {
          hint: 'Use a smaller --context or a smaller quantisation.',
        },
      );
    }
    const at = this.used;
    this.used += alignUp(bytes, ALIGNMENT);
    return at;
  }
}

/** @throws HybridError OUT_OF_MEMORY when the system refuses the reservation */
export function createArena(bytes: number): WebAssembly.Memory {
  const pages = Math.max(1, Math.ceil(bytes / PAGE_BYTES));
  try {
    return new WebAssembly.Memory({ initial: pages, maximum: MAX_PAGES, shared: true });
  } catch (cause) {
    throw new HybridError(
      'OUT_OF_MEMORY',
      `the system refused an arena of ${Math.ceil(bytes / 2 ** 20)} MiB`,
      {
        hint: 'Close other programs, or use a smaller model, quantisation or --context.',
        cause,
      },
    );
  }
}
