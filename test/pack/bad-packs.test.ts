import { execFileSync } from 'node:child_process';
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeAll, describe, expect, it } from 'vitest';
import { HybridError } from '../../src/errors.js';
import { convert } from '../../src/pack/convert.js';
import { PACK_VERSION, PREFIX_BYTES } from '../../src/pack/format.js';
import { openPack } from '../../src/pack/reader.js';
import type { PackHeader } from '../../src/pack/types.js';
import { tempFolder } from '../helpers/tiny-models.js';
import { headerText, withHeaderText } from './forge.js';
import { memorySource, tinyModelConfig } from './memory-source.js';

const folder = tempFolder();
let valid: Buffer;

beforeAll(async () => {
  const config = tinyModelConfig({
    hiddenSize: 32,
    intermediateSize: 32,
    headDim: 8,
    layers: 1,
    vocabSize: 8,
  });
  const path = join(folder, 'valid.pack');
  await convert(memorySource(config), path, { quant: 'q4', threads: 1 });
  valid = readFileSync(path);
});

/** Opens the file; a typed error is returned, anything else thrown. */
function opened(path: string): 'opened' | HybridError {
  try {
    openPack(path).close();
    return 'opened';
  } catch (error) {
    if (error instanceof HybridError) return error;
    throw error;
  }
}

function openBytes(bytes: Uint8Array): 'opened' | HybridError {
  const path = join(folder, 'bytes.pack');
  writeFileSync(path, bytes);
  return opened(path);
}

function openForged(change: (header: PackHeader) => void): 'opened' | HybridError {
  const header = JSON.parse(headerText(valid)) as PackHeader;
  change(header);
  return openBytes(withHeaderText(valid, JSON.stringify(header)));
}

const code = (result: 'opened' | HybridError) => (result === 'opened' ? result : result.code);
const message = (result: 'opened' | HybridError) => (result === 'opened' ? result : result.message);

describe('openPack refuses', () => {
  it('a pack cut off at any byte (L1)', () => {
    const path = join(folder, 'cut.pack');
    writeFileSync(path, valid);
    const fd = openSync(path, 'r+');
    for (let bytes = valid.length - 1; bytes >= 0; bytes--) {
      ftruncateSync(fd, bytes);
      expect(code(opened(path))).toBe('PACK_INVALID');
    }
    closeSync(fd);
  });

  it('any bit flipped before the first section (L2)', () => {
    const path = join(folder, 'flip.pack');
    writeFileSync(path, valid);
    const fd = openSync(path, 'r+');
    const end = PREFIX_BYTES + valid.readUInt32LE(12) + 64; // the padding after the header too
    for (let at = 0; at < end; at++) {
      for (let bit = 0; bit < 8; bit++) {
        writeSync(fd, Uint8Array.of(valid[at] ^ (1 << bit)), 0, 1, at);
        const result = opened(path);
        if (code(result) !== 'PACK_INVALID') throw new Error(`bit ${bit} of byte ${at}: ${message(result)}`);
      }
      writeSync(fd, valid, at, 1, at);
    }
    expect(opened(path)).toBe('opened');
    closeSync(fd);
  });

  it.each([0, 1, 2 ** 31, 2 ** 32 - 1])('a header length of %d (L3)', (length) => {
    const bytes = Buffer.from(valid);
    bytes.writeUInt32LE(length, 12);
    expect(code(openBytes(bytes))).toBe('PACK_INVALID');
  });

  it('overlapping, reversed, misaligned and far away sections (L4, L5), naming the section', () => {
    const bad: ((h: PackHeader) => void)[] = [
      (h) => (h.layers[0].gate.offset = h.layers[0].o.offset),
      (h) =>
        ([h.layers[0].gate.offset, h.layers[0].ffn.offset] = [
          h.layers[0].ffn.offset,
          h.layers[0].gate.offset,
        ]),
      (h) => (h.layers[0].gate.offset += 1),
      (h) => (h.layers[0].gate.offset = 2 ** 50),
      (h) => (h.layers[0].gate.offset -= 64),
    ];
    for (const change of bad)
      expect(message(openForged(change))).toMatch(/section layers\.0\.gate: expected offset/);
  });

  it('sections whose size or shape contradicts the config (L6, L8, L9)', () => {
    const bad: [(h: PackHeader) => void, RegExp][] = [
      [(h) => (h.layers[0].ffn.rows += 1), /layers\.0\.ffn: expected rows/],
      [(h) => (h.layers[0].ffn.stride *= 2), /layers\.0\.ffn: expected stride/],
      [(h) => (h.layers[0].ffn.bytes = 0), /layers\.0\.ffn: expected bytes/],
      [(h) => (h.layers[0].gate.format = 'q8'), /layers\.0\.gate: expected bytes|expected stride/],
      [(h) => (h.embed.rows = Number.MAX_SAFE_INTEGER), /embed: expected rows/],
      [(h) => (h.embed.cols = -1), /embed\.cols/],
      [(h) => (h.embed.cols = 1.5), /embed\.cols/],
      [(h) => (h.embed.cols = 2 ** 53), /embed\.cols/],
      [(h) => ((h.embed as { cols: unknown }).cols = '32'), /embed\.cols/],
      [(h) => (h.lmHead = null), /section lmHead is missing/],
      [(h) => (h.fileBytes += 64), /fileBytes/],
      [(h) => ((h.embed as { format: string }).format = 'q3'), /embed\.format/],
    ];
    for (const [change, expected] of bad) expect(message(openForged(change))).toMatch(expected);
  });

  it('a config outside all limits, before anything is computed from it (L12)', () => {
    const bad: [(h: PackHeader) => void, RegExp][] = [
      [(h) => (h.config.layers = 0), /config\.layers/],
      [(h) => (h.config.layers = 1e9), /config\.layers/],
      [(h) => (h.config.layers = 2), /2 layers.*describes 1/],
      [(h) => (h.config.kvHeads = 3), /kvHeads must divide heads/],
      [(h) => (h.config.headDim = 7), /headDim/],
      [(h) => (h.config.hiddenSize = 2 ** 40), /hiddenSize/],
      [(h) => ((h.config.rmsEpsilon as unknown) = null), /rmsEpsilon/],
      [(h) => ((h.config.activation as { kind: string }).kind = 'mish'), /activation\.kind/],
    ];
    for (const [change, expected] of bad) expect(message(openForged(change))).toMatch(expected);
  });

  it('duplicate keys, foreign keys, deep nesting and other spellings of the header (L10, L20)', () => {
    const text = headerText(valid);
    const bad = [
      text.replace('{"toolVersion"', '{"name":"x","toolVersion"'),
      text.replace('{"toolVersion"', '{"n\\u0061me":"x","toolVersion"'),
      text.replace('{"toolVersion"', '{"__proto__":{"polluted":1},"toolVersion"'),
      text.replace('{"toolVersion"', '{"extra":1,"toolVersion"'),
      text.replace('"toolVersion":', '"toolVersion": '),
      `${'['.repeat(100_000)}${']'.repeat(100_000)}`,
      `${text} `,
      'null',
      '[]',
    ];
    for (const forged of bad) expect(code(openBytes(withHeaderText(valid, forged)))).toBe('PACK_INVALID');
    expect(code(openBytes(withHeaderText(valid, Buffer.from([0x22, 0xff, 0x22]))))).toBe('PACK_INVALID');
    expect(({} as Record<string, unknown>).polluted).toBeUndefined();
  });

  it('a header of millions of parts, in little time and memory', () => {
    const before = process.memoryUsage().rss;
    const began = performance.now();
    const result = openBytes(withHeaderText(valid, `[${'[],'.repeat(20_000_000)}[]]`));
    expect(message(result)).toMatch(/too many parts/);
    expect(performance.now() - began).toBeLessThan(5000); // a second; loaded machines take longer
    expect(process.memoryUsage().rss - before).toBeLessThan(700e6); // the header in three forms, no objects
  });

  it('trailing bytes, and a file that grew', () => {
    expect(message(openBytes(Buffer.concat([valid, Buffer.alloc(64)])))).toMatch(/cut off or changed/);
  });

  it('another version, saying which one it reads (L19)', () => {
    const bytes = Buffer.from(valid);
    bytes.writeUInt32LE(PACK_VERSION + 1, 8);
    const result = openBytes(bytes);
    expect(message(result)).toMatch(
      new RegExp(`pack version ${PACK_VERSION + 1}.*reads version ${PACK_VERSION}`),
    );
    expect((result as HybridError).hint).toMatch(/hybrid-infer convert/);
  });

  it.each([
    ['', /an empty file/],
    ['version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n', /Git LFS pointer/],
    ['GGUF\x03\0\0\0', /a GGUF file/],
    ['\x40\0\0\0\0\0\0\0{"__metadata__"', /safetensors/],
    ['PK\x03\x04', /zip archive/],
    ['HYBPA', /cut off in its first bytes/],
    ['hello world', /the bytes 68656c6c6f20776f/],
  ])('%j, saying what it is (L25)', (content, expected) => {
    expect(message(openBytes(Buffer.from(content, 'latin1')))).toMatch(expected);
  });

  it('a folder, a FIFO, a device and a missing file (L16)', () => {
    const sub = join(folder, 'sub');
    mkdirSync(sub);
    expect(code(opened(sub))).toBe('FILE_INVALID');
    const fifo = join(folder, 'fifo');
    execFileSync('mkfifo', [fifo]);
    expect(code(opened(fifo))).toBe('FILE_INVALID');
    expect(code(opened('/dev/null'))).toBe('FILE_INVALID');
    expect(code(opened(join(folder, 'missing')))).toBe('FILE_NOT_FOUND');
  });
});

describe('1,000 random corruptions', () => {
  it('of the bytes are refused, or leave the header as it was', () => {
    const original = headerText(valid);
    const edit = fc.record({
      at: fc.nat(),
      bytes: fc.uint8Array({ minLength: 1, maxLength: 16 }),
      cut: fc.option(fc.nat()),
    });
    fc.assert(
      fc.property(fc.array(edit, { minLength: 1, maxLength: 4 }), (edits) => {
        let bytes = Buffer.from(valid);
        for (const { at, bytes: patch, cut } of edits) {
          if (bytes.length > 0)
            bytes.set(patch.subarray(0, bytes.length - (at % bytes.length)), at % bytes.length);
          if (cut !== null) bytes = bytes.subarray(0, cut % (valid.length + 1));
        }
        // Sections carry no checksum: a changed weight is a changed weight. Everything before them must match.
        if (openBytes(bytes) === 'opened') expect(headerText(bytes)).toBe(original);
      }),
      { numRuns: 500 },
    );
  });

  it('of a header with a valid checksum are refused, or describe the same sections', () => {
    const header = JSON.parse(headerText(valid)) as PackHeader;
    const leaves = leafPaths(header);
    const value = fc.oneof(
      fc.integer(),
      fc.double(),
      fc.maxSafeInteger(),
      fc.constantFrom(null, true, '', 'q4', 'q8', 'f32', 'silu', [], {}),
      fc.string(),
    );
    const change = fc.tuple(fc.nat(leaves.length - 1), value);
    fc.assert(
      fc.property(fc.array(change, { minLength: 1, maxLength: 3 }), (changes) => {
        const result = openForged((h) => changes.forEach(([leaf, v]) => setLeaf(h, leaves[leaf], v)));
        if (result !== 'opened') {
          expect(result.code).toBe('PACK_INVALID');
          return;
        }
        const pack = openPack(join(folder, 'bytes.pack'));
        expect(pack.header.layers).toEqual(header.layers);
        expect(pack.header.embed).toEqual(header.embed);
        expect(pack.header.fileBytes).toBe(valid.length);
        pack.close();
      }),
      { numRuns: 500 },
    );
  });
});

function leafPaths(value: unknown, path: string[] = []): string[][] {
  if (typeof value !== 'object' || value === null) return [path];
  return [path, ...Object.entries(value).flatMap(([key, item]) => leafPaths(item, [...path, key]))].filter(
    (p) => p.length > 0,
  );
}

function setLeaf(target: unknown, path: string[], value: unknown): void {
  let at = target as Record<string, unknown>;
  for (const key of path.slice(0, -1)) {
    const next = at[key];
    if (typeof next !== 'object' || next === null) return; // an earlier change replaced it
    at = next as Record<string, unknown>;
  }
  at[path[path.length - 1]] = value;
}
