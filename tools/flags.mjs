/** Flags of a tool: what it does not know is refused with its usage and exit code 2, as the product does. */
import { parseArgs } from 'node:util';

const fail = (message, usage) => {
  console.error(`error: ${message}\n\n${usage}`);
  process.exit(2);
};

/**
 * @param usage printed by --help
 * @param options of parseArgs
 * @param numbers options that hold a whole number from 1: they come as numbers
 */
export function readFlags(usage, options, numbers, allowPositionals = false) {
  let read;
  try {
    read = parseArgs({ allowPositionals, options: { ...options, help: { type: 'boolean' } } });
  } catch (error) {
    fail(error.message, usage);
  }
  const { values, positionals } = read;
  if (values.help) {
    console.log(usage);
    process.exit(0);
  }
  for (const name of numbers) {
    if (values[name] === undefined) continue;
    if (!/^[1-9]\d{0,9}$/.test(values[name]))
      fail(`--${name} is "${values[name]}", expected a whole number from 1`, usage);
    values[name] = Number(values[name]);
  }
  return { values, positionals };
}
