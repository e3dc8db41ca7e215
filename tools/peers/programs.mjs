/**
 * Peers that are programs of their own, started anew for every turn: `llama-bench` of llama.cpp or ik_llama.cpp, and
 * PowerInfer's `main`. Loading is not in their figures; their figures are taken from what they print.
 */
import { spawn, spawnSync } from 'node:child_process';
import { basename, dirname } from 'node:path';

/** @returns what a program wrote; a program that fails is an error that holds its last lines */
function output(path, args) {
  return new Promise((resolve, reject) => {
    const child = spawn(path, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    const text = { stdout: '', stderr: '' };
    for (const name of ['stdout', 'stderr'])
      child[name].setEncoding('utf8').on('data', (part) => (text[name] += part));
    child.on('error', reject);
    child.on('close', (code, signal) => {
      if (code === 0) return resolve(text);
      const last = text.stderr.trim().split('\n').slice(-3).join('\n');
      reject(new Error(`${path} ended with ${signal ?? `code ${code}`}:\n${last}`));
    });
  });
}

/** The folder's name of a build outside `bin` and `build`: which of several programs of one name this is. */
function origin(path) {
  let folder = dirname(path);
  while (/^(bin|build)/i.test(basename(folder))) folder = dirname(folder);
  return basename(folder);
}

/**
 * `llama-bench`: its prompt test and its test of generation after the prompt. What the program offers is read from
 * its help: ik_llama.cpp is asked to repack the weights as it loads them (`-rtr 1`).
 * @param path of the program
 * @returns {{name: string, ask(request: object): Promise<object>}}
 */
export function llamaBench(path, gguf, threads) {
  const help = spawnSync(path, ['--help'], { encoding: 'utf8' });
  if (help.error || !help.stdout.includes('--n-prompt')) {
    const found = help.error
      ? `it cannot be started (${help.error.code})`
      : 'its --help says nothing of --n-prompt';
    throw new Error(`${path} is no llama-bench: ${found}; name the program that llama.cpp's build made`);
  }
  const repacks = help.stdout.includes('-rtr');
  const common = [
    '-m',
    gguf,
    '-t',
    String(threads),
    '-r',
    '1',
    '-o',
    'json',
    '-ngl',
    '0',
    ...(repacks ? ['-rtr', '1'] : []),
  ];
  const last = async (args) => JSON.parse((await output(path, [...common, ...args])).stdout).at(-1).avg_ts;
  return {
    name: `${origin(path)} llama-bench${repacks ? ' -rtr 1' : ''}`,
    async ask({ prompt, generate }) {
      const after = help.stdout.includes('-gp')
        ? ['-gp', `${prompt},${generate}`]
        : ['-n', String(generate), '-d', String(prompt)];
      return {
        promptTokensPerSecond: await last(['-p', String(prompt), '-n', '0']),
        decodeTokensPerSecond: await last(['-p', '0', ...(after[0] === '-gp' ? ['-n', '0'] : []), ...after]),
      };
    },
  };
}

/** PowerInfer's `main` on what `hybrid-infer export --powerinfer` wrote, everything on the CPU. */
export function powerInfer(path, gguf, threads) {
  const rate = (text, what) => {
    const found = new RegExp(`: +${what} time = .*?([\\d.]+) tokens per second`).exec(text);
    if (!found) throw new Error(`${path} printed no "${what} time"`);
    return Number(found[1]);
  };
  return {
    name: 'PowerInfer',
    async ask({ prompt, generate }) {
      const text = Array.from({ length: prompt - 1 }, (_, i) =>
        String.fromCharCode(97 + ((7 * i) % 26)),
      ).join(' ');
      const { stderr } = await output(path, [
        ...[
          '-m',
          gguf,
          '-t',
          String(threads),
          '-n',
          String(generate + 1),
          '-c',
          String(4 * prompt + generate + 16),
        ],
        ...['-p', text, '--ignore-eos', '--temp', '0', '--vram-budget', '0'],
      ]);
      return {
        promptTokensPerSecond: rate(stderr, 'prompt eval'),
        decodeTokensPerSecond: rate(stderr, 'eval'),
      };
    },
  };
}
