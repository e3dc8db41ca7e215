/** `allOf`, and limits beside `anyOf`: several schemas as one, where their keywords can be joined. */
import { isObject } from '../io/strict-json.js';
import { resolvePointer, type Schema } from './pointer.js';
import { SchemaError } from './schema-error.js';

type Fields = Record<string, unknown>;

/** References followed on the way; more is a circle. */
const MAX_REFERENCES = 32;

/** Keywords of which the stricter one counts. */
const STRICTER: Readonly<Record<string, (a: number, b: number) => number>> = {
  minimum: Math.max,
  exclusiveMinimum: Math.max,
  maximum: Math.min,
  exclusiveMaximum: Math.min,
  minLength: Math.max,
  maxLength: Math.min,
  minItems: Math.max,
  maxItems: Math.min,
  minProperties: Math.max,
  maxProperties: Math.min,
};
const IGNORED = new Set([
  '$schema',
  '$id',
  '$comment',
  '$anchor',
  '$defs',
  'definitions',
  'title',
  'description',
  'default',
  'examples',
  'example',
  'deprecated',
  'readOnly',
  'writeOnly',
]);

/**
 * A schema with `allOf`, without it.
 * @throws SchemaError naming the keywords that cannot be joined
 */
export function mergeAll(schema: Fields, root: unknown, path: string): Schema {
  const { allOf, ...own } = schema;
  if (!Array.isArray(allOf) || allOf.length === 0)
    throw new SchemaError('allOf must be a list with something in it', path);
  const parts = [...(Object.keys(own).length > 0 ? [own] : []), ...allOf].map((part) =>
    flat(part, root, path, 0),
  );
  if (parts.includes(false)) return false;
  const objects = parts.filter((part): part is Fields => part !== true);
  if (objects.length === 0) return true;
  return objects.reduce((a, b) => merge(a, b, path));
}

/** Without references and allOf at its top. */
function flat(part: unknown, root: unknown, path: string, followed: number): Schema {
  if (typeof part === 'boolean') return part;
  if (!isObject(part)) throw new SchemaError('allOf must list schemas', path);
  if (followed > MAX_REFERENCES) throw new SchemaError('allOf refers to itself', path);
  if (part.$ref !== undefined) {
    if (Object.keys(part).some((key) => key !== '$ref' && !IGNORED.has(key)))
      throw new SchemaError('keywords beside $ref are not supported', path);
    return flat(resolvePointer(root, part.$ref, path), root, path, followed + 1);
  }
  return part.allOf === undefined ? part : mergeAll(part, root, path);
}

function merge(a: Fields, b: Fields, path: string): Fields {
  refuseClosed(a, b, path);
  refuseClosed(b, a, path);
  const out: Fields = { ...a };
  for (const [key, value] of Object.entries(b)) {
    const before = out[key];
    if (before === undefined || IGNORED.has(key)) out[key] = value;
    else if (JSON.stringify(before) === JSON.stringify(value)) continue;
    else if (Object.hasOwn(STRICTER, key) && typeof before === 'number' && typeof value === 'number')
      out[key] = STRICTER[key](before, value);
    else if (key === 'type') out.type = commonTypes(before, value);
    else if (key === 'required')
      out.required = [...new Set([...(before as unknown[]), ...(value as unknown[])])];
    else if (key === 'properties' && isObject(before) && isObject(value))
      out.properties = mergeProperties(before, value);
    else throw new SchemaError(`allOf: two different ${JSON.stringify(key)} are not supported`, path);
  }
  return out;
}

/** `additionalProperties` speaks about the properties of its own schema only. */
function refuseClosed(closed: Fields, other: Fields, path: string): void {
  if (closed.additionalProperties === undefined || closed.additionalProperties === true) return;
  const own = isObject(closed.properties) ? closed.properties : {};
  const foreign = isObject(other.properties)
    ? Object.keys(other.properties).find((name) => !Object.hasOwn(own, name))
    : undefined;
  if (foreign !== undefined)
    throw new SchemaError(
      `allOf: additionalProperties beside a schema with the other property ${JSON.stringify(foreign)} is not supported`,
      path,
    );
}

function mergeProperties(a: Fields, b: Fields): Fields {
  const out: Fields = { ...a };
  for (const [name, schema] of Object.entries(b)) {
    out[name] = Object.hasOwn(a, name) ? { allOf: [a[name], schema] } : schema;
  }
  return out;
}

function commonTypes(a: unknown, b: unknown): unknown[] {
  const [left, right] = [[a].flat(), [b].flat()];
  const has = (list: unknown[], type: unknown): boolean =>
    list.includes(type) || (type === 'integer' && list.includes('number'));
  const common = [
    ...new Set([...left.filter((type) => has(right, type)), ...right.filter((type) => has(left, type))]),
  ];
  if (common.length === 0) throw new SchemaError('allOf: the types exclude each other');
  return common;
}

/** Surely no value satisfies both. False: perhaps one does. */
export function areDisjoint(a: Schema, b: Schema, root: unknown): boolean {
  const [left, right] = [resolved(a, root), resolved(b, root)];
  if (left === false || right === false) return true;
  if (left === true || right === true) return false;
  const [valuesA, valuesB] = [constants(left), constants(right)];
  if (valuesA && valuesB) return !valuesA.some((value) => valuesB.includes(value));
  const [typesA, typesB] = [typeNames(left), typeNames(right)];
  if (typesA && typesB && !typesA.some((type) => typesB.includes(type))) return true;
  return objectsDiffer(left, right, root);
}

/** Both demand a member, and its values exclude each other. */
function objectsDiffer(a: Fields, b: Fields, root: unknown): boolean {
  const [required, also] = [[a.required ?? []].flat(), [b.required ?? []].flat()];
  const [left, right] = [a.properties, b.properties];
  if (!isObject(left) || !isObject(right) || a.type !== 'object' || b.type !== 'object') return false;
  return required.some(
    (name) =>
      typeof name === 'string' &&
      also.includes(name) &&
      Object.hasOwn(left, name) &&
      Object.hasOwn(right, name) &&
      areDisjoint(left[name] as Schema, right[name] as Schema, root),
  );
}

function resolved(schema: Schema, root: unknown): Schema {
  let value: unknown = schema;
  for (let i = 0; i < MAX_REFERENCES && isObject(value) && value.$ref !== undefined; i++)
    value = resolvePointer(root, value.$ref, '#');
  return typeof value === 'boolean' || isObject(value) ? value : true;
}

function constants(schema: Fields): string[] | null {
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  return Array.isArray(schema.enum) ? schema.enum.map((value) => JSON.stringify(value)) : null;
}

/** Whole numbers are numbers here. */
function typeNames(schema: Fields): unknown[] | null {
  const values = constants(schema)?.map((text) => JSON.parse(text) as unknown);
  if (values) return values.map((v) => (v === null ? 'null' : Array.isArray(v) ? 'array' : typeof v));
  if (schema.type === undefined) return null;
  return [schema.type].flat().map((type) => (type === 'integer' ? 'number' : type));
}
