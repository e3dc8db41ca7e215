/** The settings of ProSparse's table: what each of them trains with. */
import type { Activation } from './model-graph.js';
import { stagesFor, type Stage } from './schedule.js';

export const SETTINGS = [
  'original',
  'vanilla',
  'shifted',
  'fixed',
  'prosparse-unshifted',
  'prosparse',
] as const;
export type SettingName = (typeof SETTINGS)[number];

export const SETTING_TITLES: Readonly<Record<SettingName, string>> = {
  original: 'original, trained on',
  vanilla: 'vanilla ReLU',
  shifted: 'shifted ReLU',
  fixed: 'fixed L1',
  'prosparse-unshifted': 'ProSparse without shift',
  prosparse: 'ProSparse',
};

export interface Setting {
  name: SettingName;
  activation: Activation;
  /** Empty: no L1. */
  stages: readonly Stage[];
  /** Choose a threshold on held-out text after training. */
  shift: boolean;
  /** Lambda follows this sparsity instead of the stages. */
  targetSparsity: number | null;
}

export interface SettingOptions {
  steps: number;
  stages: readonly Stage[] | null;
  /** Lambda of fixed L1. */
  fixedLambda: number;
  /** b of max(g - b, 0). */
  shiftBy: number;
  targetSparsity: number | null;
}

/** Lambda at the end of the stages and of fixed L1, on the demo model. */
export const FIXED_LAMBDA = 2e-2;
export const SHIFT_BY = 0.1;

export function settingFor(name: SettingName, options: SettingOptions): Setting {
  const { steps } = options;
  const progressive = options.stages ?? stagesFor(steps);
  const relu: Activation = { kind: 'relu' };
  const base: Setting = { name, activation: relu, stages: [], shift: false, targetSparsity: null };
  switch (name) {
    case 'original':
      return { ...base, activation: { kind: 'silu' } };
    case 'vanilla':
      return base;
    case 'shifted':
      return { ...base, activation: { kind: 'shifted', by: options.shiftBy } };
    case 'fixed':
      return { ...base, stages: [{ lambda: options.fixedLambda, end: steps }] };
    case 'prosparse-unshifted':
      return { ...base, stages: progressive, targetSparsity: options.targetSparsity };
    case 'prosparse':
      return { ...base, stages: progressive, targetSparsity: options.targetSparsity, shift: true };
  }
}

/** Whether L1 is part of the loss at any step. */
export const usesL1 = ({ stages, targetSparsity }: Setting): boolean =>
  targetSparsity !== null || stages.some(({ lambda }) => lambda > 0);
