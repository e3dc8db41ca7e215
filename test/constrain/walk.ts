/** Grammars run by hand: does a text fit, and what do random choices among the allowed bytes write? */
import { Automaton, type State } from '../../src/constrain/automaton.js';
import type { Node } from '../../src/constrain/grammar.js';
import { compileSchema } from '../../src/constrain/schema.js';

export function fits(grammar: Node, text: string): boolean {
  const automaton = new Automaton(grammar);
  let state: State | null = automaton.start;
  for (const byte of Buffer.from(text)) state = state && automaton.step(state, byte);
  return state?.accepting ?? false;
}

export const schemaFits = (schema: unknown, text: string): boolean => fits(compileSchema(schema), text);

/**
 * A text of the grammar, by random choices that prefer to end.
 * @throws when no byte is allowed where the text may not end: a dead end
 */
export function randomText(grammar: Node, random: () => number, most = 3000): string {
  const automaton = new Automaton(grammar);
  let state = automaton.start;
  const bytes: number[] = [];
  for (;;) {
    const allowed: number[] = [];
    for (let byte = 0; byte < 256; byte++) if (automaton.step(state, byte)) allowed.push(byte);
    if (state.accepting && (allowed.length === 0 || random() < 0.5)) break;
    if (allowed.length === 0) throw new Error(`dead end after ${Buffer.from(bytes).toString()}`);
    // Quotes and closing brackets end things, @ x y are what patterns of the tests wait for; otherwise texts would
    // grow without end.
    const closing = allowed.filter((byte) => [0x22, 0x40, 0x5d, 0x78, 0x79, 0x7d].includes(byte));
    const eager = bytes.length > most / 4 || random() < 0.3;
    const pool = closing.length > 0 && eager ? closing : allowed;
    const byte = pool[Math.floor(random() * pool.length)];
    bytes.push(byte);
    state = automaton.step(state, byte)!;
    if (bytes.length > most) throw new Error('the text does not end');
  }
  return new TextDecoder('utf-8', { fatal: true }).decode(Uint8Array.from(bytes));
}
