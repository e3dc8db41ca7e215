/**
 * Container and workflow files, as far as they can be checked without an engine that runs them: they parse, and what
 * they name is there.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { parse, parseAllDocuments } from 'yaml';
import { CliContext } from '../../src/cli/context.js';
import { buildProgram } from '../../src/cli/program.js';

const read = (file: string): string => readFileSync(file, 'utf8');
const manifest = JSON.parse(read('package.json')) as { scripts: Record<string, string> };
const program = buildProgram(new CliContext([]));

/** A command line of this program: a command that is there, and only options that it has. */
function expectCommand([name, ...rest]: string[]): void {
  const command = program.commands.find((one) => one.name() === name);
  expect(command, `command ${name}`).toBeDefined();
  const known = command!.options.flatMap(({ long, short }) => [long, short]);
  expect(rest.filter((word) => word.startsWith('-') && !known.includes(word))).toEqual([]);
}

/** Scripts and files that lines of a shell name. */
function expectShell(text: string): void {
  const scripts = [...text.matchAll(/npm (?:run (\S+)|(test|pack)\b)/g)].map(([, run, word]) => run ?? word);
  expect(scripts.filter((script) => script !== 'pack' && !(script in manifest.scripts))).toEqual([]);
  const files = [...text.matchAll(/\b((?:tools|test|examples)\/[\w./-]+)/g)].map(([, file]) => file);
  expect(files.filter((file) => !existsSync(file))).toEqual([]);
}

interface Step {
  run?: string;
  uses?: string;
}

describe.each(readdirSync('.github/workflows'))('workflow %s', (name) => {
  const workflow = parse(read(`.github/workflows/${name}`)) as {
    jobs: Record<string, { needs?: string; steps: Step[]; 'timeout-minutes': number }>;
  };
  const jobs = Object.values(workflow.jobs);

  it('has jobs that end, whose needs are jobs', () => {
    expect(jobs.length).toBeGreaterThan(0);
    for (const job of jobs) {
      expect(job['timeout-minutes']).toBeGreaterThan(0);
      if (job.needs !== undefined) expect(Object.keys(workflow.jobs)).toContain(job.needs);
    }
  });

  it('runs scripts and files that are there, and actions of a named version', () => {
    for (const { run, uses } of jobs.flatMap((job) => job.steps)) {
      if (run !== undefined) expectShell(run);
      else expect(uses).toMatch(/^[\w-]+\/[\w-]+@v\d+$/);
    }
  });
});

describe('containers', () => {
  const lines = read('Dockerfile').replace(/\\\n/g, ' ').split('\n');
  const exec = (name: string): string[] =>
    JSON.parse(lines.find((line) => line.startsWith(`${name} [`))!.slice(name.length)) as string[];

  it('the image starts this command, as another user', () => {
    expect(exec('ENTRYPOINT')).toEqual(['hybrid-infer']);
    expectCommand(exec('CMD'));
    expect(lines).toContain('USER node');
    expectShell(lines.filter((line) => line.startsWith('RUN')).join('\n'));
  });

  it('compose mounts volumes that it names, and its root is read-only', () => {
    const compose = parse(read('compose.yaml')) as {
      services: Record<string, { volumes: string[]; read_only: boolean; command?: string[] }>;
      volumes: Record<string, unknown>;
    };
    const [service] = Object.values(compose.services);
    expect(service.read_only).toBe(true);
    const named = service.volumes
      .map((volume) => volume.split(':')[0])
      .filter((name) => !name.startsWith('.'));
    expect(named.filter((name) => !(name in compose.volumes))).toEqual([]);
    // The model that a comment names as an example.
    expectCommand(parse(/# command: (\[.*\])/.exec(read('compose.yaml'))![1]) as string[]);
  });

  it("Kubernetes' parts belong together: labels, ports, claims, probes", () => {
    const documents = parseAllDocuments(read('deploy/kubernetes.yaml'));
    expect(documents.flatMap(({ errors }) => errors)).toEqual([]);
    const all = documents.map((document) => document.toJS() as { kind: string });
    const ofKind = <T>(kind: string): T => all.find((one) => one.kind === kind) as T;
    const { spec } = ofKind<{
      spec: { selector: { matchLabels: object }; template: { metadata: { labels: object }; spec: Pod } };
    }>('Deployment');
    const service = ofKind<{ spec: { selector: object; ports: { targetPort: string }[] } }>('Service');
    const claim = ofKind<{ metadata: { name: string } }>('PersistentVolumeClaim');
    expect(spec.template.metadata.labels).toMatchObject(spec.selector.matchLabels);
    expect(spec.template.metadata.labels).toMatchObject(service.spec.selector);
    const [container] = spec.template.spec.containers;
    expectCommand(container.args);
    expect(container.ports.map(({ name }) => name)).toContain(service.spec.ports[0].targetPort);
    const drain = Number(container.args[container.args.indexOf('--drain-timeout') + 1]);
    expect(spec.template.spec.terminationGracePeriodSeconds).toBeGreaterThan(drain);
    const volumes = spec.template.spec.volumes;
    const mounted = container.volumeMounts.map(({ name }) => name);
    expect(mounted.filter((name) => !volumes.some((volume) => volume.name === name))).toEqual([]);
    expect(volumes.find((volume) => volume.persistentVolumeClaim)?.persistentVolumeClaim?.claimName).toBe(
      claim.metadata.name,
    );
  });
});

interface Pod {
  terminationGracePeriodSeconds: number;
  containers: { args: string[]; ports: { name: string }[]; volumeMounts: { name: string }[] }[];
  volumes: { name: string; persistentVolumeClaim?: { claimName: string } }[];
}
