/** `serve`: models behind OpenAI's HTTP API and a page. */
import { Option, type Command } from 'commander';
import { HybridError, UsageError } from '../errors.js';
import { readSmallText } from '../io/regular-file.js';
import type { Service } from '../serve/service.js';
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
import { byteSize, collect, oneOf, wholeNumber } from './parse.js';

interface ServeFlags extends EngineFlags, PlanFlags {
  host: string;
  port: number;
  slots?: number;
  apiKey?: string[];
  apiKeyFile?: string;
  cors?: string[];
  allowHost?: string[];
  chatTemplate?: string;
  maxBody?: number;
  maxQueue?: number;
  queueTimeout?: number;
  requestTimeout?: number;
  drainTimeout?: number;
  maxConnections?: number;
  maxChoices?: number;
  logLevel: (typeof LOG_LEVELS)[number];
}

const LOG_LEVELS = ['silent', 'error', 'warn', 'info', 'debug'] as const;
const DEFAULT_PORT = 8080;
const MAX_SECONDS = 86_400;
/** As the engine checks it again. */
const MAX_SLOTS = 256;
const MAX_KEY_FILE_BYTES = 1 << 16;

export function registerServe(program: Command, context: CliContext): void {
  const number = (flag: string, help: string, max: number): Option =>
    new Option(flag, help).argParser(wholeNumber(flag.split(' ')[0], 1, max));
  const command = program
    .command('serve')
    .description('Serve models over OpenAI’s HTTP API, with a chat page at /.')
    .argument('[models...]', 'model folders, .gguf files, packs or pulled models (default: the demo model)')
    .option('--host <address>', 'address to listen on', '127.0.0.1')
    .addOption(
      new Option('-p, --port <n>', '0: any that is free')
        .argParser(wholeNumber('--port', 0, 65535))
        .default(DEFAULT_PORT),
    )
    .addOption(
      new Option('--api-key <key>', 'a key that requests must carry; may be repeated').argParser(collect),
    )
    .option('--api-key-file <file>', 'keys, one a line (also: HYBRID_INFER_API_KEY)')
    .addOption(
      new Option('--cors <origin>', 'pages of this origin may call; may be repeated').argParser(collect),
    )
    .addOption(
      new Option('--allow-host <name>', 'a name this server is called by; may be repeated').argParser(
        collect,
      ),
    )
    .addOption(chatTemplateOption())
    .addOption(number('--slots <n>', 'sequences that run at once (default: 4)', MAX_SLOTS))
    .addOption(
      new Option('--max-body <size>', 'largest request (default: 1MiB)').argParser(byteSize('--max-body')),
    )
    .addOption(number('--max-queue <n>', 'sequences that may wait for a slot (default: 64)', 100_000))
    .addOption(number('--queue-timeout <s>', 'longest wait for a slot (default: 30)', MAX_SECONDS))
    .addOption(number('--request-timeout <s>', 'longest request (default: 600)', MAX_SECONDS))
    .addOption(
      number(
        '--drain-timeout <s>',
        'longest wait for running requests at the end (default: 600)',
        MAX_SECONDS,
      ),
    )
    .addOption(number('--max-connections <n>', 'connections at once (default: 256)', 65_535))
    .addOption(number('--max-choices <n>', 'choices of one request (default: 16)', 128))
    .addOption(
      new Option('--log-level <level>', 'log lines on stderr')
        .argParser(oneOf('--log-level', LOG_LEVELS))
        .default('info'),
    );
  outputOptions(planOptions(engineOptions(command)))
    .addHelpText('after', EXAMPLES)
    .action((models: string[], flags: ServeFlags) => serveCommand(context, models, flags));
}

const EXAMPLES = `
SIGTERM and Ctrl-C let running requests finish; a second one does not wait.

Examples:
  hybrid-infer serve --chat-template plain
  hybrid-infer serve hf:owner/name --port 8000 --api-key-file keys.txt
  curl http://127.0.0.1:8080/v1/completions -H 'content-type: application/json' \\
    -d '{"prompt": "Once upon a time", "max_tokens": 40}'`;

async function serveCommand(
  context: CliContext,
  models: readonly string[],
  flags: ServeFlags,
): Promise<void> {
  const paths = (models.length > 0 ? models : [undefined]).map(modelPath);
  if (paths.length > 1 && (flags.profile || flags.predictor))
    throw new UsageError(
      '--profile and --predictor belong to one model',
      'Serve one model, or let them be found by name.',
    );
  const keys = apiKeys(flags);
  const template = templateOf(flags.chatTemplate);
  const [{ pino }, { Service }, { ApiServer }, { DEFAULT_LIMITS }] = await Promise.all([
    import('pino'),
    import('../serve/service.js'),
    import('../serve/server.js'),
    import('../serve/limits.js'),
  ]);
  const seconds = (value: number | undefined, otherwise: number): number =>
    value === undefined ? otherwise : value * 1000;
  const limits = {
    ...DEFAULT_LIMITS,
    bodyBytes: flags.maxBody ?? DEFAULT_LIMITS.bodyBytes,
    queue: flags.maxQueue ?? DEFAULT_LIMITS.queue,
    queueMs: seconds(flags.queueTimeout, DEFAULT_LIMITS.queueMs),
    requestMs: seconds(flags.requestTimeout, DEFAULT_LIMITS.requestMs),
    drainMs: seconds(flags.drainTimeout, DEFAULT_LIMITS.drainMs),
    connections: flags.maxConnections ?? DEFAULT_LIMITS.connections,
    choices: flags.maxChoices ?? DEFAULT_LIMITS.choices,
  };
  const level = context.quiet ? 'error' : flags.logLevel;
  const log = pino({ level, base: null }, pino.destination({ dest: 2, sync: true }));
  const service = new Service(limits, log);
  const local = /^(127\.|localhost$|::1$)/.test(flags.host);
  const server = await ApiServer.listen(service, {
    host: flags.host,
    port: flags.port,
    keys,
    corsOrigins: flags.cors ?? [],
    hosts: local ? (flags.allowHost ?? []).map((name) => name.toLowerCase()) : null,
  });
  if (!local && keys.length === 0)
    log.warn(`anybody who reaches ${flags.host} may use this server: set --api-key`);
  try {
    await load(context, service, paths, flags, template);
    const names = [...service.models.keys()];
    if (context.json) context.printJson({ url: server.url, models: names });
    else context.print(`${server.url}  ${names.join(', ')}`);
    await untilInterrupted(context.signal);
    log.info('draining');
  } finally {
    await server.drain();
  }
  context.settleInterruption();
}

async function load(
  context: CliContext,
  service: Service,
  paths: readonly string[],
  flags: ServeFlags,
  template: string | undefined,
): Promise<void> {
  const [{ HybridModel }, { HybridBackend }, { ServedModel }] = await Promise.all([
    import('../index.js'),
    import('../serve/backend.js'),
    import('../serve/served-model.js'),
  ]);
  for (const path of paths) {
    const model = await HybridModel.load(path, {
      ...loadOptions(context, flags),
      slots: flags.slots,
      chatTemplate: template,
    });
    if (service.models.has(model.name)) {
      await model.close();
      throw new UsageError(
        `two models are called ${model.name}`,
        'Serve them from two servers, or rename a folder.',
      );
    }
    service.add(new ServedModel(new HybridBackend(model), service.limits));
  }
  context.progress.finish();
  service.state = 'ready';
}

const untilInterrupted = (signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener('abort', () => resolve(), { once: true });
  });

function apiKeys(flags: ServeFlags): string[] {
  const fromFile =
    flags.apiKeyFile === undefined
      ? ''
      : readSmallText(
          flags.apiKeyFile,
          MAX_KEY_FILE_BYTES,
          (message) => new HybridError('FILE_INVALID', message),
        );
  const keys = [...(flags.apiKey ?? []), process.env.HYBRID_INFER_API_KEY ?? '', ...fromFile.split('\n')]
    .map((key) => key.trim())
    .filter((key) => key !== '' && !key.startsWith('#'));
  if (keys.some((key) => !/^[\x21-\x7e]{1,512}$/.test(key)))
    throw new UsageError('an API key has spaces or more than 512 characters');
  if (flags.apiKeyFile !== undefined && keys.length === 0)
    throw new UsageError(`${flags.apiKeyFile} holds no keys`);
  return keys;
}
