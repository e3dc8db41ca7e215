/**
 * The chat template `plain`: for models without one of their own. Base models continue such a dialogue more or
 * less; the demo model tells tales whatever it is asked.
 */
export const PLAIN_TEMPLATE = `{%- if tools %}Tools:
{%- for tool in tools %} {{ tool.function.name }}(
{%- for name, value in tool.function.parameters.properties.items() %}{{ name }}{% if not loop.last %}, {% endif %}{% endfor %})
{%- endfor %}

{% endif %}
{%- for message in messages %}{{ message.role }}: {{ message.content }}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}
{%- endif %}

{% endfor %}
{%- if add_generation_prompt %}assistant:{% endif %}`;

/** Where the model goes on with the user's part. */
export const PLAIN_STOPS: readonly string[] = ['\nuser:'];
