/**
 * The child process of a provider's proof run: `probe-process.js <provider> <deviceId> [measure]`. Sends one
 * ProbeReport or failure over IPC and exits; whatever native code does at exit no longer matters then.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { GraphBuilder } from '../onnx/graph-builder.js';
import { f32Tensor, OnnxSession } from '../onnx/session.js';
import { linearGraph } from './graph.js';
import type { ProbeReport } from './providers.js';
import type { GpuMatrix } from './weights.js';

/** Runs whose median is the crossing cost; the first ones compile shaders and are left out. */
const WARM_RUNS = 3;
const TIMED_RUNS = 15;
/**
 * Bandwidth graphs of 4-bit weights, grown until a run is long beside the crossing, or the last one (80 MB)
 * is well past any cache. The first already takes a software adapter tens of milliseconds.
 */
const BANDWIDTH_COLS = 8_192;
const BANDWIDTH_ROWS = [128, 1_024, 4_096, 16_384];
const LONG_RUN_CROSSINGS = 20;
const BANDWIDTH_RUNS = 5;
/** The proof graph's own width: one block of 32. */
const WIDTH = 32;

async function probe(provider: string, deviceId: number, measure: boolean): Promise<ProbeReport> {
  if (provider === 'webgpu') return (await import('./webgpu/probe.js')).probeWebGpu(measure);
  const options = {
    provider,
    providerOptions: provider === 'cuda' || provider === 'dml' ? { deviceId } : {},
  };
  const folder = mkdtempSync(join(tmpdir(), 'hybrid-probe-'));
  try {
    const began = performance.now();
    // One node: y = relu(x). Placement is read from the profile, so falling back is allowed here.
    const g = new GraphBuilder('proof');
    g.output(g.op('Relu', [g.input('x', 'float32', ['n', WIDTH])], {}, 'y'), 'float32', ['n', WIDTH]);
    const session = await OnnxSession.create(g.build(), {
      ...options,
      profilePrefix: join(folder, 'profile'),
    });
    const createMs = performance.now() - began;
    const x = Float32Array.from({ length: WIDTH }, (_, i) => i - WIDTH / 2);
    const times: number[] = [];
    for (let i = 0; i < WARM_RUNS + TIMED_RUNS; i++) {
      const start = performance.now();
      const { y } = await session.run({ x: f32Tensor(x, [1, WIDTH]) });
      times.push(performance.now() - start);
      if (x.some((v, j) => (y.data as Float32Array)[j] !== Math.max(v, 0))) {
        throw new Error('the proof run gave wrong numbers');
      }
    }
    session.endProfiling();
    const report: ProbeReport = {
      nodes: placements(folder),
      device: null,
      software: false,
      createMs,
      crossingUs: median(times.slice(WARM_RUNS)) * 1000,
      dispatchUs: null,
      half: await runs(halfMatrix(), options),
      packed: await runs(packedMatrix(WIDTH, WIDTH), options),
      bytesPerSecond: null,
    };
    if (measure && report.packed) report.bytesPerSecond = await bandwidth(options, report.crossingUs / 1000);
    return report;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** `op: provider` of every node event in onnxruntime's profile. */
function placements(folder: string): string[] {
  const nodes = new Set<string>();
  for (const file of readdirSync(folder)) {
    const events = JSON.parse(readFileSync(join(folder, file), 'utf8')) as {
      args?: { op_name?: string; provider?: string };
    }[];
    for (const { args } of events) if (args?.provider) nodes.add(`${args.op_name}: ${args.provider}`);
  }
  return [...nodes];
}

type Options = { provider: string; providerOptions: Record<string, unknown> };

/** Does the device itself run this matrix? */
async function runs(matrix: GpuMatrix, options: Options): Promise<boolean> {
  try {
    const { graph } = linearGraph('capability', matrix);
    const session = await OnnxSession.create(graph.build(), { ...options, deviceOnly: true });
    const { y } = await session.run({
      x: f32Tensor(new Float32Array(matrix.inputs).fill(1), [1, matrix.inputs]),
    });
    await session.release();
    return (y.data as Float32Array).every((v) => Math.abs(v - matrix.inputs) < 0.01 * matrix.inputs);
  } catch {
    return false;
  }
}

/** Weight bytes a second, the crossing taken off. */
async function bandwidth(options: Options, crossingMs: number): Promise<number> {
  let bytesPerSecond = 0;
  for (const rows of BANDWIDTH_ROWS) {
    const { graph } = linearGraph('bandwidth', packedMatrix(rows, BANDWIDTH_COLS));
    const bytes = graph.initializerBytes;
    const session = await OnnxSession.create(graph.build(), { ...options, deviceOnly: true });
    const x = f32Tensor(new Float32Array(BANDWIDTH_COLS).fill(1), [1, BANDWIDTH_COLS]);
    const times: number[] = [];
    for (let i = 0; i <= BANDWIDTH_RUNS; i++) {
      const start = performance.now();
      await session.run({ x });
      if (i > 0) times.push(performance.now() - start);
    }
    await session.release();
    const fastest = Math.min(...times);
    bytesPerSecond = bytes / (Math.max(fastest - crossingMs, fastest / 10) / 1000);
    if (fastest > LONG_RUN_CROSSINGS * crossingMs) break;
  }
  return bytesPerSecond;
}

/** All weights 1, so that every output is the number of inputs. */
function packedMatrix(outputs: number, inputs: number): GpuMatrix {
  return {
    kind: 'nbits',
    bits: 4,
    block: 32,
    outputs,
    inputs,
    codes: new Uint8Array((outputs * inputs) / 2).fill(0x99),
    scales: new Float32Array((outputs * inputs) / 32).fill(1),
  };
}

function halfMatrix(): GpuMatrix {
  const data = new Uint16Array(WIDTH * WIDTH).fill(0x3c00);
  return { kind: 'float16', outputs: WIDTH, inputs: WIDTH, rowsAreOutputs: true, data };
}

const median = (values: number[]): number => values.sort((a, b) => a - b)[values.length >> 1];

const [provider, deviceId, measure] = process.argv.slice(2);
const outcome = await probe(provider, Number(deviceId), measure === 'measure').then(
  (report) => ({ report }),
  (error: Error) => ({ failure: error.message }),
);
process.send?.(outcome, () => process.exit(0));
