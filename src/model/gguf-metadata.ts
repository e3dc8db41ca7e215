/** GGUF metadata with typed access. */
import { ModelError } from '../errors.js';
import type { GgufValue } from './gguf-file.js';

/** A value of the wrong kind or size is an error that names its key. */
export class GgufMetadata {
  constructor(
    private readonly values: ReadonlyMap<string, GgufValue>,
    private readonly path: string,
  ) {}

  /** A whole number in min..max. */
  integer(key: string, min: number, max: number): number | undefined {
    const value = this.values.get(key);
    if (value === undefined) return undefined;
    const number = typeof value === 'bigint' ? Number(value) : value;
    if (typeof number === 'number' && Number.isInteger(number) && number >= min && number <= max)
      return number;
    throw this.invalid(`${key} is ${describe(value)}, expected a whole number in ${min}..${max}`);
  }

  required(key: string, max: number): number {
    const value = this.integer(key, 1, max);
    if (value === undefined) throw this.invalid(`${key} is missing`);
    return value;
  }

  /** A finite number above 0. */
  positive(key: string): number | undefined {
    const value = this.values.get(key);
    if (value === undefined) return undefined;
    if (typeof value === 'number' && Number.isFinite(value) && value > 0) return value;
    throw this.invalid(`${key} is ${describe(value)}, expected a number above 0`);
  }

  number(key: string): number | undefined {
    const value = this.values.get(key);
    if (value === undefined || (typeof value === 'number' && Number.isFinite(value))) return value;
    throw this.invalid(`${key} is ${describe(value)}, expected a number`);
  }

  text(key: string): string | undefined {
    const value = this.values.get(key);
    if (value === undefined || typeof value === 'string') return value;
    throw this.invalid(`${key} is ${describe(value)}, expected a text`);
  }

  flag(key: string): boolean | undefined {
    const value = this.values.get(key);
    if (value === undefined || typeof value === 'boolean') return value;
    throw this.invalid(`${key} is ${describe(value)}, expected a boolean`);
  }

  texts(key: string): readonly string[] | undefined {
    const value = this.values.get(key);
    if (value === undefined || Array.isArray(value)) return value as readonly string[] | undefined;
    throw this.invalid(`${key} is ${describe(value)}, expected texts`);
  }

  numbers(key: string): Float64Array | undefined {
    const value = this.values.get(key);
    if (value === undefined || value instanceof Float64Array) return value;
    throw this.invalid(`${key} is ${describe(value)}, expected numbers`);
  }

  has(key: string): boolean {
    return this.values.has(key);
  }

  invalid(message: string): ModelError {
    return new ModelError('MODEL_INVALID', `${this.path}: ${message}`);
  }

  unsupported(message: string, hint = ''): ModelError {
    return new ModelError('MODEL_UNSUPPORTED', `${this.path}: ${message}`, { hint });
  }
}

const describe = (value: GgufValue): string =>
  typeof value === 'object' ? `an array of ${value.length}` : JSON.stringify(String(value)).slice(0, 80);
