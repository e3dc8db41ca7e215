/**
 * Matrix products for fitting, run by onnxruntime. Matrices are row-major f32. Every product first asks
 * whether the work should end: nothing between two products takes long.
 */
import { GraphBuilder, int } from '../onnx/graph-builder.js';
import { f32Tensor, OnnxSession, type TensorValue } from '../onnx/session.js';

export interface Matrices {
  /** a [n, k] times b [m, k] transposed -> [n, m] */
  timesTransposed(a: Float32Array, b: Float32Array, k: number): Promise<Float32Array>;
  /** a [n, k] transposed times b [n, m] -> [k, m] */
  transposedTimes(a: Float32Array, b: Float32Array, n: number): Promise<Float32Array>;
  /** a [n, k] times b [k, m] -> [n, m] */
  times(a: Float32Array, b: Float32Array, k: number): Promise<Float32Array>;
  release(): Promise<void>;
}

export interface MatricesOptions {
  /** onnxruntime's provider for the products. @default 'cpu' */
  provider?: string;
  /**
   * Threads of the CPU provider, at most MOST_THREADS.
   * @default 1: fits run in parallel, one per layer
   */
  threads?: number;
  /** Called before every product; throws to end the work. */
  check?: () => void;
}

/**
 * onnxruntime splits a product's columns among threads, and below 64 columns a thread it sums in another
 * order. With this many threads the products here stay above that: any number gives the same bits.
 */
export const MOST_THREADS = 4;

export async function createMatrices(options: MatricesOptions = {}): Promise<Matrices> {
  const { provider = 'cpu', check } = options;
  const threads = Math.min(MOST_THREADS, options.threads ?? 1);
  const product = async (transA: number, transB: number): Promise<OnnxSession> => {
    const g = new GraphBuilder('product');
    const a = g.input('a', 'float32', ['ar', 'ac']);
    const b = g.input('b', 'float32', ['br', 'bc']);
    g.op('Gemm', [a, b], { transA: int(transA), transB: int(transB) }, 'y');
    g.output('y', 'float32', ['yr', 'yc']);
    return OnnxSession.create(g.build(), { provider, threads });
  };
  const [nt, tn, nn] = [await product(0, 1), await product(1, 0), await product(0, 0)];
  const run = async (session: OnnxSession, a: TensorValue, b: TensorValue): Promise<Float32Array> => {
    check?.();
    return (await session.run({ a, b })).y.data as Float32Array;
  };
  return {
    timesTransposed: (a, b, k) => run(nt, f32Tensor(a, [a.length / k, k]), f32Tensor(b, [b.length / k, k])),
    transposedTimes: (a, b, n) => run(tn, f32Tensor(a, [n, a.length / n]), f32Tensor(b, [n, b.length / n])),
    times: (a, b, k) => run(nn, f32Tensor(a, [a.length / k, k]), f32Tensor(b, [k, b.length / k])),
    async release() {
      for (const session of [nt, tn, nn]) await session.release();
    },
  };
}

/**
 * X^T X, summed over blocks of rows. Symmetric, so only panels on and below the diagonal are multiplied:
 * 5/8 of the work with four panels.
 */
export class GramSum {
  private readonly width: number;
  /** Lower panels (p, q <= p), f32 [width p, width q]. */
  private readonly sums: Float32Array[] = [];

  constructor(
    private readonly d: number,
    private readonly matrices: Matrices,
  ) {
    this.width = d > PANEL ? Math.ceil(d / Math.ceil(d / PANEL)) : d;
    for (let p = 0; p < d; p += this.width) {
      for (let q = 0; q <= p; q += this.width) this.sums.push(new Float32Array(this.size(p) * this.size(q)));
    }
  }

  private size = (from: number): number => Math.min(this.width, this.d - from);

  /** @param x f32 [rows, d]; few thousand rows at a time, since longer f32 sums would lose digits */
  async add(x: Float32Array): Promise<void> {
    const { d, width } = this;
    const rows = x.length / d;
    const panels: Float32Array[] = [];
    for (let p = 0; p < d; p += width) panels.push(columnsOf(x, rows, d, p, this.size(p)));
    let at = 0;
    for (let p = 0; p < panels.length; p++) {
      for (let q = 0; q <= p; q++) {
        const product = await this.matrices.transposedTimes(panels[p], panels[q], rows);
        const sum = this.sums[at++];
        for (let i = 0; i < sum.length; i++) sum[i] += product[i];
      }
    }
  }

  /** The sum, f32 [d, d], times `scale`. */
  square(scale = 1): Float32Array {
    const { d, width } = this;
    const out = new Float32Array(d * d);
    let at = 0;
    for (let p = 0; p < d; p += width) {
      for (let q = 0; q <= p; q += width) {
        const sum = this.sums[at++];
        const cols = this.size(q);
        for (let i = 0; i < this.size(p); i++) {
          for (let j = 0; j < cols && q + j <= p + i; j++) {
            const value = sum[i * cols + j] * scale;
            out[(p + i) * d + q + j] = value;
            out[(q + j) * d + p + i] = value;
          }
        }
      }
    }
    return out;
  }
}

/** Columns of a panel of X^T X. */
const PANEL = 1024;

/** Columns [begin, begin + count) of a matrix, as one of its own. */
function columnsOf(x: Float32Array, rows: number, d: number, begin: number, count: number): Float32Array {
  if (count === d) return x;
  const out = new Float32Array(rows * count);
  for (let r = 0; r < rows; r++) {
    out.set(x.subarray(r * d + begin, r * d + begin + count), r * count);
  }
  return out;
}
