/**
 * How models write tool calls. The template says which form a model was trained on; the grammar keeps it to
 * that form, to the tools that were offered, and to their parameters.
 */
import { openLength } from '../api/text-stream.js';
import {
  finished,
  literal,
  NodeFactory,
  SchemaCompiler,
  SchemaError,
  textUntil,
  textWithout,
  type Node,
} from '../constrain/index.js';
import { isObject } from '../io/strict-json.js';

export interface Tool {
  name: string;
  description?: string;
  parameters?: unknown;
  strict?: boolean;
}

export interface ToolFormat {
  /** Begins a call; text before it is an ordinary answer. */
  open: string;
  /** Between open and the JSON. */
  lead: string;
  close: string;
  argumentsKey: 'arguments' | 'parameters';
}

export interface ToolCall {
  name: string;
  /** JSON, as the model wrote it. */
  arguments: string;
}

/** Qwen, Hermes and many others; also what the plain template shows. */
const TAGGED: ToolFormat = {
  open: '<tool_call>',
  lead: '\n',
  close: '\n</tool_call>',
  argumentsKey: 'arguments',
};
/** Llama 3.1 to 3.3: the answer is one JSON object. */
const LLAMA: ToolFormat = { open: '{"name": ', lead: '', close: '}', argumentsKey: 'parameters' };

/** @returns null: the template has no place for tools, or in a form that is not known here */
export function toolFormatOf(template: string): ToolFormat | null {
  if (!/\btools\b/.test(template)) return null;
  if (template.includes('<tool_call>')) return TAGGED;
  return template.includes('"parameters": ') && template.includes('"name": ') ? LLAMA : null;
}

/**
 * @param must a call has to be made; false: text or a call, as the model likes
 * @throws SchemaError when the parameters of a strict tool are not supported
 */
export function toolGrammar(format: ToolFormat, tools: readonly Tool[], must: boolean): Node {
  const make = new NodeFactory();
  const text = (value: string): Node => make.lexeme(literal(value));
  const calls = make.choice(tools.map((tool) => callOf(format, tool, make, text)));
  if (must) return finished(make.sequence(text(format.open), calls));
  const plain = make.lexeme(textWithout(format.open));
  const called = make.sequence(make.lexeme(textUntil(format.open)), calls);
  return finished(make.choice([plain, called]));
}

/** What follows `open`. */
function callOf(format: ToolFormat, tool: Tool, make: NodeFactory, text: (value: string) => Node): Node {
  const name = JSON.stringify(tool.name);
  const before = format === LLAMA ? `${name}, ` : `${format.lead}{"name": ${name}, `;
  const after = format === LLAMA ? format.close : `}${format.close}`;
  return make.sequence(text(`${before}"${format.argumentsKey}": `), parametersOf(tool, make), text(after));
}

function parametersOf(tool: Tool, make: NodeFactory): Node {
  const schema = tool.parameters ?? { type: 'object', additionalProperties: false };
  try {
    return new SchemaCompiler(schema, make).compile(schema, '#');
  } catch (error) {
    // Only a strict tool promises its parameters; others still get an object.
    if (!(error instanceof SchemaError)) throw error;
    if (tool.strict) throw new SchemaError(`tool ${tool.name}: ${error.message}`, error.path);
    const object = { type: 'object' };
    return new SchemaCompiler(object, make).compile(object, '#');
  }
}

/** Text of an answer on its way out; what may be a tool call is held back until it is known. */
export class ToolStream {
  private held = '';
  private calling = false;

  constructor(private readonly format: ToolFormat) {}

  /** @returns text that is no call */
  push(piece: string): string {
    this.held += piece;
    if (this.calling) return '';
    const at = this.held.indexOf(this.format.open);
    if (at >= 0) {
      this.calling = true;
      return this.take(at);
    }
    return this.take(this.held.length - openLength(this.held, this.format.open));
  }

  /** @returns the rest: calls, or text when it was none (an answer cut off in a call) */
  end(): { text: string; calls: ToolCall[] } {
    const calls = this.calling ? parseCalls(this.held, this.format) : null;
    return calls ? { text: '', calls } : { text: this.held, calls: [] };
  }

  private take(length: number): string {
    const out = this.held.slice(0, length);
    this.held = this.held.slice(length);
    return out;
  }
}

function parseCalls(text: string, format: ToolFormat): ToolCall[] | null {
  const bodies =
    format === LLAMA
      ? [text]
      : text
          .split(format.open)
          .slice(1)
          .map((part) => part.split(format.close.trim())[0]);
  const calls: ToolCall[] = [];
  for (const body of bodies) {
    let value: unknown;
    try {
      value = JSON.parse(body);
    } catch {
      return null;
    }
    const args = isObject(value) ? value[format.argumentsKey] : undefined;
    if (!isObject(value) || typeof value.name !== 'string' || args === undefined) return null;
    calls.push({ name: value.name, arguments: JSON.stringify(args) });
  }
  return calls.length > 0 ? calls : null;
}
