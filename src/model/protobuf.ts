/** The wire format of protocol buffers, as far as SentencePiece's files use it: bounded, nothing is trusted. */
import { BoundedReader, type Fail } from '../io/bounded-reader.js';

export interface Field {
  number: number;
  /** Whole numbers and booleans (64 bits, two's complement), floats as f32, texts and messages as bytes. */
  value: bigint | number | Uint8Array;
}

const VARINT = 0;
const FIXED_64 = 1;
const BYTES = 2;
const FIXED_32 = 5;

/**
 * The fields of a message, one at a time.
 * @param name for messages
 * @throws what `fail` makes, with the offset
 */
export function* fieldsOf(bytes: Uint8Array, name: string, fail: Fail): Generator<Field> {
  const reader = BoundedReader.ofBytes(bytes, name, fail);
  while (reader.remaining > 0) {
    const tag = varint(reader, 'a field');
    const number = Number(tag >> 3n);
    const type = Number(tag & 7n);
    if (number < 1 || number >= 1 << 29) throw reader.fail(`field number ${number}`);
    if (type === VARINT) yield { number, value: varint(reader, `field ${number}`) };
    else if (type === FIXED_32) yield { number, value: reader.f32(`field ${number}`) };
    else if (type === FIXED_64) yield { number, value: reader.f64(`field ${number}`) };
    else if (type === BYTES) {
      const length = varint(reader, `length of field ${number}`);
      if (length > BigInt(reader.remaining)) {
        throw reader.fail(`field ${number}: ${length} bytes, ${reader.remaining} are left`);
      }
      yield { number, value: reader.bytes(Number(length), `field ${number}`) };
    } else throw reader.fail(`field ${number}: unknown wire type ${type}`);
  }
}

/** Seven bits a byte, the lowest first; at most ten bytes. */
function varint(reader: BoundedReader, what: string): bigint {
  let value = 0n;
  for (let shift = 0n; shift < 70n; shift += 7n) {
    const byte = reader.u8(what);
    value |= BigInt(byte & 127) << shift;
    if (byte < 128) return BigInt.asUintN(64, value);
  }
  throw reader.fail(`${what}: a number of more than ten bytes`);
}
