/** Pages of the command line, from the program that parses it. */
import { CliContext } from '../../dist/cli/context.js';
import { buildProgram } from '../../dist/cli/program.js';

/** @returns {Promise<{name: string, text: string}[]>} a page with all commands, and one for each */
export async function commandPages() {
  const { commands } = buildProgram(new CliContext([]));
  const rows = commands.map((command) => [
    `[\`${command.name()}\`](${command.name()}.md)`,
    command.description(),
  ]);
  const overview = `# Commands\n\nMade from the program itself. What is not in a list of options is in [Command line](../cli.md).\n\n${table(
    ['command', 'what it does'],
    rows.map(([link, text]) => [link, escaped(text)]),
  )}\n`;
  return [
    { name: 'commands', text: overview },
    ...commands.map((command) => ({ name: command.name(), text: page(command) })),
  ];
}

function page(command) {
  const { usage, more } = help(command);
  const parts = [`# ${command.name()}`, escaped(command.description()), fenced(usage)];
  const args = command.registeredArguments;
  if (args.length > 0) {
    const rows = args.map((argument) => [`\`${argument.name()}\``, meaning(argument)]);
    parts.push('## Arguments', table(['argument', 'meaning'], rows));
  }
  const options = command.options.filter((option) => !option.hidden);
  parts.push(
    '## Options',
    table(
      ['option', 'meaning'],
      options.map((option) => [`\`${option.flags}\``, meaning(option)]),
    ),
  );
  if (more !== '') parts.push('## Notes and examples', fenced(more));
  return `${parts.join('\n\n')}\n`;
}

/** The usage line, and what stands behind the options. */
function help(command) {
  let whole = '';
  command.configureOutput({ writeOut: (text) => (whole += text), getOutHelpWidth: () => 100 });
  command.outputHelp();
  const plain = command.helpInformation();
  return {
    usage: /^Usage: (.*)$/m.exec(plain)[1],
    more: whole.slice(whole.indexOf(plain) + plain.length).trim(),
  };
}

/** What --help says of an option: text, choices, default. */
function meaning({ description, argChoices, defaultValue, defaultValueDescription }) {
  const notes = [];
  if (argChoices) notes.push(`one of ${argChoices.map((choice) => `\`${choice}\``).join(', ')}`);
  if (defaultValue !== undefined && defaultValue !== false)
    notes.push(`default: \`${defaultValueDescription ?? JSON.stringify(defaultValue).replaceAll('"', '')}\``);
  return escaped(description) + (notes.length > 0 ? ` (${notes.join('; ')})` : '');
}

/** Text that markdown and Vue leave as it is. */
const escaped = (text) => text.replace(/[<>|*_[\]{}]/g, (sign) => `&#${sign.codePointAt(0)};`);
const fenced = (text) => `\`\`\`text\n${text}\n\`\`\``;

function table(head, rows) {
  const line = (cells) => `| ${cells.join(' | ')} |`;
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n');
}
