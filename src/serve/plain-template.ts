/**
 * The template `plain`: for models without one of their own. Base models continue such a dialogue more or
 * less; the demo model tells tales whatever it is asked.
 */
export const PLAIN_TEMPLATE = `{%- if tools %}Tools:
{%- for tool in tools %} {{ tool.function.name }}({{ tool.function.parameters.properties | default({}) | list | join(', ') }})
{%- endfor %}

{% endif %}
{%- for message in messages %}{{ message.role }}: {{ message.content }}
{%- for call in message.tool_calls | default([]) %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}

{% endfor %}
{%- if add_generation_prompt %}assistant:{% endif %}`;

/** Where the model goes on with the user's part. */
export const PLAIN_STOPS: readonly string[] = ['\nuser:'];
