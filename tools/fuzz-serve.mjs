/**
 * Damaged requests against the server, in rounds with seeds of their own:
 *
 *     node tools/fuzz-serve.mjs [requests a round, 25000] [first seed, 1] [rounds, 4]
 */
import { spawnSync } from 'node:child_process';

const [requests = '25000', first = '1', rounds = '4'] = process.argv.slice(2);
for (let round = 0; round < Number(rounds); round++) {
  const { status } = spawnSync(
    'npx',
    ['vitest', 'run', 'test/serve/fuzz.test.ts', '--disable-console-intercept'],
    {
      stdio: 'inherit',
      env: { ...process.env, FUZZ_REQUESTS: requests, FUZZ_SEED: String(Number(first) + round) },
    },
  );
  if (status !== 0) process.exit(status ?? 1);
}
