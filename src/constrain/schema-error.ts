/** A schema that is not supported, or that nothing satisfies. `path` points into it: `#/properties/a`. */
export class SchemaError extends Error {
  constructor(
    message: string,
    readonly path = '',
  ) {
    super(message);
  }
}

/** Decoding came to a state from which nothing may follow, or took too long to find out. */
export class ConstraintError extends Error {}
