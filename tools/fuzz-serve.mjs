/** 100,000 damaged requests against the server (or as many as said): node tools/fuzz-serve.mjs [requests] [seed] */
import { spawnSync } from 'node:child_process';

const [requests = '100000', seed = '1'] = process.argv.slice(2);
const { status } = spawnSync(
  'npx',
  ['vitest', 'run', 'test/serve/fuzz.test.ts', '--disable-console-intercept'],
  {
    stdio: 'inherit',
    env: { ...process.env, FUZZ_REQUESTS: requests, FUZZ_SEED: seed },
  },
);
process.exit(status ?? 1);
