/** All commands, and how the parser reports its own errors. */
import { Command } from 'commander';
import { TOOL_VERSION } from '../pack/tool-version.js';
import type { CliContext } from './context.js';
import { registerBench } from './bench.js';
import { registerChat } from './chat.js';
import { registerConvert } from './convert.js';
import { registerDoctor } from './doctor.js';
import { registerEstimate } from './estimate.js';
import { registerEval } from './eval.js';
import { registerExport } from './export.js';
import { registerInspect } from './inspect.js';
import { registerList } from './list.js';
import { registerProfile } from './profile.js';
import { registerPull } from './pull.js';
import { registerRm } from './rm.js';
import { registerRun } from './run.js';
import { registerServe } from './serve.js';
import { registerSparsify } from './sparsify.js';
import { registerTune } from './tune.js';

/** In the order of help. */
const COMMANDS = [
  registerRun,
  registerChat,
  registerServe,
  registerPull,
  registerList,
  registerRm,
  registerProfile,
  registerTune,
  registerSparsify,
  registerConvert,
  registerInspect,
  registerEval,
  registerBench,
  registerEstimate,
  registerExport,
  registerDoctor,
];

export function buildProgram(context: CliContext): Command {
  const program = new Command('hybrid-infer')
    .description('Runs language models with sparse FFNs: computes the neurons that fire, skips the others.')
    .version(TOOL_VERSION)
    .showSuggestionAfterError()
    .helpOption('-h, --help', 'show help')
    .helpCommand('help [command]', 'show help for a command')
    .exitOverride()
    // Errors are printed in one place (errors.ts), with --json as a document.
    .configureOutput({
      outputError: () => {},
      // Help, when no command was given.
      writeErr: (text) => void (context.json || process.stderr.write(text)),
    });
  for (const register of COMMANDS) register(program, context);
  program.addHelpText(
    'after',
    `
Examples:
  hybrid-infer run "Once upon a time"              the demo model tells a tale
  hybrid-infer run ./prosparse-7b "Hello" -n 100   a Hugging Face folder, a .gguf file or a pack
  hybrid-infer <command> --help                    options and examples of one command`,
  );
  return program;
}
