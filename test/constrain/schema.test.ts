/** Schemas: what fits, what does not, what is refused; and whatever is written satisfies a second validator. */
import { Ajv2020 } from 'ajv/dist/2020.js';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { compileSchema } from '../../src/constrain/schema.js';
import { randomText, schemaFits } from './walk.js';

/** [schema, texts that fit, texts that do not] */
const CASES: [unknown, string[], string[]][] = [
  [{ type: 'null' }, ['null'], ['nul', '0']],
  [{ type: 'boolean' }, ['true', 'false'], ['True', '1']],
  [{ type: 'integer' }, ['0', '-7', '123456789012345'], ['01', '1.0', '1e3', '-', '1234567890123456']],
  [{ type: 'number' }, ['0', '-0.5', '1e10', '2.5E-3'], ['.5', '1.', '1e', '1e999', '+1', 'NaN']],
  [{ type: 'integer', minimum: 3, maximum: 17 }, ['3', '9', '17'], ['2', '18', '-3', '170']],
  [{ type: 'integer', exclusiveMinimum: -5, maximum: -2 }, ['-4', '-2'], ['-5', '-1', '0', '-']],
  [{ type: 'integer', multipleOf: 7, minimum: 100 }, ['105', '700'], ['7', '101', '98']],
  [
    { type: 'number', minimum: 0.5, exclusiveMaximum: 1.5 },
    ['0.5', '1', '1.499'],
    ['0.4', '1.5', '2', '-1', '0'],
  ],
  [{ type: 'number', minimum: -0.25, maximum: 0 }, ['-0.25', '-0.1', '0'], ['-0.3', '0.1', '-1']],
  [{ type: 'string' }, ['""', '"a\\"\\u00e4\\n"', '"äöü😀"'], ['"', 'a', '"\n"', '"\\x"', '"\\ud800"']],
  [{ type: 'string', minLength: 2, maxLength: 3 }, ['"ab"', '"äö😀"', '"a\\n\\u0041"'], ['"a"', '"abcd"']],
  [{ type: 'string', pattern: '^a+$', maxLength: 3 }, ['"a"', '"aaa"'], ['""', '"aaaa"', '"b"']],
  [{ type: 'string', pattern: 'b' }, ['"abc"', '"b"'], ['"ac"', '""']],
  [{ type: 'string', pattern: '^(foo|ba[rz]{2})\\d?$' }, ['"foo"', '"barz7"'], ['"ba"', '"foo77"']],
  [{ type: 'string', pattern: '^[^a-z"]+$' }, ['"A1"', '"é😀"'], ['"a"', '"\\""']],
  [{ type: 'string', pattern: '^\\\\"$' }, ['"\\\\\\""'], ['"\\""']],
  [{ type: 'string', format: 'date' }, ['"2024-02-28"'], ['"2024-13-01"', '"24-01-01"']],
  [{ type: 'string', format: 'uuid' }, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"x"']],
  [{ enum: ['a', 1, null, { b: [1] }] }, ['"a"', '1', 'null', '{"b":[1]}'], ['"b"', '2']],
  [{ const: 'ä"' }, ['"ä\\""'], ['"ä"']],
  [{ type: 'string', enum: ['a', 1] }, ['"a"'], ['1']],
  [{ type: ['string', 'null'] }, ['"x"', 'null'], ['1']],
  [{ type: 'string', nullable: true }, ['"x"', 'null'], ['1']],
  [
    { type: 'array', items: { type: 'integer' } },
    ['[]', '[1]', '[1, 2,3]', '[\n  1\n]'],
    ['[1,]', '[,1]', '["a"]', '[1'],
  ],
  [
    { type: 'array', items: { type: 'integer' }, minItems: 2, maxItems: 3 },
    ['[1,2]', '[1,2,3]'],
    ['[]', '[1]', '[1,2,3,4]'],
  ],
  [
    { type: 'array', prefixItems: [{ type: 'integer' }, { type: 'string' }], items: false, minItems: 2 },
    ['[1,"a"]'],
    ['[1]', '[1,"a",2]', '["a",1]'],
  ],
  [
    { type: 'object', properties: { a: { type: 'integer' } }, required: ['a'], additionalProperties: false },
    ['{"a": 1}', '{"a":1}', '{\n  "a": 1\n}'],
    ['{}', '{"b": 1}', '{"a": 1, "b": 2}', '{"a": "x"}'],
  ],
  [
    { type: 'object', properties: { a: { type: 'integer' }, b: { type: 'integer' } } },
    ['{}', '{"a": 1}', '{"b": 1}', '{"a": 1, "b": 2}'],
    ['{"b": 1, "a": 2}', '{, "b": 1}', '{"a": 1,}'],
  ],
  [
    { type: 'object', properties: { a: true, b: true, c: true }, required: ['b'] },
    ['{"b": 1}', '{"a": [], "b": {}}', '{"b": 1, "c": 2}'],
    ['{"a": 1}', '{"c": 1}'],
  ],
  [
    { type: 'object', properties: { a: { type: 'integer' } }, additionalProperties: { type: 'string' } },
    ['{"a": 1, "b": "x"}', '{"z": "x"}', '{"ab": "x"}'],
    ['{"a": "x"}', '{"b": 1}'],
  ],
  [{ type: 'object' }, ['{}', '{"x": {"y": [null]}}'], ['[]', '{"x"}', '{x: 1}']],
  [true, ['1', '"a"', '[{"a": null}]'], ['', 'x']],
  [
    { anyOf: [{ type: 'integer' }, { type: 'array', items: { $ref: '#' } }] },
    ['1', '[[1], 2, []]'],
    ['"a"', '[['],
  ],
  [
    {
      $ref: '#/$defs/node',
      $defs: {
        node: {
          type: 'object',
          properties: {
            v: { type: 'integer' },
            next: { anyOf: [{ $ref: '#/$defs/node' }, { type: 'null' }] },
          },
          required: ['v', 'next'],
          additionalProperties: false,
        },
      },
    },
    ['{"v": 1, "next": {"v": 2, "next": null}}'],
    ['{"v": 1}', '{"v": 1, "next": {}}'],
  ],
  [
    {
      oneOf: [
        { type: 'object', properties: { k: { const: 'a' }, x: { type: 'integer' } }, required: ['k', 'x'] },
        { type: 'object', properties: { k: { const: 'b' } }, required: ['k'] },
      ],
    },
    ['{"k": "a", "x": 1}', '{"k": "b"}'],
    ['{"k": "a"}', '{"k": "c"}'],
  ],
  [{ allOf: [{ type: 'integer', minimum: 3 }, { maximum: 5 }] }, ['3', '5'], ['2', '9']],
  [
    {
      allOf: [
        { type: 'object', properties: { a: { type: 'integer' } }, required: ['a'] },
        { $ref: '#/$defs/b' },
      ],
      $defs: { b: { type: 'object', properties: { b: { type: 'integer' } }, required: ['b'] } },
    },
    ['{"a": 1, "b": 2}'],
    ['{"a": 1}'],
  ],
  [
    {
      type: 'object',
      anyOf: [
        { properties: { a: true }, required: ['a'] },
        { properties: { b: true }, required: ['b'] },
      ],
    },
    ['{"a": 1}', '{"b": 1}'],
    ['{}', '1'],
  ],
  [
    {
      anyOf: [{ type: 'integer' }, { $ref: '#/$defs/endless' }],
      $defs: { endless: { type: 'array', items: { $ref: '#/$defs/endless' }, minItems: 1 } },
    },
    ['1'],
    ['[', '[['],
  ],
  [
    { type: 'object', properties: { __proto__x: { type: 'integer' } }, required: ['__proto__x'] },
    ['{"__proto__x": 1}'],
    ['{}'],
  ],
];

describe('a schema', () => {
  it.each(CASES)('%j takes what fits and nothing else', (schema, good, bad) => {
    for (const text of good) expect([text, schemaFits(schema, text)]).toEqual([text, true]);
    for (const text of bad) expect([text, schemaFits(schema, text)]).toEqual([text, false]);
  });

  it.each([
    [{ type: 'array', uniqueItems: true }, /uniqueItems/],
    [{ not: { type: 'string' } }, /"not"/],
    [{ type: 'object', patternProperties: {} }, /patternProperties/],
    [{ if: true, then: false }, /"if"/],
    [{ type: 'array', contains: {} }, /contains/],
    [{ type: 'string', format: 'regex' }, /format "regex"/],
    [{ type: 'string', pattern: '(?=a)' }, /look-around/],
    [{ type: 'string', pattern: '(a)\\1' }, /\\1/],
    [{ type: 'string', pattern: 'a{1000}' }, /at most 256/],
    [{ type: 'string', pattern: '((a{200}){200}){200}' }, /states/],
    [{ type: 'string', pattern: '('.repeat(5000) }, /nested too deep/],
    [{ type: 'number', multipleOf: 0.1 }, /multipleOf/],
    [{ $ref: 'http://example.com/x' }, /\$ref/],
    [{ $ref: '#/$defs/none' }, /points to nothing/],
    [{ type: 'text' }, /type "text"/],
    [{ oneOf: [{ type: 'integer' }, { type: 'number' }] }, /may both match/],
    [{ enum: [] }, /enum/],
    [{ type: 'string', minLength: 5, maxLength: 4 }, /no string/],
    [{ type: 'integer', minimum: 1.2, maximum: 1.8 }, /no finite value/],
    [{ type: 'object', properties: { a: { $ref: '#' } }, required: ['a'] }, /no finite value/],
    [{ $ref: '#' }, /no finite value/],
    [{ type: 'object', required: ['a'], additionalProperties: false }, /no finite value/],
    [{ type: 'object', minProperties: 2 }, /minProperties/],
    [{ anyOf: Array.from({ length: 100_000 }, () => ({})) }, /at most 500/],
    [{ enum: Array.from({ length: 100_000 }, (_, i) => i) }, /at most 5000/],
    [{ minLength: -1 }, /minLength/],
    [{ minimum: '3' }, /minimum/],
    [7, /expected a schema/],
  ])('%# is refused by name and place', (schema, message) => {
    expect(() => compileSchema(schema)).toThrow(message);
  });

  it('deeper than the limit is refused, not a stack overflow', () => {
    let schema: unknown = { type: 'integer' };
    for (let i = 0; i < 1000; i++) schema = { type: 'array', items: schema };
    expect(() => compileSchema(schema)).toThrow(/deeper/);
  });
});

// ---- whatever is written satisfies the schema --------------------------------------------------------

const leaf = fc.oneof(
  fc.constantFrom<object>(
    { type: 'null' },
    { type: 'boolean' },
    { type: 'number' },
    { type: 'integer' },
    { type: 'string' },
    { enum: ['x', 1, null] },
    { const: 'ä' },
  ),
  fc
    .tuple(fc.integer({ min: -2000, max: 2000 }), fc.integer({ min: 0, max: 3000 }))
    .map(([min, width]) => ({ type: 'integer', minimum: min, maximum: min + width })),
  fc
    .tuple(fc.integer({ min: -300, max: 300 }), fc.integer({ min: 1, max: 500 }))
    .map(([min, width]) => ({ type: 'number', exclusiveMinimum: min / 100, maximum: (min + width) / 100 })),
  fc
    .tuple(fc.nat(40), fc.integer({ min: 1, max: 12 }))
    .map(([min, m]) => ({ type: 'integer', minimum: min, multipleOf: m })),
  fc
    .tuple(fc.nat(4), fc.nat(6))
    .map(([min, more]) => ({ type: 'string', minLength: min, maxLength: min + more })),
  fc
    .constantFrom('^[a-c]{2,4}$', 'x|y', '^\\d{3}-\\w+$', '^(ab)*$', '[^"\\\\]', '^\\S+@\\S+$', '^.?é.?$')
    .map((pattern) => ({ type: 'string', pattern })),
);

const schemas = fc.letrec<{ schema: object }>((tie) => ({
  schema: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    leaf,
    fc.record({
      type: fc.constant('array'),
      items: tie('schema'),
      minItems: fc.nat(2),
      maxItems: fc.integer({ min: 2, max: 4 }),
    }),
    fc
      .dictionary(fc.constantFrom('a', 'b', 'ab', 'ä"', 'c/d~'), tie('schema'), { maxKeys: 4 })
      .chain((properties) =>
        fc.record({
          type: fc.constant('object'),
          properties: fc.constant(properties),
          required: fc.subarray(Object.keys(properties)),
          additionalProperties: fc.oneof(fc.constant(false), tie('schema')),
        }),
      ),
    fc.array(tie('schema'), { minLength: 1, maxLength: 3 }).map((anyOf) => ({ anyOf })),
  ),
})).schema;

describe('what random choices write', () => {
  it('is JSON that satisfies the schema', () => {
    const ajv = new Ajv2020({ strict: false, logger: false });
    fc.assert(
      fc.property(schemas, fc.integer(), (schema, seed) => {
        let state = seed >>> 0;
        const random = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
        const grammar = compileSchema(schema);
        const validate = ajv.compile(schema);
        for (let i = 0; i < 3; i++) {
          const value: unknown = JSON.parse(randomText(grammar, random));
          if (!validate(value))
            throw new Error(`${JSON.stringify(value)}: ${ajv.errorsText(validate.errors)}`);
        }
      }),
      { numRuns: 150 },
    );
  });
});
