/** `chat`: a conversation in the terminal; plain when its input is piped. */
import type { Interface } from 'node:readline';
import { Option, type Command } from 'commander';
import type { GenerationResult } from '../api/generation.js';
import type { GenerateOptions, HybridModel } from '../api/hybrid-model.js';
import type { Session } from '../api/session.js';
import { HybridError, UsageError } from '../errors.js';
import { MessageLines, openInput, saveHistory } from './chat-input.js';
import { changeSetting, SETTING_NAMES } from './chat-settings.js';
import { chatTemplateOption, templateOf } from './chat-template.js';
import type { CliContext } from './context.js';
import { modelPath } from './model-argument.js';
import {
  engineOptions,
  loadOptions,
  outputOptions,
  planOptions,
  type EngineFlags,
  type PlanFlags,
} from './options.js';
import { decimal, wholeNumber } from './parse.js';
import { statsLine } from './stats-line.js';

interface ChatFlags extends EngineFlags, PlanFlags {
  system?: string;
  chatTemplate?: string;
  maxTokens?: number;
  temperature?: number;
  seed?: number;
}

export function registerChat(program: Command, context: CliContext): void {
  const command = program
    .command('chat')
    .description('Talk to a model in the terminal; /help lists what may be typed.')
    .argument('[model]', 'model folder, .gguf file, pack or pulled model (default: the demo model)')
    .option('--system <text>', 'system prompt')
    .addOption(chatTemplateOption())
    .addOption(
      new Option('-n, --max-tokens <n>', 'most tokens of an answer').argParser(
        wholeNumber('--max-tokens', 1, 2 ** 24),
      ),
    )
    .addOption(
      new Option('--temp, --temperature <x>', '0 is greedy').argParser(decimal('--temperature', 0, 100)),
    )
    .addOption(
      new Option('--seed <n>', 'same seed, same answers').argParser(wholeNumber('--seed', 0, 2 ** 32 - 1)),
    );
  outputOptions(planOptions(engineOptions(command)))
    .addHelpText('after', EXAMPLES)
    .action((model: string | undefined, flags: ChatFlags) => chatCommand(context, model, flags));
}

const EXAMPLES = `
Ctrl-C stops an answer; Ctrl-D or /exit ends. Piped, every line is a message and
stdout holds the answers only.

Examples:
  hybrid-infer chat hf:owner/name --system "Be brief."
  hybrid-infer chat --chat-template plain
  printf 'Once upon a time\\n' | hybrid-infer chat --seed 7`;

const HELP = `/system [text]     show or set the system prompt
/set name value    ${SETTING_NAMES}; value default takes it back
/retry             answer the last message again
/reset             begin a new conversation
/save file         keep the conversation; /load file goes on with it
/stats             speed and sparsity of the last answer
/exit              end; so does Ctrl-D
A line that ends with \\ goes on in the next one; """ begins and ends several lines.`;

async function chatCommand(context: CliContext, model: string | undefined, flags: ChatFlags): Promise<void> {
  const path = modelPath(model);
  const chatTemplate = templateOf(flags.chatTemplate);
  const { HybridModel } = await import('../index.js');
  const loaded = await HybridModel.load(path, { ...loadOptions(context, flags), chatTemplate });
  context.progress.finish();
  const { maxTokens, temperature, seed } = flags;
  try {
    if (!loaded.chatForm)
      context.note(
        `${loaded.name} has no chat template: it continues what you type. --chat-template plain makes it a dialogue.`,
      );
    else context.note(`${loaded.name}; /help lists commands`);
    await new Repl(context, loaded, flags.system, { maxTokens, temperature, seed }).run();
  } finally {
    await loaded.close();
  }
}

interface Turn {
  user: string;
  assistant: string;
  stopReason: string;
  stats: GenerationResult['stats'];
}

class Repl {
  private readonly input = openInput();
  private readonly lines = new MessageLines();
  private readonly turns: Turn[] = [];
  private answering: AbortController | null = null;
  private session: Session;
  private last: GenerationResult | null = null;
  private readonly terminal = (this.input as Interface & { terminal: boolean }).terminal;

  constructor(
    private readonly context: CliContext,
    private readonly model: HybridModel,
    system: string | undefined,
    private readonly options: GenerateOptions,
  ) {
    this.session = model.session({ system });
  }

  async run(): Promise<void> {
    const { input, context } = this;
    input.on('SIGINT', () => this.interrupt());
    // Of a pipe there is no key to press: the signal ends the program.
    context.signal.addEventListener('abort', () => input.close(), { once: true });
    this.prompt();
    try {
      for await (const line of input) {
        if (!(await this.take(line)) || context.signal.aborted) break;
        this.prompt();
      }
      if (this.lines.open && !context.signal.aborted) await this.answer(this.lines.take());
    } finally {
      if (this.terminal) await saveHistory(input);
      input.close();
    }
    if (this.terminal) context.endLine();
    if (context.json)
      context.printJson({ model: this.model.name, system: this.session.system, turns: this.turns });
  }

  /** @returns false: the user wants to end */
  private async take(line: string): Promise<boolean> {
    if (!this.lines.open && /^\/\w/.test(line)) {
      const [name, ...rest] = line.trim().split(/\s+/);
      if (name === '/exit' || name === '/quit' || name === '/bye') return false;
      await this.orSay(() => this.command(name, line.trim().slice(name.length).trim(), rest));
      return true;
    }
    const message = this.lines.push(line);
    if (message !== null && message.trim() !== '') await this.answer(message);
    return true;
  }

  private async command(name: string, text: string, words: string[]): Promise<void> {
    const { session, context } = this;
    switch (name) {
      case '/help':
        return context.note(HELP);
      case '/system':
        if (text !== '' && !this.model.chatForm)
          throw new UsageError('without a chat template there is no system prompt', 'See --chat-template.');
        if (text !== '') session.system = text;
        return context.note(session.system === null ? 'no system prompt' : `system: ${session.system}`);
      case '/set':
        if (words.length !== 2)
          throw new UsageError('/set takes a name and a value', `There are ${SETTING_NAMES}.`);
        changeSetting(this.options, words[0], words[1]);
        return context.note(`${words[0]} is ${words[1]}`);
      case '/reset':
        session.reset();
        return context.note('a new conversation');
      case '/save':
        await session.save(required(text, '/save'));
        return context.note(`saved in ${text}`);
      case '/load':
        this.session = await this.model.restoreSession(required(text, '/load'));
        return context.note(`${this.lengthOfTalk()} from ${text}`);
      case '/stats':
        return context.note(this.last ? statsLine(this.last, this.model.gpuNote) : 'no answer yet');
      case '/retry': {
        const question = session.retract();
        if (question === null) throw new UsageError('there is nothing to answer again');
        this.turns.pop();
        return this.answer(question);
      }
      default:
        throw new UsageError(`no command ${name}`, '/help lists them.');
    }
  }

  private async answer(message: string): Promise<void> {
    const { session, context } = this;
    await this.orSay(async () => {
      const stop = new AbortController();
      this.answering = stop;
      try {
        const options = { ...this.options, signal: AbortSignal.any([stop.signal, context.signal]) };
        const answer = this.model.chatForm
          ? session.chat(message, options)
          : session.generate(message, options);
        for await (const piece of answer) if (!context.json) context.write(piece);
        const result = (this.last = await answer);
        // What was not answered at all is not remembered.
        if (result.text === '' && result.stopReason === 'abort') session.retract();
        this.turns.push({
          user: message,
          assistant: result.text,
          stopReason: result.stopReason,
          stats: result.stats,
        });
        if (!context.json) context.endLine();
        if (stop.signal.aborted) context.note('(stopped)');
      } finally {
        this.answering = null;
      }
    });
  }

  private lengthOfTalk(): string {
    const { messages, length } = this.session;
    return this.model.chatForm ? `${messages.length} messages` : `${length} tokens`;
  }

  /** A mistake is told, and the conversation goes on; a program that talks to us through a pipe wants the exit code. */
  private async orSay(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (!(error instanceof HybridError) || !this.terminal) throw error;
      this.context.endLine();
      const hint = error.code === 'CONTEXT_FULL' ? '/reset begins a new conversation.' : error.hint;
      this.context.note(`${error.message}${hint ? `\n${hint}` : ''}`);
    }
  }

  private interrupt(): void {
    if (this.answering) return this.answering.abort();
    this.lines.take();
    this.context.write('\n');
    this.context.note('Ctrl-D or /exit ends');
    this.prompt();
  }

  private prompt(): void {
    if (!this.terminal) return;
    this.input.setPrompt(this.lines.open ? '... ' : '>>> ');
    this.input.prompt();
  }
}

function required(text: string, command: string): string {
  if (text === '') throw new UsageError(`${command} takes the name of a file`);
  return text;
}
