/** The HTML report: self-contained, and its numbers are those of the artifacts. */
import { describe, expect, it } from 'vitest';
import type { Evaluation } from '../../src/evaluate/evaluate.js';
import type { ProfileArtifact } from '../../src/profiler/artifact.js';
import { layerHotness } from '../../src/profiler/hotness.js';
import type { ProfileResult } from '../../src/profiler/profile.js';
import { heatMap, reportCharts } from '../../src/report/charts.js';
import { htmlReport } from '../../src/report/html.js';
import { NFF, sampleArtifact } from '../predictor/sample-artifact.js';

const TOKENS = 100;
const predictor = sampleArtifact();
const profile: ProfileArtifact = {
  model: predictor.model,
  sources: [predictor.provenance],
  tokens: TOKENS,
  layers: [0, 1].map((l) => {
    const counts = Uint32Array.from({ length: NFF }, (_, i) => (i * (l + 2)) % 60);
    const coActivation = {
      neurons: 4,
      jaccard: 0.2,
      independent: 0.1,
      strongest: [{ a: 1, b: 2, jaccard: 0.5 }],
    };
    return { counts, coActivation, ...layerHotness(counts, TOKENS) };
  }),
};
const result: ProfileResult = {
  artifacts: { profile: 'a', predictor: 'b' },
  profile,
  predictor,
  evaluation: { perplexity: 10.1, densePerplexity: 10 } as Evaluation,
  target: 'recall 0.99',
  sparsified: null,
  attempts: [],
  memory: { limitBytes: 1e9, plannedBytes: 2e8, peakBytes: 1e8, diskBytes: 1e7 },
  seconds: {},
  fitSeconds: {},
  recordTokensPerSecond: null,
};

describe('the report', () => {
  const html = htmlReport(result);

  it('needs nothing from anywhere', () => {
    const outside = html.match(/(src|href)\s*=\s*["']?[^"'\s>]+/g) ?? [];
    expect(outside).toEqual([]);
    expect(html).not.toMatch(/@import|url\(/);
  });

  it('holds the charts as JSON that cannot leave its element', () => {
    const found = /<script id="charts" type="application\/json">([\s\S]*?)<\/script>/.exec(html)!;
    expect(JSON.parse(found[1])).toEqual(JSON.parse(JSON.stringify(reportCharts(profile, predictor))));
  });

  it('shows names as text, whatever they contain', () => {
    const named = structuredClone(predictor);
    named.model.name = '<img src=x onerror=alert(1)>';
    named.provenance.texts[0].name = '</script><b>';
    const page = htmlReport({ ...result, predictor: named });
    expect(page).not.toContain('<img');
    expect(page).not.toContain('</script><b>');
    expect(page).toContain('&lt;img');
  });

  it('states perplexity against dense', () => {
    expect(html).toContain('+1.000 %');
  });
});

describe('its charts', () => {
  const charts = new Map(reportCharts(profile, predictor).map((chart) => [chart.id, chart]));

  it('have one value per x in every column', () => {
    for (const { columns, series } of charts.values()) {
      expect(columns).toHaveLength(series.length + 1);
      expect(new Set(columns.map((column) => column.length)).size).toBe(1);
    }
  });

  it('show frequencies from the hottest neuron down', () => {
    const [, first] = charts.get('frequency')!.columns as number[][];
    expect(first[0]).toBeCloseTo(Math.max(...profile.layers[0].counts) / TOKENS);
    first.forEach((value, i) => i > 0 && expect(value).toBeLessThanOrEqual(first[i - 1]));
  });

  it('mark each chosen point once, at its own figures', () => {
    const { columns } = charts.get('recall')!;
    predictor.layers.forEach(({ heldOut }, l) => {
      const marked = columns[3 + l].flatMap((value, i) => (value === null ? [] : [[columns[0][i], value]]));
      expect(marked).toEqual([[heldOut.predictedSparsity, heldOut.recall]]);
    });
  });

  it('read recall off the curve between its points', () => {
    const { columns } = charts.get('recall')!;
    const at = columns[0].findIndex((x) => Math.abs(x! - 0.84) < 0.003);
    const x = columns[0][at]!;
    expect(columns[1][at]).toBeCloseTo(0.99 + ((0.9 - 0.99) * (x - 0.8)) / 0.08, 5);
  });

  it('average the heat map over neighbours, hottest first', () => {
    const [cells] = heatMap(profile);
    expect(cells[0]).toBeCloseTo(Math.max(...profile.layers[0].counts) / TOKENS);
    expect(cells.reduce((a, b) => a + b, 0) / cells.length).toBeCloseTo(1 - profile.layers[0].sparsity);
  });
});
