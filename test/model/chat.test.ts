import { describe, expect, it } from 'vitest';
import { HybridError } from '../../src/errors.js';
import { ChatTemplate } from '../../src/model/index.js';

const files = { tokenizerConfigJson: JSON.stringify({ bos_token: '<s>', eos_token: { content: '</s>' } }) };
const renderAll = (template: string, messages: { role: string; content: string }[], addPrompt = true) =>
  new ChatTemplate(template, files).render({ messages }, addPrompt);
const render = (template: string, content = 'Hello') => renderAll(template, [{ role: 'user', content }]);

/** The error, and how long it took. */
function failure(template: string, content?: string): HybridError & { ms: number } {
  const start = performance.now();
  try {
    render(template, content);
  } catch (error) {
    return Object.assign(error as HybridError, { ms: performance.now() - start });
  }
  throw new Error('the template rendered');
}

describe('chat templates', () => {
  it('render messages, special tokens and the generation prompt', () => {
    const template =
      "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m.content | trim }}{{ eos_token }}\n{% endfor %}" +
      '{% if add_generation_prompt %}<|assistant|>{% endif %}';
    const messages = [
      { role: 'system', content: ' Be brief. ' },
      { role: 'user', content: 'Hi' },
    ];
    expect(renderAll(template, messages)).toBe('<s><|system|>Be brief.</s>\n<|user|>Hi</s>\n<|assistant|>');
    expect(renderAll(template, messages, false)).toMatch(/Hi<\/s>\n$/);
  });

  it('render methods, namespaces, slices, macros and dates as real templates use them', () => {
    const template =
      '{%- macro wrap(x, end="!") %}[{{ x }}]{{ end }}{% endmacro -%}' +
      '{%- set ns = namespace(seen=0) -%}{%- for m in messages[:1] -%}{%- set ns.seen = ns.seen + 1 -%}' +
      "{{ wrap(m.content.split('l')[0].upper().replace('E', 'i')) }}{{ loop.last }}{%- endfor -%}" +
      '{{ ns.seen }}{{ messages | length }}{{ range(3) | join("-") }}{{ "x" in messages[0].content }}{{ strftime_now("%Y") | length }}';
    expect(render(template)).toBe('[Hi]!true110-1-2false4');
  });

  it('cost no more than a second for a conversation of a thousand messages', () => {
    const template =
      "{% for m in messages %}{{ '<|' + m.role + '|>' + m['content'] + eos_token }}{% endfor %}";
    const messages = Array.from({ length: 1000 }, (_, i) => ({
      role: 'user',
      content: `message ${i} `.repeat(10),
    }));
    expect(renderAll(template, messages).length).toBeGreaterThan(100_000);
  });

  it('report what raise_exception says', () => {
    expect(failure("{{ raise_exception('roles must alternate') }}").message).toContain(
      'roles must alternate',
    );
  });

  it.each([
    ['a huge range', '{% for i in range(10**9) %}x{% endfor %}'],
    ['a huge range through a filter', '{{ range(1000000000) | list | length }}'],
    ['nested loops', '{% for a in range(50000) %}{% for b in range(50000) %}{% endfor %}{% endfor %}'],
    [
      'a string that doubles',
      '{% set ns = namespace(s="xx") %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}',
    ],
    [
      'a list that doubles',
      '{% set ns = namespace(a=[1]) %}{% for i in range(64) %}{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a }}',
    ],
    [
      'shared lists that double when written',
      '{% set ns = namespace(a=[1]) %}{% for i in range(64) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a | tojson }}',
    ],
    ['a namespace that holds itself', '{% set ns = namespace(a=1) %}{% set ns.me = ns %}{{ ns }}'],
    ['a wide indentation', "{{ 'a\nb' | indent(1000000000) }}"],
    [
      'a replacement that multiplies',
      "{% set a = 'xxxxxxxxxxxxxxxx' %}{% for i in range(6) %}{% set _ = 0 %}{% endfor %}{{ messages[0].content.replace('x', messages[0].content) }}",
    ],
    ['a join with a long separator', '{{ messages[0].content | join(messages[0].content) }}'],
    ['many long outputs', '{% for i in range(60000) %}{{ messages[0].content }}{% endfor %}'],
    ['endless recursion', '{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}'],
    [
      'branching recursion',
      '{% macro f(x) %}{% if x %}{{ f(x - 1) }}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(60) }}',
    ],
    ['deep brackets', `{{ ${'('.repeat(100_000)}1${')'.repeat(100_000)} }}`],
    ['no end of a block', '{% if true %}'],
    ['json of a deep indentation', '{{ messages | tojson(indent=100000000) }}'],
  ])('are stopped within bounds: %s', (_, template) => {
    const before = process.memoryUsage().rss;
    const error = failure(template, 'x'.repeat(10_000));
    expect(error).toBeInstanceOf(HybridError);
    expect(error.code).toBe('TEMPLATE_INVALID');
    expect(error.ms).toBeLessThan(3000);
    expect(process.memoryUsage().rss - before).toBeLessThan(256 * 2 ** 20);
  });
});
