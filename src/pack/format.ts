/** The bytes before a pack's first section (see types.ts): made here, and read back here. */
import { createHash } from 'node:crypto';
import { PackError } from '../errors.js';
import { parseStrictJson } from '../io/strict-json.js';
import { alignUp } from '../kernels/layout.js';
import type { PackFormats } from './formats.js';
import { DATA_ALIGNMENT, layoutSections, namedSections, type PackSections } from './layout.js';
import { headerSchema } from './schema.js';
import type { PackHeader, PackSection } from './types.js';

export const PACK_MAGIC = 'HYBPACK\0';
/** Raised with every change of the layout; a reader takes exactly its own version. */
export const PACK_VERSION = 2;
/** Magic, version, header length, header SHA-256. */
export const PREFIX_BYTES = 48;
/** Tokenizer files are the largest part (10 MB at most today); more than this is not a header. */
export const MAX_HEADER_BYTES = 100 * 1024 * 1024;

/**
 * The bulk of a header is a few long texts. What is around them takes 1 KB a layer; without this limit, 100 MB
 * of brackets would become gigabytes of objects.
 */
const MAX_STRUCTURE_CHARS = 4 * 1024 * 1024;

const REMAKE = 'Make the pack again: hybrid-infer convert <model> -o <file>';

// ---- writing ------------------------------------------------------------------------------------------

/** A header without what follows from config and formats. */
export type PackFacts = Omit<PackHeader, keyof PackSections>;

/**
 * Lays out a pack and encodes everything before its first section.
 * @returns the full header and the bytes of the file's beginning, padding included
 */
export function planPack(facts: PackFacts, formats: PackFormats): { header: PackHeader; prefix: Uint8Array } {
  // Offsets are inside the header, and its length decides the offsets: the start only ever moves up, by
  // whole pages, so a few rounds settle it.
  let dataStart = DATA_ALIGNMENT;
  while (true) {
    const header: PackHeader = { ...facts, ...layoutSections(facts.config, formats, dataStart) };
    const text = Buffer.from(canonicalText(header, 'new pack'));
    const start = alignUp(PREFIX_BYTES + text.length, DATA_ALIGNMENT);
    if (text.length > MAX_HEADER_BYTES) {
      throw new PackError('PACK_INVALID', `header of ${text.length} bytes: at most ${MAX_HEADER_BYTES}`, {
        hint: 'The tokenizer files of this model are too large.',
      });
    }
    if (start <= dataStart) return { header, prefix: encodePrefix(text, dataStart) };
    dataStart = start;
  }
}

function encodePrefix(text: Uint8Array, dataStart: number): Uint8Array {
  const prefix = Buffer.alloc(dataStart);
  prefix.write(PACK_MAGIC, 0, 'latin1');
  prefix.writeUInt32LE(PACK_VERSION, 8);
  prefix.writeUInt32LE(text.length, 12);
  createHash('sha256').update(text).digest().copy(prefix, 16);
  prefix.set(text, PREFIX_BYTES);
  return prefix;
}

/** One text per header: keys in the order of the schema, nothing else. */
function canonicalText(header: PackHeader, where: string): string {
  const checked = headerSchema.safeParse(header);
  if (!checked.success) throw invalid(where, issueText(checked.error.issues));
  return JSON.stringify(checked.data);
}

// ---- reading ------------------------------------------------------------------------------------------

/**
 * Length of the header, from the first 48 bytes of a file.
 * @throws PackError PACK_INVALID when this is no pack, a pack of another version, or cut off
 */
export function decodePrefix(prefix: Buffer, fileBytes: number, path: string): number {
  if (prefix.length < PREFIX_BYTES || prefix.toString('latin1', 0, 8) !== PACK_MAGIC) {
    throw new PackError('PACK_INVALID', `${path}: expected a model pack, found ${whatIsIt(prefix)}`, {
      hint: prefix.length === 0 ? REMAKE : 'Give a pack made by: hybrid-infer convert <model> -o <file>',
    });
  }
  const version = prefix.readUInt32LE(8);
  if (version !== PACK_VERSION) {
    throw invalid(path, `pack version ${version} at offset 8: this program reads version ${PACK_VERSION}`);
  }
  const bytes = prefix.readUInt32LE(12);
  if (bytes > MAX_HEADER_BYTES || PREFIX_BYTES + bytes > fileBytes) {
    throw invalid(path, `header of ${bytes} bytes at offset 12 in a file of ${fileBytes} bytes`);
  }
  return bytes;
}

/**
 * Checks the header text against its hash, the schema, and the layout that follows from its own config.
 * @param prefix the first 48 bytes  @param text the header
 */
export function decodeHeader(prefix: Buffer, text: Buffer, fileBytes: number, path: string): PackHeader {
  const hash = createHash('sha256').update(text).digest();
  if (!hash.equals(prefix.subarray(16, PREFIX_BYTES))) {
    throw invalid(path, 'the header does not match its checksum (offset 16)');
  }
  let source: string;
  try {
    source = new TextDecoder('utf-8', { fatal: true }).decode(text);
  } catch {
    throw invalid(path, 'the header is not UTF-8');
  }
  if (structureChars(source) > MAX_STRUCTURE_CHARS) throw invalid(path, 'the header has too many parts');
  const value = parseStrictJson(source, 'header', (message) => invalid(path, message));
  const checked = headerSchema.safeParse(value);
  if (!checked.success) throw invalid(path, issueText(checked.error.issues));
  if (JSON.stringify(checked.data) !== source) {
    throw invalid(path, 'the header is not as this program writes it (spaces, order of keys)');
  }
  const header: PackHeader = checked.data;
  checkSections(header, alignUp(PREFIX_BYTES + text.length, DATA_ALIGNMENT), path);
  if (header.fileBytes !== fileBytes) {
    throw invalid(path, `expected ${header.fileBytes} bytes, found ${fileBytes}: cut off or changed`);
  }
  return header;
}

/** Characters outside of strings, their quotes included. */
function structureChars(text: string): number {
  let inside = 0;
  for (let open = text.indexOf('"'); open >= 0;) {
    let close = text.indexOf('"', open + 1);
    while (close > 0 && isEscaped(text, close)) close = text.indexOf('"', close + 1);
    if (close < 0) break;
    inside += close - open - 1;
    open = text.indexOf('"', close + 1);
  }
  return text.length - inside;
}

function isEscaped(text: string, at: number): boolean {
  let slashes = 0;
  while (text[at - 1 - slashes] === '\\') slashes++;
  return slashes % 2 === 1;
}

/**
 * A pack has one possible layout for its config and formats. Comparing with it proves at once that sections
 * are aligned, lie inside the file, do not overlap, and have the shapes the config asks for.
 */
function checkSections(header: PackHeader, dataStart: number, path: string): void {
  const { config, embed, lmHead } = header;
  if (header.layers.length !== config.layers) {
    throw invalid(path, `config says ${config.layers} layers, the header describes ${header.layers.length}`);
  }
  const formats: PackFormats = {
    embed: embed.format,
    lmHead: lmHead?.format ?? embed.format,
    layers: header.layers.map(({ qkv, o, gate, ffn }) => ({
      qkv: qkv.format,
      o: o.format,
      gate: gate.format,
      ffn: ffn.format,
    })),
  };
  const expected = layoutSections(config, formats, dataStart);
  const found = new Map(namedSections(header));
  const wanted = [...namedSections(expected)];
  for (const [name, want] of wanted) {
    const have = found.get(name);
    if (!have) throw invalid(path, `section ${name} is missing`);
    for (const key of Object.keys(want) as (keyof PackSection)[]) {
      if (have[key] === want[key]) continue;
      throw invalid(path, `section ${name}: expected ${key} ${want[key]}, found ${have[key]}`);
    }
    if (!Number.isSafeInteger(want.offset + want.bytes)) throw invalid(path, `section ${name} is too large`);
  }
  if (found.size !== wanted.length) throw invalid(path, 'the header describes sections its config has not');
  if (header.fileBytes !== expected.fileBytes) {
    throw invalid(path, `expected fileBytes ${expected.fileBytes}, found ${header.fileBytes}`);
  }
}

// ---- messages -----------------------------------------------------------------------------------------

function whatIsIt(bytes: Buffer): string {
  if (bytes.length === 0) return 'an empty file';
  const head = bytes.toString('latin1', 0, Math.min(bytes.length, PREFIX_BYTES));
  if (head.startsWith('version https://git-lfs')) {
    return 'a Git LFS pointer (the file itself was not downloaded: git lfs pull)';
  }
  if (head.startsWith('GGUF')) return 'a GGUF file';
  if (head.startsWith('PWRI')) return 'a PowerInfer GGUF file';
  if (head.startsWith('PK\x03\x04')) return 'a zip archive (a PyTorch checkpoint?)';
  if (bytes.length > 8 && bytes[8] === 0x7b) return 'a safetensors file';
  if (PACK_MAGIC.startsWith(head.slice(0, 8))) return 'a pack cut off in its first bytes';
  const hex = bytes.subarray(0, 8).toString('hex');
  return `the bytes ${hex}`;
}

interface Issue {
  path: PropertyKey[];
  message: string;
}

function issueText(issues: Issue[]): string {
  const lines = issues.slice(0, 5).map((i) => `${i.path.map(String).join('.') || 'header'}: ${i.message}`);
  return `the header is wrong: ${lines.join('; ')}`;
}

function invalid(path: string, what: string): PackError {
  return new PackError('PACK_INVALID', `${path}: ${what}`, { hint: REMAKE });
}
