/**
 * JSON schemas to grammars. What comes out satisfies the schema: a keyword is enforced, or it is refused by
 * name. Where a schema allows more than is worth writing (members nobody named, numbers of 40 digits, any
 * amount of white space), less is written: that satisfies it too.
 */
import { isObject } from '../io/strict-json.js';
import { FORMATS } from './formats.js';
import { NodeFactory, prune, type Member, type Node, type NodeOf } from './grammar.js';
import { literal, oneOf, whitespace } from './machine.js';
import { areDisjoint, mergeAll } from './merge.js';
import { FREE_NUMBER, numberMachine } from './number.js';
import { resolvePointer, type Schema } from './pointer.js';
import { compilePattern } from './regex.js';
import { SchemaError } from './schema-error.js';
import { stringMachine, type StringRules } from './string.js';

const TYPES = ['object', 'array', 'string', 'number', 'integer', 'boolean', 'null'] as const;
type Type = (typeof TYPES)[number];

/** Say something about a value without limiting it. */
const ANNOTATIONS = new Set([
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
  'contentMediaType',
  'contentEncoding',
]);
/** Which type a keyword speaks about; others are of any type. */
const OF_TYPE: Readonly<Record<string, readonly Type[]>> = {
  properties: ['object'],
  required: ['object'],
  additionalProperties: ['object'],
  unevaluatedProperties: ['object'],
  minProperties: ['object'],
  maxProperties: ['object'],
  items: ['array'],
  prefixItems: ['array'],
  minItems: ['array'],
  maxItems: ['array'],
  uniqueItems: ['array'],
  minLength: ['string'],
  maxLength: ['string'],
  pattern: ['string'],
  format: ['string'],
  minimum: ['number', 'integer'],
  maximum: ['number', 'integer'],
  exclusiveMinimum: ['number', 'integer'],
  exclusiveMaximum: ['number', 'integer'],
  multipleOf: ['number', 'integer'],
};
const GENERAL = new Set(['type', 'enum', 'const', 'anyOf', 'oneOf', 'allOf', '$ref', 'nullable']);

const MAX_NODES = 50_000;
const MAX_DEPTH = 64;
const MAX_ENUM = 5_000;
const MAX_ALTERNATIVES = 500;
const MAX_MEMBERS = 500;

/** @throws SchemaError with a path, saying what is not supported, wrong or unsatisfiable */
export function compileSchema(schema: unknown): Node {
  const make = new NodeFactory();
  return finished(new SchemaCompiler(schema, make).compile(schema, '#'));
}

/** Any JSON object. */
export function anyObject(): Node {
  return compileSchema({ type: 'object' });
}

/** @throws SchemaError when nothing finite satisfies it */
export function finished(root: Node): Node {
  if (!prune(root)) throw new SchemaError('no finite value satisfies the schema', '#');
  return root;
}

export class SchemaCompiler {
  private readonly references = new Map<string, NodeOf<'ref'>>();
  private readonly space: Node;
  private readonly colon: Node;
  private readonly comma: Node;
  private anyNode: NodeOf<'ref'> | null = null;
  private depth = 0;

  /** @param root what `$ref` points into */
  constructor(
    private readonly root: unknown,
    private readonly make: NodeFactory,
  ) {
    this.space = make.lexeme(whitespace);
    this.colon = this.text(':');
    this.comma = this.text(',');
  }

  compile(value: unknown, path: string): Node {
    if (++this.depth > MAX_DEPTH) throw new SchemaError(`nested deeper than ${MAX_DEPTH}`, path);
    if (this.make.count > MAX_NODES) throw new SchemaError('the schema is too large', path);
    try {
      if (value === true) return this.any();
      if (value === false) return this.make.choice([]);
      if (!isObject(value))
        throw new SchemaError(`expected a schema, found ${JSON.stringify(value)?.slice(0, 60)}`, path);
      this.refuseUnknown(value, path);
      return this.compileObject(value, path);
    } catch (error) {
      if (error instanceof SchemaError && error.path === '') throw new SchemaError(error.message, path);
      throw error;
    } finally {
      this.depth--;
    }
  }

  private refuseUnknown(schema: Record<string, unknown>, path: string): void {
    for (const keyword of Object.keys(schema)) {
      if (ANNOTATIONS.has(keyword) || GENERAL.has(keyword) || Object.hasOwn(OF_TYPE, keyword)) continue;
      throw new SchemaError(`the keyword ${JSON.stringify(keyword.slice(0, 60))} is not supported`, path);
    }
  }

  private compileObject(schema: Record<string, unknown>, path: string): Node {
    const { nullable, ...rest } = schema;
    if (nullable === true) return this.make.choice([this.text('null'), this.compile(rest, path)]);
    const { $ref } = schema;
    if ($ref !== undefined) return this.reference(schema, $ref, path);
    if (schema.allOf !== undefined) return this.compile(mergeAll(schema, this.root, path), path);
    if (schema.enum !== undefined || schema.const !== undefined) return this.constants(schema, path);
    if (schema.anyOf !== undefined || schema.oneOf !== undefined) return this.alternatives(schema, path);
    const types = this.typesOf(schema, path);
    return this.make.choice(types.map((type) => this.ofType(type, schema, path)));
  }

  // ---- references, constants, alternatives -----------------------------------------------------------

  private reference(schema: Record<string, unknown>, ref: unknown, path: string): Node {
    const beside = Object.keys(schema).find((key) => key !== '$ref' && !ANNOTATIONS.has(key));
    if (beside) throw new SchemaError(`${JSON.stringify(beside)} beside $ref is not supported`, path);
    const target = resolvePointer(this.root, ref, path);
    const key = ref as string;
    let node = this.references.get(key);
    if (!node) {
      node = this.make.ref();
      this.references.set(key, node);
      node.target = this.compile(target, key);
    }
    return node;
  }

  private constants(schema: Record<string, unknown>, path: string): Node {
    const other = Object.keys(schema).find(
      (k) => !ANNOTATIONS.has(k) && !['enum', 'const', 'type'].includes(k),
    );
    if (other) throw new SchemaError(`${JSON.stringify(other)} beside enum or const is not supported`, path);
    let values: unknown[] = schema.const !== undefined ? [schema.const] : asList(schema.enum, 'enum', path);
    if (schema.const !== undefined && schema.enum !== undefined) {
      const listed = asList(schema.enum, 'enum', path).map((v) => JSON.stringify(v));
      values = values.filter((v) => listed.includes(JSON.stringify(v)));
    }
    if (values.length > MAX_ENUM)
      throw new SchemaError(`an enum of ${values.length} values, at most ${MAX_ENUM}`, path);
    if (schema.type !== undefined) {
      const types = this.typesOf(schema, path);
      values = values.filter((value) => types.some((type) => hasType(value, type)));
    }
    return values.length === 0
      ? this.make.choice([])
      : this.make.lexeme(oneOf(values.map((v) => JSON.stringify(v))));
  }

  private alternatives(schema: Record<string, unknown>, path: string): Node {
    const keyword = schema.anyOf !== undefined ? 'anyOf' : 'oneOf';
    if (schema.anyOf !== undefined && schema.oneOf !== undefined)
      throw new SchemaError('anyOf beside oneOf is not supported', path);
    const list = asList(schema[keyword], keyword, path) as Schema[];
    if (list.length > MAX_ALTERNATIVES)
      throw new SchemaError(`${list.length} alternatives, at most ${MAX_ALTERNATIVES}`, path);
    const { [keyword]: _, ...outer } = schema;
    const limits = Object.keys(outer).some((key) => !ANNOTATIONS.has(key));
    const own = (item: Schema, i: number): Schema =>
      limits ? mergeAll({ allOf: [outer, item] }, this.root, `${path}/${keyword}/${i}`) : item;
    const items = list.map(own);
    if (keyword === 'oneOf') this.refuseOverlap(items, path);
    return this.make.choice(items.map((item, i) => this.compile(item, `${path}/${keyword}/${i}`)));
  }

  /** One of several, and no other: only where no value can satisfy two. */
  private refuseOverlap(items: readonly Schema[], path: string): void {
    for (let a = 0; a < items.length; a++) {
      for (let b = a + 1; b < items.length; b++) {
        if (areDisjoint(items[a], items[b], this.root)) continue;
        throw new SchemaError(
          `oneOf: alternatives ${a} and ${b} may both match; anyOf, or a member with different constants, is supported`,
          path,
        );
      }
    }
  }

  private typesOf(schema: Record<string, unknown>, path: string): Type[] {
    const { type } = schema;
    if (type === undefined) {
      // Keywords of one type say nothing about the others: those of that type satisfy all of it.
      const implied = new Set(
        Object.keys(schema).flatMap((key) => (Object.hasOwn(OF_TYPE, key) ? OF_TYPE[key][0] : [])),
      );
      return implied.size > 0 ? [...implied] : [...TYPES].filter((t) => t !== 'integer');
    }
    const list = Array.isArray(type) ? type : [type];
    const wrong = list.find((t) => !TYPES.includes(t as Type));
    if (wrong !== undefined || list.length === 0)
      throw new SchemaError(`the type ${JSON.stringify(wrong ?? list).slice(0, 60)} is none`, path);
    return [...new Set(list as Type[])];
  }

  // ---- types -----------------------------------------------------------------------------------------

  private ofType(type: Type, schema: Record<string, unknown>, path: string): Node {
    switch (type) {
      case 'null':
        return this.text('null');
      case 'boolean':
        return this.make.lexeme(oneOf(['true', 'false']));
      case 'number':
      case 'integer':
        return this.number(type, schema, path);
      case 'string':
        return this.make.lexeme(stringMachine(stringRules(schema, path)));
      case 'array':
        return this.array(schema, path);
      case 'object':
        return this.object(schema, path);
    }
  }

  private number(type: Type, schema: Record<string, unknown>, path: string): Node {
    const bound = (key: string): number | undefined => {
      const value = schema[key];
      if (value === undefined || (typeof value === 'number' && Math.abs(value) <= Number.MAX_SAFE_INTEGER))
        return value;
      throw new SchemaError(
        `${key} is ${JSON.stringify(value)?.slice(0, 60)}, expected a number up to 2^53`,
        path,
      );
    };
    const [min, above] = [bound('minimum'), bound('exclusiveMinimum')];
    const [max, below] = [bound('maximum'), bound('exclusiveMaximum')];
    const multipleOf = bound('multipleOf') ?? 0;
    if (multipleOf !== 0 && !(Number.isInteger(multipleOf) && multipleOf > 0))
      throw new SchemaError('multipleOf is supported for whole numbers only', path);
    const bounds = {
      ...FREE_NUMBER,
      integer: type === 'integer' || multipleOf !== 0,
      min: Math.max(min ?? -Infinity, above ?? -Infinity),
      minExclusive: above !== undefined && above >= (min ?? -Infinity),
      max: Math.min(max ?? Infinity, below ?? Infinity),
      maxExclusive: below !== undefined && below <= (max ?? Infinity),
      multipleOf,
    };
    const machine = numberMachine(bounds);
    const satisfiable =
      machine.accepts(machine.start) ||
      [...'-0123456789'].some((c) => machine.step(machine.start, c.charCodeAt(0)) >= 0);
    return satisfiable ? this.make.lexeme(machine) : this.make.choice([]);
  }

  private array(schema: Record<string, unknown>, path: string): Node {
    const prefix = schema.prefixItems === undefined ? [] : asList(schema.prefixItems, 'prefixItems', path);
    const min = count(schema, 'minItems', path) ?? 0;
    const max = count(schema, 'maxItems', path) ?? Infinity;
    if (schema.uniqueItems === true && max > 1) throw new SchemaError('uniqueItems is not supported', path);
    const { items: others = true } = schema;
    if (Array.isArray(others))
      throw new SchemaError('a list of items is not supported; prefixItems is', path);
    const items = prefix.map((item, i) => this.compile(item, `${path}/prefixItems/${i}`));
    const rest = others === false ? null : this.compile(others, `${path}/items`);
    const limit = rest === null ? Math.min(max, items.length) : max;
    if (min > limit) return this.make.choice([]);
    const close = this.text(']');
    const list = this.make.items({
      items,
      rest,
      min,
      max: limit,
      separator: this.separator(),
      close: this.spaced(close),
      closeFirst: close,
    });
    return this.make.sequence(this.text('['), this.space, list);
  }

  private object(schema: Record<string, unknown>, path: string): Node {
    const properties = schema.properties ?? {};
    if (!isObject(properties)) throw new SchemaError('properties must be an object', path);
    const required = schema.required === undefined ? [] : asList(schema.required, 'required', path);
    if (!required.every((name): name is string => typeof name === 'string'))
      throw new SchemaError('required must list names', path);
    const names = [...new Set([...Object.keys(properties), ...required])];
    if (names.length > MAX_MEMBERS)
      throw new SchemaError(`${names.length} properties, at most ${MAX_MEMBERS}`, path);
    const { additionalProperties: additional = names.length === 0 } = schema;
    this.checkMemberCounts(schema, required.length, names.length, additional !== false, path);
    const unnamed = Object.hasOwn(schema, 'additionalProperties') ? additional : true;
    const members = names.map((name): Member => {
      const named = Object.hasOwn(properties, name);
      const value = named
        ? this.compile(properties[name], `${path}/properties/${pointerPart(name)}`)
        : this.compile(unnamed, path);
      return {
        node: this.make.sequence(this.text(JSON.stringify(name)), this.colon, this.space, value),
        required: required.includes(name),
      };
    });
    const others = additional === false ? null : this.others(names, additional, path);
    const close = this.text('}');
    const body = this.make.members({
      members,
      others,
      separator: this.separator(),
      close: this.spaced(close),
      closeFirst: close,
    });
    return this.make.sequence(this.text('{'), this.space, body);
  }

  private others(names: readonly string[], additional: unknown, path: string): Node {
    const key = this.make.lexeme(stringMachine(names.length > 0 ? { forbidden: names } : {}));
    const value = additional === true ? this.any() : this.compile(additional, `${path}/additionalProperties`);
    return this.make.sequence(key, this.colon, this.space, value);
  }

  private checkMemberCounts(
    schema: Record<string, unknown>,
    required: number,
    named: number,
    open: boolean,
    path: string,
  ): void {
    const min = count(schema, 'minProperties', path) ?? 0;
    const max = count(schema, 'maxProperties', path) ?? Infinity;
    if (min > required)
      throw new SchemaError('minProperties beyond the required ones is not supported', path);
    if (max < named || (open && max < Infinity))
      throw new SchemaError('maxProperties below the named ones is not supported', path);
  }

  /** Any JSON value. */
  private any(): Node {
    if (!this.anyNode) {
      this.anyNode = this.make.ref();
      this.anyNode.target = this.compile({ type: TYPES.filter((t) => t !== 'integer') }, '#');
    }
    return this.anyNode;
  }

  text(text: string): Node {
    return this.make.lexeme(literal(text));
  }

  private separator(): Node {
    return this.make.sequence(this.comma, this.space);
  }

  private spaced(node: Node): Node {
    return this.make.sequence(this.space, node);
  }
}

// ---- keywords ----------------------------------------------------------------------------------------

function stringRules(schema: Record<string, unknown>, path: string): StringRules {
  const minLength = count(schema, 'minLength', path);
  const maxLength = count(schema, 'maxLength', path);
  const { pattern, format } = schema;
  if (pattern !== undefined && format !== undefined)
    throw new SchemaError('pattern beside format is not supported', path);
  if (format !== undefined && !(typeof format === 'string' && Object.hasOwn(FORMATS, format)))
    throw new SchemaError(
      `the format ${JSON.stringify(format)?.slice(0, 60)} is not supported, ${Object.keys(FORMATS).join(', ')} are`,
      path,
    );
  if (pattern !== undefined && typeof pattern !== 'string')
    throw new SchemaError('pattern must be a string', path);
  const source = pattern ?? (format === undefined ? undefined : FORMATS[format as string]);
  const nfa = source === undefined ? undefined : compilePattern(source);
  const shortest = nfa ? nfa.fewest[nfa.start] : 0;
  const longest = nfa ? nfa.most[nfa.start] : Infinity;
  if ((minLength ?? 0) > Math.min(maxLength ?? Infinity, longest) || shortest > (maxLength ?? Infinity))
    throw new SchemaError('no string has such a length', path);
  return { minLength, maxLength, pattern: nfa };
}

const MAX_COUNT = 1 << 20;

function count(schema: Record<string, unknown>, key: string, path: string): number | undefined {
  const value = schema[key];
  if (
    value === undefined ||
    (Number.isInteger(value) && (value as number) >= 0 && (value as number) <= MAX_COUNT)
  )
    return value as number | undefined;
  throw new SchemaError(
    `${key} is ${JSON.stringify(value)?.slice(0, 60)}, expected a whole number up to ${MAX_COUNT}`,
    path,
  );
}

function asList(value: unknown, keyword: string, path: string): unknown[] {
  if (Array.isArray(value) && (value.length > 0 || keyword === 'required' || keyword === 'prefixItems'))
    return value;
  throw new SchemaError(`${keyword} must be a list with something in it`, path);
}

function hasType(value: unknown, type: Type): boolean {
  if (type === 'integer') return Number.isInteger(value);
  if (type === 'null') return value === null;
  if (type === 'array') return Array.isArray(value);
  if (type === 'object') return isObject(value);
  return typeof value === type;
}

const pointerPart = (name: string): string => name.replaceAll('~', '~0').replaceAll('/', '~1');
