import { describe, expect, it } from 'vitest';
import { PLAIN_TEMPLATE } from '../../src/model/plain-template.js';
import { ChatTemplate, type Conversation } from '../../src/model/chat.js';
import { toolFormatOf, toolGrammar, ToolStream } from '../../src/serve/tool-format.js';
import { fits } from '../constrain/walk.js';

const LLAMA_TEMPLATE = 'Respond in the format {"name": function name, "parameters": dictionary}. {{ tools }}';
const tagged = toolFormatOf('{% for tool in tools %}{% endfor %}<tool_call>')!;
const llama = toolFormatOf(LLAMA_TEMPLATE)!;
const crown = {
  name: 'crown',
  strict: true,
  parameters: { type: 'object', properties: { who: { type: 'string' } }, required: ['who'] },
};

describe('the form of calls', () => {
  it('is read from the template', () => {
    expect(tagged.open).toBe('<tool_call>');
    expect(llama.argumentsKey).toBe('parameters');
    expect(toolFormatOf('{{ messages }}')).toBeNull();
    expect(toolFormatOf('{{ tools }}[TOOL_CALLS]')).toBeNull();
    expect(toolFormatOf(PLAIN_TEMPLATE)).toEqual(tagged);
  });
});

describe('the grammar', () => {
  const call = '<tool_call>\n{"name": "crown", "arguments": {"who": "x"}}\n</tool_call>';

  it('of a required call takes the call and nothing else', () => {
    const grammar = toolGrammar(tagged, [crown], true);
    expect(fits(grammar, call)).toBe(true);
    expect(fits(grammar, `So: ${call}`)).toBe(false);
    expect(fits(grammar, call.replace('crown', 'depose'))).toBe(false);
    expect(fits(grammar, call.replace('"who"', '"what"'))).toBe(false);
  });

  it('of a free choice takes text, or text and a whole call', () => {
    const grammar = toolGrammar(tagged, [crown], false);
    expect(fits(grammar, 'A king <tool> lives.')).toBe(true);
    expect(fits(grammar, `So: ${call}`)).toBe(true);
    expect(fits(grammar, `So: ${call.slice(0, -5)}`)).toBe(false);
    expect(fits(grammar, '<tool_call>nothing')).toBe(false);
  });

  it('of Llama’s form is one JSON object', () => {
    expect(fits(toolGrammar(llama, [crown], true), '{"name": "crown", "parameters": {"who": "x"}}')).toBe(
      true,
    );
  });

  it('of a tool that promises nothing takes any object where its schema is not supported', () => {
    const loose = { name: 'f', parameters: { not: {} } };
    expect(
      fits(
        toolGrammar(tagged, [loose], true),
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
      ),
    ).toBe(true);
    expect(() => toolGrammar(tagged, [{ ...loose, strict: true }], true)).toThrow(/tool f: .*"not"/);
  });
});

describe('an answer on its way', () => {
  const run = (pieces: string[], format = tagged) => {
    const stream = new ToolStream(format);
    const text = pieces.map((piece) => stream.push(piece)).join('');
    const end = stream.end();
    return { text: text + end.text, calls: end.calls };
  };

  it('is text up to the call, wherever the pieces are cut', () => {
    const whole = 'So <b>: <tool_call>\n{"name": "crown", "arguments": {"who": "x"}}\n</tool_call>';
    for (let cut = 0; cut <= whole.length; cut++) {
      expect(run([whole.slice(0, cut), whole.slice(cut)])).toEqual({
        text: 'So <b>: ',
        calls: [{ name: 'crown', arguments: '{"who":"x"}' }],
      });
    }
  });

  it('loses nothing when the call was cut off or is none', () => {
    for (const text of ['a <tool_call>\n{"name": "cr', 'a <tool_call>{}</tool_call>', 'a <tool', 'a <']) {
      expect(run([...text])).toEqual({ text, calls: [] });
    }
  });

  it('in Llama’s form is the call itself', () => {
    expect(run(['{"name": "crown", ', '"parameters": {}}'], llama).calls).toEqual([
      { name: 'crown', arguments: '{}' },
    ]);
  });
});

describe('the plain template', () => {
  const template = new ChatTemplate(PLAIN_TEMPLATE, { tokenizerConfigJson: '{}' });
  const render = (conversation: Conversation) => template.render(conversation);

  it('is a dialogue that waits for the assistant', () => {
    expect(
      render({
        messages: [
          { role: 'system', content: 'Be brief.' },
          { role: 'user', content: 'Hello' },
        ],
      }),
    ).toBe('system: Be brief.\nuser: Hello\nassistant:');
  });

  it('names tools and shows calls in the form that is read back', () => {
    const tools = [
      { type: 'function', function: { name: 'crown', parameters: { properties: { who: {}, when: {} } } } },
    ];
    const call = { id: '1', type: 'function' as const, function: { name: 'crown', arguments: { who: 'x' } } };
    expect(render({ messages: [{ role: 'assistant', content: '', tool_calls: [call] }], tools })).toBe(
      'Tools: crown(who, when)\nassistant: <tool_call>\n{"name": "crown", "arguments": {"who": "x"}}\n</tool_call>\nassistant:',
    );
  });
});
