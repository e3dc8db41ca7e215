/** Prometheus metrics: how many wait and run, how fast tokens come, what was cached and skipped, and the process. */
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { BackendResult } from './backend.js';

/** Seconds; from one layer's time of a small model to a prompt of thousands of tokens on a slow machine. */
const SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];
const TOKENS_PER_SECOND = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000];
const PREFIX = 'hybrid_infer_';

export class Metrics {
  readonly registry = new Registry();
  private readonly own = { registers: [this.registry] };

  readonly requests = new Counter({
    name: `${PREFIX}requests_total`,
    help: 'Requests by route and status.',
    labelNames: ['route', 'status'],
    ...this.own,
  });
  readonly queued = new Gauge({
    name: `${PREFIX}queued_sequences`,
    help: 'Sequences that wait for a slot.',
    labelNames: ['model'],
    ...this.own,
  });
  readonly running = new Gauge({
    name: `${PREFIX}running_sequences`,
    help: 'Slots in use.',
    labelNames: ['model'],
    ...this.own,
  });
  readonly slots = new Gauge({
    name: `${PREFIX}slots`,
    help: 'Sequences that may run at once.',
    labelNames: ['model'],
    ...this.own,
  });
  private readonly promptTokens = new Counter({
    name: `${PREFIX}prompt_tokens_total`,
    help: 'Prompt tokens.',
    labelNames: ['model'],
    ...this.own,
  });
  private readonly cachedTokens = new Counter({
    name: `${PREFIX}cached_prompt_tokens_total`,
    help: 'Prompt tokens whose keys and values were there already.',
    labelNames: ['model'],
    ...this.own,
  });
  private readonly generatedTokens = new Counter({
    name: `${PREFIX}generated_tokens_total`,
    help: 'Generated tokens.',
    labelNames: ['model'],
    ...this.own,
  });
  private readonly firstToken = new Histogram({
    name: `${PREFIX}time_to_first_token_seconds`,
    help: 'From the request to its first text, waiting included.',
    labelNames: ['model'],
    buckets: SECONDS,
    ...this.own,
  });
  private readonly speed = new Histogram({
    name: `${PREFIX}decode_tokens_per_second`,
    help: 'Decoding speed of each sequence.',
    labelNames: ['model'],
    buckets: TOKENS_PER_SECOND,
    ...this.own,
  });
  private readonly sparsity = new Gauge({
    name: `${PREFIX}sparsity`,
    help: 'Share of FFN neurons that were zero in the last sequence.',
    labelNames: ['model'],
    ...this.own,
  });
  private readonly predicted = new Gauge({
    name: `${PREFIX}predicted_sparsity`,
    help: 'Share of FFN neurons the predictor left out in the last sequence.',
    labelNames: ['model'],
    ...this.own,
  });
  private readonly recall = new Gauge({
    name: `${PREFIX}activation_recall`,
    help: 'Share of active neurons the predictor found, where it was measured last.',
    labelNames: ['model'],
    ...this.own,
  });

  constructor() {
    // The process's own: memory, processor time, the event loop's delay.
    collectDefaultMetrics({ register: this.registry });
  }

  firstText(model: string, seconds: number): void {
    this.firstToken.observe({ model }, seconds);
  }

  finished(model: string, { stats, tokens }: BackendResult): void {
    this.promptTokens.inc({ model }, stats.promptTokens);
    this.cachedTokens.inc({ model }, stats.cachedPromptTokens);
    this.generatedTokens.inc({ model }, tokens.length);
    if (stats.decodeTokensPerSecond > 0) this.speed.observe({ model }, stats.decodeTokensPerSecond);
    this.sparsity.set({ model }, stats.sparsity);
    if (stats.predictedSparsity !== null) this.predicted.set({ model }, stats.predictedSparsity);
    if (stats.recall !== null) this.recall.set({ model }, stats.recall);
  }
}
