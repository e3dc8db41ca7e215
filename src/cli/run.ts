/** `run`: generate text. Text goes to stdout as it comes, statistics to stderr. */
import { existsSync } from 'node:fs';
import { addAbortSignal } from 'node:stream';
import { Option, type Command } from 'commander';
import type { GenerateOptions, HybridModel } from '../api/hybrid-model.js';
import type { Generation, GenerationResult } from '../api/generation.js';
import { UsageError } from '../errors.js';
import { isHubName } from '../hub/repository.js';
import { writeFileAtomic } from '../io/atomic-write.js';
import type { CliContext } from './context.js';
import { modelAndPrompt, modelPath } from './model-argument.js';
import {
  engineOptions,
  loadOptions,
  outputOptions,
  planOptions,
  type EngineFlags,
  type PlanFlags,
} from './options.js';
import { collect, decimal, wholeNumber } from './parse.js';
import { statsLine } from './stats-line.js';

interface RunFlags extends EngineFlags, PlanFlags {
  prompt?: string;
  maxTokens?: number;
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repeatPenalty?: number;
  presencePenalty?: number;
  frequencyPenalty?: number;
  speculate?: string;
  seed?: number;
  stop?: string[];
  greedy?: boolean;
  chat?: boolean;
  system?: string;
  ignoreEos?: boolean;
  measureRecall?: boolean;
  trace?: string;
}

/** No context is longer; a number above it is a typing error. */
const MAX_TOKENS = 2 ** 24;
/** A prompt of this size fills every context; reading on would only fill memory. */
const MAX_PROMPT_BYTES = 64 * 2 ** 20;

/** Waiting without a sign of life: shorter prompts are done before anybody wonders. */
const PATIENCE_MS = 500;

export function registerRun(program: Command, context: CliContext): void {
  const command = program
    .command('run')
    .description('Generate text.')
    .argument('[model]', 'model folder, .gguf file or pack (default: the demo model)')
    .argument('[prompt]', 'text to continue; - reads it from stdin')
    .addOption(
      new Option(
        '-n, --max-tokens <n>',
        "most tokens to generate (default: the model's, else 256)",
      ).argParser(wholeNumber('--max-tokens', 0, MAX_TOKENS)),
    )
    .option('-p, --prompt <text>', 'the prompt by name')
    .addOption(
      new Option('--temp, --temperature <x>', '0 is greedy').argParser(decimal('--temperature', 0, 100)),
    )
    .addOption(
      new Option('--top-k <n>', 'keep the n likeliest tokens; 0: all').argParser(
        wholeNumber('--top-k', 0, 2 ** 31 - 1),
      ),
    )
    .addOption(
      new Option('--top-p <x>', 'keep the likeliest tokens that add up to x').argParser(
        decimal('--top-p', 0, 1),
      ),
    )
    .addOption(
      new Option('--min-p <x>', 'drop tokens below x times the likeliest').argParser(
        decimal('--min-p', 0, 1),
      ),
    )
    .addOption(
      new Option('--repeat-penalty <x>', 'above 1: repeat less').argParser(
        decimal('--repeat-penalty', 0.01, 100),
      ),
    )
    .addOption(
      new Option('--presence-penalty <x>', 'above 0: prefer tokens that are not there yet').argParser(
        decimal('--presence-penalty', -2, 2),
      ),
    )
    .addOption(
      new Option(
        '--frequency-penalty <x>',
        'above 0: the more often a token is there, the less of it',
      ).argParser(decimal('--frequency-penalty', -2, 2)),
    )
    .option(
      '--speculate <how>',
      'ngram: propose what the text repeats, or the path of a small draft model; the text stays the same',
      'off',
    )
    .addOption(
      new Option('--seed <n>', 'same seed, same text').argParser(wholeNumber('--seed', 0, 2 ** 32 - 1)),
    )
    .addOption(new Option('--stop <text>', 'end at this text; may be repeated').argParser(collect))
    .option('--greedy', 'always take the likeliest token')
    .option('--chat', "put the prompt into the model's chat template")
    .option('--system <text>', 'system prompt; implies --chat')
    .option('--ignore-eos', "go on after the model's end token")
    .option('--measure-recall', 'compute the full gate beside the predictor and report recall')
    .option('--trace <file>', 'write what lanes and GPU did when, for chrome://tracing or Perfetto');
  outputOptions(planOptions(engineOptions(command)))
    .addHelpText('after', EXAMPLES)
    .action((first: string | undefined, second: string | undefined, flags: RunFlags) =>
      run(context, first, second, flags),
    );
}

const EXAMPLES = `
A single argument is the model when such a path exists, and otherwise a prompt
for the demo model.

Examples:
  hybrid-infer run "Once upon a time" --seed 7
  hybrid-infer run ./prosparse-7b "The capital of France is" -n 20 --greedy
  hybrid-infer run model.gguf --chat --system "Be brief." "What is a neuron?"
  echo "Once upon a time" | hybrid-infer run - --json`;

async function run(
  context: CliContext,
  first: string | undefined,
  second: string | undefined,
  flags: RunFlags,
): Promise<void> {
  const { model: path, prompt: given } = modelAndPrompt(first, second, flags.prompt);
  const generate = generateOptions(context, flags);
  const chat = flags.chat || flags.system !== undefined;
  if (chat && given === undefined)
    throw new UsageError('--chat needs a prompt', 'Put the question last, in quotes.');
  const prompt = given === '-' ? await readPrompt(context) : (given ?? '');

  // Loaded late, so that --help and usage errors answer at once.
  const { HybridModel } = await import('../index.js');
  const timeline = flags.trace !== undefined;
  const model = await HybridModel.load(path, { ...loadOptions(context, flags), timeline });
  try {
    const generation = chat
      ? model.chat(conversation(flags.system, prompt), generate)
      : model.generate(prompt, generate);
    const shown = chat ? '' : prompt;
    const result = context.json ? await generation : await stream(context, generation, shown);
    if (flags.trace !== undefined)
      await writeFileAtomic(flags.trace, JSON.stringify(model.engine.chromeTrace()));
    if (context.json) context.printJson(toJson(model, result));
    else context.note(statsLine(result, model.gpuNote));
  } finally {
    await model.close();
  }
}

function generateOptions(context: CliContext, flags: RunFlags): GenerateOptions {
  if (flags.greedy && flags.temperature) {
    throw new UsageError(`--greedy and --temperature ${flags.temperature} contradict each other`);
  }
  if (flags.topP === 0)
    throw new UsageError('--top-p is 0, expected a number above 0', 'For the likeliest token use --greedy.');
  return {
    maxTokens: flags.maxTokens,
    temperature: flags.greedy ? 0 : flags.temperature,
    topK: flags.topK,
    topP: flags.topP,
    minP: flags.minP,
    repetitionPenalty: flags.repeatPenalty,
    presencePenalty: flags.presencePenalty,
    frequencyPenalty: flags.frequencyPenalty,
    speculate: speculation(flags.speculate),
    seed: flags.seed,
    stop: flags.stop,
    ignoreEos: flags.ignoreEos,
    measureRecall: flags.measureRecall,
    signal: context.signal,
    onPrompt: promptProgress(context),
  };
}

/** Progress of prompts that take long enough to wonder. */
function promptProgress(context: CliContext): (done: number, total: number) => void {
  let began: number | null = null;
  return (done, total) => {
    began ??= performance.now();
    if (performance.now() - began < PATIENCE_MS) return;
    context.progress.report({ stage: 'prompt', done, total, unit: 'tokens' });
  };
}

const conversation = (system: string | undefined, prompt: string): { role: string; content: string }[] => [
  ...(system === undefined ? [] : [{ role: 'system', content: system }]),
  { role: 'user', content: prompt },
];

/** On a terminal the text reads on from its prompt; stdout itself holds generated text only. */
function echoPrompt(context: CliContext, prompt: string): void {
  if (context.json || context.quiet || !process.stdout.isTTY || !process.stderr.isTTY) return;
  context.progress.finish();
  const [dim, plain] = process.env.NO_COLOR ? ['', ''] : ['\x1b[2m', '\x1b[0m'];
  process.stderr.write(`${dim}${prompt}${plain}`);
}

async function stream(
  context: CliContext,
  generation: Generation,
  prompt: string,
): Promise<GenerationResult> {
  let begun = false;
  for await (const piece of generation) {
    if (!begun) echoPrompt(context, prompt);
    begun = true;
    context.write(piece);
  }
  context.endLine();
  return generation;
}

/** All of stdin, without its last line break. */
async function readPrompt(context: CliContext): Promise<string> {
  if (process.stdin.isTTY) context.note('Reading the prompt from the terminal; end it with Ctrl-D.');
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of addAbortSignal(context.signal, process.stdin)) {
    bytes += (chunk as Buffer).length;
    if (bytes > MAX_PROMPT_BYTES)
      throw new UsageError(`the prompt on stdin is longer than ${MAX_PROMPT_BYTES} bytes`);
    chunks.push(chunk as Buffer);
  }
  return Buffer.concat(chunks)
    .toString('utf8')
    .replace(/\r?\n$/, '');
}

/** Field names are a contract: docs/json.md. */
const toJson = (model: HybridModel, result: GenerationResult): object => ({
  model: model.name,
  text: result.text,
  tokens: result.tokens,
  stopReason: result.stopReason,
  seed: result.seed,
  stats: result.stats,
  gpuNote: model.gpuNote,
  layers: result.layers.map((layer, index) => ({ layer: index, ...layer })),
});

/** @throws UsageError for what is no word it knows and no file */
function speculation(how = 'off'): GenerateOptions['speculate'] {
  if (how === 'off') return false;
  if (how === 'ngram') return 'ngram';
  if (isHubName(how) || existsSync(how)) return { draft: modelPath(how) };
  throw new UsageError(
    `--speculate is ${JSON.stringify(how)}, expected ngram, off, or the path of a small model with the same tokenizer`,
  );
}
