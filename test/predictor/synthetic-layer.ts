/** A made-up layer: correlated inputs, a gate with a threshold, and what a recorder would have written. */
import { samplesInMemory, type Samples } from '../../src/predictor/samples.js';
import { random } from '../helpers/tiny-models.js';

export interface SyntheticLayer {
  samples: Samples & { values: Float32Array };
  gateRows: Float32Array; // [nFf, d]
  norms: Float32Array; // [nFf]
  threshold: number;
  /** gates[t * nFf + i] */
  gates: Float64Array;
}

/** Inputs vary in `directions` directions much more than in the others. Neuron 0 never fires, neuron 1 always. */
export function syntheticLayer(count: number, d = 64, nFf = 96, directions = 12, seed = 1): SyntheticLayer {
  const uniform = random(seed);
  const normal = (): number => {
    let sum = -6;
    for (let i = 0; i < 12; i++) sum += uniform();
    return sum;
  };
  const table = (rows: number, cols: number): Float32Array =>
    Float32Array.from({ length: rows * cols }, normal);
  const mixing = table(directions, d);
  const gateRows = table(nFf, d).map((v) => v / Math.sqrt(d));
  const norms = Float32Array.from({ length: nFf }, () => 0.5 + uniform());
  const inputs = new Float32Array(count * d);
  for (let t = 0; t < count; t++) {
    const z = Array.from({ length: directions }, normal);
    for (let c = 0; c < d; c++) {
      let sum = 0.2 * normal();
      for (let k = 0; k < directions; k++) sum += (z[k] * mixing[k * d + c]) / Math.sqrt(directions);
      inputs[t * d + c] = sum;
    }
  }
  const threshold = 1.2;
  // A constant input lets one neuron be on always and another never.
  for (let t = 0; t < count; t++) inputs[t * d] = 1;
  for (let c = 0; c < d; c++) [gateRows[c], gateRows[d + c]] = [gateRows[c] * 0.01, gateRows[d + c] * 0.01];
  gateRows[0] = -5;
  gateRows[d] = 5;

  const bytes = Math.ceil(nFf / 8);
  const bits = new Uint8Array(count * bytes);
  const magnitudeAt = new Uint32Array(count + 1);
  const magnitudes: number[] = [];
  const gates = new Float64Array(count * nFf);
  for (let t = 0; t < count; t++) {
    for (let i = 0; i < nFf; i++) {
      let gate = 0;
      for (let c = 0; c < d; c++) gate += gateRows[i * d + c] * inputs[t * d + c];
      gates[t * nFf + i] = gate;
      if (gate <= threshold) continue;
      bits[t * bytes + (i >> 3)] |= 1 << (i & 7);
      magnitudes.push(gate * (0.2 + uniform()));
    }
    magnitudeAt[t + 1] = magnitudes.length;
  }
  const samples = samplesInMemory({
    samples: count,
    d,
    nFf,
    values: inputs,
    bits,
    magnitudes: Float32Array.from(magnitudes),
    magnitudeAt,
  });
  return { samples, gateRows, norms, threshold, gates };
}
