/** Places inside a schema. */
import { isObject } from '../io/strict-json.js';
import { SchemaError } from './schema-error.js';

export type Schema = boolean | Record<string, unknown>;

/** `#`, `#/$defs/x`. @throws SchemaError for other documents and for what is not there */
export function resolvePointer(root: unknown, ref: unknown, path: string): unknown {
  if (typeof ref !== 'string' || !/^#(\/|$)/.test(ref))
    throw new SchemaError(
      `$ref ${JSON.stringify(ref)?.slice(0, 60)} is not supported, only #/... within the schema`,
      path,
    );
  let value: unknown = root;
  for (const part of ref.split('/').slice(1)) {
    let name: string;
    try {
      name = decodeURIComponent(part).replaceAll('~1', '/').replaceAll('~0', '~');
    } catch {
      throw new SchemaError(`$ref ${JSON.stringify(ref.slice(0, 60))} is no pointer`, path);
    }
    const inside: boolean = (isObject(value) || Array.isArray(value)) && Object.hasOwn(value, name);
    if (!inside) throw new SchemaError(`$ref ${JSON.stringify(ref.slice(0, 60))} points to nothing`, path);
    value = (value as Record<string, unknown>)[name];
  }
  return value;
}
