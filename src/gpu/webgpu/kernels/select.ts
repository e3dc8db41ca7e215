/**
 * Select and compact: from a value for each entry of a token to the list of those that go on, ascending, as the
 * CPU's activate and selectAbove make them.
 *
 *     above     values[i] >= cuts[i] (with an activation |sigma(values[i] + bias)|, a plain FFN's contribution);
 *               nothing else is kept (predictor scores)
 *     gate      sigma(values[i]) passes; kept: sigma(values[i])
 *     nonzero   values[i] != 0; kept: values[i]
 *
 * The entries are neurons first, first + 1, ... (`above`: after `always` neurons 0, 1, ... that are chosen whatever
 * they score), or those of an earlier list. One work-group a token: every thread counts in a run of entries, a
 * prefix sum over the threads says where it writes. The order does not depend on how many threads there are.
 */
import type { ActivationKind } from '../../../kernels/kernels.js';
import { createUniform } from '../buffers.js';
import type { GpuDevice } from '../device.js';
import type { BufferPart, KernelBinding, KernelText } from '../kernel.js';
import { floatBits, operation, type Operation } from '../operation.js';
import { activationText, IS_NAN } from './activation.js';

export interface SelectShape {
  test: 'above' | 'gate' | 'nonzero';
  /** `gate`: which; `above`: of what the values are gates. */
  kind?: ActivationKind;
  /** `above` with a kind: gates lack their bias. @default false */
  bias?: boolean;
  /** Floats from one token's values to the next; also of ids where the entries are a list. */
  valueStride: number;
  /** Entries from one token's chosen list to the next: room for all of them. */
  listStride: number;
  /** The entries are a list: counts of its own. @default false */
  listed?: boolean;
}

export function selectText(shape: SelectShape, threads: number): KernelText {
  const { test, kind, bias, listed } = shape;
  const keeps = test !== 'above';
  const bindings: KernelBinding[] = [
    { name: 'values', access: 'read', type: 'array<f32>' },
    // entries, always (or the first neuron's number), bits of the threshold
    { name: 'part', access: 'uniform', type: 'vec4<u32>' },
    ...(test === 'above' ? [{ name: 'cuts', access: 'read', type: 'array<f32>' } as const] : []),
    ...(bias ? [{ name: 'bias', access: 'read', type: 'array<f32>' } as const] : []),
    ...(listed
      ? ([
          { name: 'given_ids', access: 'read', type: 'array<u32>' },
          { name: 'given_counts', access: 'read', type: 'array<u32>' },
        ] as const)
      : []),
    { name: 'ids', access: 'write', type: 'array<u32>' },
    { name: 'counts', access: 'write', type: 'array<u32>' },
    ...(keeps ? [{ name: 'kept', access: 'write', type: 'array<f32>' } as const] : []),
  ];
  const value = {
    above: kind
      ? `abs(sigma(values[begin + i]${bias ? ' + bias[part.y + i]' : ''}, 0.0))`
      : 'values[begin + i]',
    gate: 'sigma(values[begin + i], threshold)',
    nonzero: 'values[begin + i]',
  }[test];
  const chosen = {
    above: 'value >= cuts[i]',
    gate: 'passes(value, threshold)',
    nonzero: 'value != 0.0 || is_nan(value)',
  }[test];
  const id = listed ? 'given_ids[begin + i]' : 'part.y + i';
  return {
    name: `select ${test}${kind ? ` ${kind}` : ''}`,
    constants: { VALUE_STRIDE: shape.valueStride, LIST_STRIDE: shape.listStride, THREADS: threads },
    bindings,
    code: `
${kind ? activationText(kind) : IS_NAN}
var<workgroup> ends: array<u32, THREADS>;
@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let token = group.x;
  let begin = token * VALUE_STRIDE;
  let threshold = bitcast<f32>(part.z);
  let entries = ${listed ? 'given_counts[token]' : 'part.x'};
  let share = (entries + THREADS - 1u) / THREADS;
  let first = min(thread * share, entries);
  let end = min(first + share, entries);
  var count = 0u;
  for (var i = first; i < end; i++) {
    let value = ${value};
    if (${chosen}) { count++; }
  }
  ends[thread] = count;
  for (var step = 1u; step < THREADS; step *= 2u) {
    workgroupBarrier();
    var before = 0u;
    if (thread >= step) { before = ends[thread - step]; }
    workgroupBarrier();
    ends[thread] += before;
  }
  workgroupBarrier();
  let always = ${test === 'above' ? 'part.y' : '0u'};
  if (thread == THREADS - 1u) { counts[token] = always + ends[thread]; }
  ${test === 'above' ? 'for (var i = thread; i < always; i += THREADS) { ids[token * LIST_STRIDE + i] = i; }' : ''}
  var at = token * LIST_STRIDE + always + ends[thread] - count;
  for (var i = first; i < end; i++) {
    let value = ${value};
    if (${chosen}) {
      ids[at] = ${id};
      ${keeps ? 'kept[at] = value;' : ''}
      at++;
    }
  }
}`,
  };
}

export interface SelectBuffers {
  /** f32 [tokens][valueStride] */
  values: BufferPart;
  /** `above`: f32 [entries] */
  cuts?: BufferPart;
  /** f32, by neuron */
  bias?: BufferPart;
  givenIds?: BufferPart;
  givenCounts?: BufferPart;
  /** u32 [tokens][listStride] */
  ids: BufferPart;
  /** u32 [tokens] */
  counts: BufferPart;
  /** f32 [tokens][listStride]; not with `above` */
  kept?: BufferPart;
}

export interface SelectNumbers {
  /** Entries of a token; not of a list. */
  entries: number;
  /** `above`: neurons chosen always; else the number of the first entry's neuron. @default 0 */
  first?: number;
  threshold?: number;
}

/** Threads of a token: more would have nothing to do in the FFNs of small models. */
const THREADS = 256;

export async function select(
  gpu: GpuDevice,
  shape: Omit<SelectShape, 'bias'>,
  { entries, first = 0, threshold = 0 }: SelectNumbers,
  buffers: SelectBuffers,
): Promise<Operation> {
  const threads = Math.min(THREADS, gpu.facts.maxWorkgroupInvocations);
  const kernel = await gpu.kernel(selectText({ ...shape, bias: buffers.bias !== undefined }, threads));
  const part = await createUniform(gpu, kernel.name, [entries, first, floatBits(threshold), 0]);
  const { values, cuts, bias, givenIds, givenCounts, ids, counts, kept } = buffers;
  const optional = [cuts, bias, givenIds, givenCounts].filter((buffer) => buffer !== undefined);
  const bindings = kernel.bind(values, part, ...optional, ids, counts, ...(kept ? [kept] : []));
  return operation(kernel.name, (tokens) => [{ kernel, bindings, workgroups: [tokens] }]);
}
