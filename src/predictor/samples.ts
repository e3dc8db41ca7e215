/** Recorded samples of a layer or of one expert, as predictors are fitted to them and measured on them. */

export interface Samples {
  samples: number;
  d: number;
  nFf: number;
  /** FFN inputs after the norm of the rows [begin, end), f32 [end - begin][d]: not to be written to */
  inputs(begin: number, end: number): Float32Array;
  /** Active neurons: bit i % 8 of byte i / 8, [samples][ceil(nFf / 8)] */
  bits: Uint8Array;
  /** |x1| of the active neurons in neuron order; row t's begin at magnitudeAt[t]. */
  magnitudes: Float32Array;
  /** [samples] */
  magnitudeAt: Uint32Array;
}

/** A run of rows [begin, end) of the samples. */
export interface SampleRange {
  begin: number;
  end: number;
}

/**
 * What each part of the samples is for. Figures come from a part that decided nothing: what was chosen
 * because it did best on some text looks better there than it is.
 */
export interface SampleParts {
  /** Weights and cuts are fitted to these. */
  train: SampleRange;
  /** Kind, format, rank, epochs and thresholds are chosen by these. */
  choose: SampleRange;
  /** Only measured. */
  report: SampleRange;
}

/** Calls `visit(neuron, |x1|)` for the active neurons of row t, ascending. */
export function eachActive(
  samples: Pick<Samples, 'bits' | 'magnitudes' | 'nFf' | 'magnitudeAt'>,
  t: number,
  visit: (neuron: number, magnitude: number) => void,
): void {
  const { bits, magnitudes, nFf } = samples;
  const stride = Math.ceil(nFf / 8);
  let m = samples.magnitudeAt[t];
  for (let b = 0; b < stride; b++) {
    for (let byte = bits[t * stride + b]; byte !== 0; byte &= byte - 1) {
      visit(b * 8 + 31 - Math.clz32(byte & -byte), magnitudes[m++]);
    }
  }
}

/** How often each neuron is active in the rows, [nFf]. */
export function activeCounts(samples: Samples, { begin, end }: SampleRange): Uint32Array {
  const counts = new Uint32Array(samples.nFf);
  for (let t = begin; t < end; t++) eachActive(samples, t, (i) => counts[i]++);
  return counts;
}

/** Inputs of at most `count` rows of the range, evenly spread, f32 [rows][d]. */
export function spreadInputs(samples: Samples, { begin, end }: SampleRange, count: number): Float32Array {
  const rows = Math.min(count, end - begin);
  if (rows === end - begin) return samples.inputs(begin, end);
  const out = new Float32Array(rows * samples.d);
  for (let i = 0; i < rows; i++) {
    const t = begin + Math.floor((i * (end - begin)) / rows);
    out.set(samples.inputs(t, t + 1), i * samples.d);
  }
  return out;
}

/** Samples whose inputs are in memory. */
export const samplesInMemory = (
  samples: Omit<Samples, 'inputs'> & { values: Float32Array },
): Samples & { values: Float32Array } => ({
  ...samples,
  inputs: (begin, end) => samples.values.subarray(begin * samples.d, end * samples.d),
});
