/** JSON numbers, free or within bounds. Without bounds a small automaton; with bounds the digits so far decide. */
import { DEAD, StateTable, type Machine } from './machine.js';

export interface NumberBounds {
  integer: boolean;
  /** Inclusive unless said otherwise. */
  min: number;
  minExclusive: boolean;
  max: number;
  maxExclusive: boolean;
  /** Integers only; 0: any. */
  multipleOf: number;
}

export const FREE_NUMBER: NumberBounds = {
  integer: false,
  min: -Infinity,
  minExclusive: false,
  max: Infinity,
  maxExclusive: false,
  multipleOf: 0,
};

/** So many digits a double holds exactly. */
const MAX_DIGITS = 15;
/** 1e99 is a number, 1e999 would be read as infinity. */
const MAX_EXPONENT_DIGITS = 2;

export function numberMachine(bounds: NumberBounds): Machine {
  const free = bounds.min === -Infinity && bounds.max === Infinity && bounds.multipleOf === 0;
  return free ? freeNumber(bounds.integer) : boundedNumber(bounds);
}

const isDigit = (byte: number): boolean => byte >= 0x30 && byte <= 0x39;
const MINUS = 0x2d;
const PLUS = 0x2b;
const DOT = 0x2e;
const isE = (byte: number): boolean => byte === 0x65 || byte === 0x45;

/** phase * 32 + digits in it */
const Phase = { START: 0, SIGN: 1, ZERO: 2, INTEGER: 3, DOT: 4, FRACTION: 5, E: 6, E_SIGN: 7, EXPONENT: 8 };

function freeNumber(integer: boolean): Machine {
  const at = (phase: number, digits = 0): number => phase * 32 + digits;
  return {
    start: at(Phase.START),
    step(state, byte) {
      const phase = state >>> 5;
      const digits = state & 31;
      const digit = isDigit(byte);
      if (phase === Phase.START && byte === MINUS) return at(Phase.SIGN);
      if (phase <= Phase.SIGN) return byte === 0x30 ? at(Phase.ZERO) : digit ? at(Phase.INTEGER, 1) : DEAD;
      if (phase === Phase.INTEGER && digit) return digits < MAX_DIGITS ? state + 1 : DEAD;
      if (integer) return DEAD;
      if (phase === Phase.ZERO || phase === Phase.INTEGER)
        return byte === DOT ? at(Phase.DOT) : isE(byte) ? at(Phase.E) : DEAD;
      if (phase === Phase.DOT) return digit ? at(Phase.FRACTION, 1) : DEAD;
      if (phase === Phase.FRACTION)
        return digit && digits < MAX_DIGITS ? state + 1 : isE(byte) ? at(Phase.E) : DEAD;
      if (phase === Phase.E)
        return byte === PLUS || byte === MINUS ? at(Phase.E_SIGN) : digit ? at(Phase.EXPONENT, 1) : DEAD;
      if (phase === Phase.E_SIGN) return digit ? at(Phase.EXPONENT, 1) : DEAD;
      return digit && digits < MAX_EXPONENT_DIGITS ? state + 1 : DEAD;
    },
    accepts(state) {
      const phase = state >>> 5;
      return (
        phase === Phase.ZERO ||
        phase === Phase.INTEGER ||
        phase === Phase.FRACTION ||
        phase === Phase.EXPONENT
      );
    },
  };
}

/** Without exponents: a state is the text so far, and lives while some way to go on ends within the bounds. */
function boundedNumber(bounds: NumberBounds): Machine {
  const table = new StateTable<string>((text) => text);
  return {
    start: table.id(''),
    step(state, byte) {
      const text = table.get(state) + String.fromCharCode(byte);
      const form = bounds.integer ? /^-?(0|[1-9]\d*)?$/ : /^-?((0|[1-9]\d*)(\.\d*)?)?$/;
      if (!form.test(text) || text.replace(/\D/g, '').length > MAX_DIGITS) return DEAD;
      return isViable(text, bounds) ? table.id(text) : DEAD;
    },
    accepts: (state) => isWanted(table.get(state), bounds),
  };
}

function isWanted(text: string, b: NumberBounds): boolean {
  if (!/\d$/.test(text) || text === '-0') return false;
  const value = Number(text);
  if (b.multipleOf !== 0 && value % b.multipleOf !== 0) return false;
  return (
    (b.minExclusive ? value > b.min : value >= b.min) && (b.maxExclusive ? value < b.max : value <= b.max)
  );
}

/** Can digits be added so that the result is wanted? */
function isViable(text: string, b: NumberBounds): boolean {
  if (isWanted(text, b)) return true;
  const negative = text.startsWith('-');
  const digits = negative ? text.slice(1) : text;
  // Magnitudes from here on, so that negative numbers need no cases of their own.
  const low = negative ? -b.max : b.min;
  const high = negative ? -b.min : b.max;
  if (digits === '') return [...'0123456789'].some((digit) => isViable(text + digit, b));
  const value = Number(digits);
  const room = MAX_DIGITS - digits.replace(/\D/g, '').length;
  if (digits.includes('.')) {
    const decimals = digits.length - digits.indexOf('.') - 1;
    return room > 0 && overlaps(value, value + 10 ** -decimals, low, high);
  }
  if (b.integer) {
    if (digits === '0') return false;
    const [lowOut, highOut] = negative ? [b.maxExclusive, b.minExclusive] : [b.minExclusive, b.maxExclusive];
    const lowest = lowOut ? Math.floor(low) + 1 : Math.ceil(low);
    const highest = highOut ? Math.ceil(high) - 1 : Math.floor(high);
    const step = b.multipleOf || 1;
    for (let more = 1; more <= room; more++) {
      const from = Math.max(value * 10 ** more, lowest);
      const to = Math.min((value + 1) * 10 ** more - 1, highest);
      if (Math.ceil(from / step) * step <= to) return true;
    }
    return false;
  }
  if (overlaps(value, value + 1, low, high)) return room > 0;
  if (digits === '0') return false;
  for (let more = 1; more <= room; more++) {
    if (overlaps(value * 10 ** more, (value + 1) * 10 ** more, low, high)) return true;
  }
  return false;
}

/** [from, to) and [low, high] share more than a point: some decimal lies between. */
const overlaps = (from: number, to: number, low: number, high: number): boolean =>
  Math.min(to, high) - Math.max(from, low) > 1e-12 * Math.max(1, Math.abs(from));
