/**
 * How texts are cut before byte-level BPE. GGUF files name it by a model that cuts so (`tokenizer.ggml.pre`);
 * the names and patterns are those of the models' own tokenizers and of llama.cpp's list (August 2026).
 *
 * The patterns of a row apply one after the other: each cuts the pieces that are left into its matches and
 * what stands between them.
 */
import { isObject } from '../io/strict-json.js';

export interface PreTokenizer {
  patterns: readonly string[];
  /** Texts are brought to Unicode's composed form first. */
  nfc?: boolean;
  /** A whole word that is a token stays one, whatever the merges say. */
  ignoreMerges?: boolean;
  addBos?: boolean;
}

const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const WORDS = '[^\\r\\n\\p{L}\\p{N}]?\\p{L}+';
const PUNCTUATION = ' ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*';
const SPACES = '\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';
const pattern = (...parts: string[]) => parts.join('|');

/** GPT-2's own: what ByteLevel steps of tokenizer.json apply with `use_regex`. */
const GPT2_WORDS = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
/** Numbers in groups of three, after GPT-4. */
const GPT4_WORDS = pattern(CONTRACTIONS, WORDS, '\\p{N}{1,3}', PUNCTUATION, SPACES);
/** Numbers digit by digit, after Qwen. */
const QWEN_WORDS = pattern(CONTRACTIONS, WORDS, '\\p{N}', PUNCTUATION, SPACES);

/** Words in one case or capitalised, after GPT-4o and Mistral's Tekken. */
const UPPER = '[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]';
const LOWER = '[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]';
const casedWords = (suffix: string, numbers: string) =>
  pattern(
    `[^\\r\\n\\p{L}\\p{N}]?${UPPER}*${LOWER}+${suffix}`,
    `[^\\r\\n\\p{L}\\p{N}]?${UPPER}+${LOWER}*${suffix}`,
    numbers,
    ' ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*',
    SPACES,
  );

/** Letters that have case, as DeepSeek's first tokenizers list them. */
const CASED =
  'A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373' +
  '\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f' +
  '\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77' +
  '\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d' +
  '\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4' +
  '\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139' +
  '\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d' +
  '\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a' +
  '\uff41-\uff5a\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}' +
  '\u{118a0}-\u{118df}\u{1e900}-\u{1e943}';
/** Chinese, Japanese and Korean, as the same tokenizers group them. */
const CJK = '[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+';

const PUNCTUATION_RUNS = '[\\p{P}\\$\\+<=>\\^~\\|`]+';
const THREE_DIGITS = '[0-9][0-9][0-9]';
const WIDE_WORDS = ' ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+';

const GPT2: PreTokenizer = { patterns: [GPT2_WORDS] };
const DIGITS: PreTokenizer = { patterns: ['\\p{N}', GPT2_WORDS] };
const GPT4: PreTokenizer = { patterns: [GPT4_WORDS] };
const LLAMA3: PreTokenizer = { patterns: [GPT4_WORDS], ignoreMerges: true, addBos: true };
const QWEN2: PreTokenizer = { patterns: [QWEN_WORDS], nfc: true };
const QWEN_PLAIN: PreTokenizer = { patterns: [QWEN_WORDS] };
const DEEPSEEK3: PreTokenizer = {
  patterns: [
    '\\p{N}{1,3}',
    '[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+',
    '[!"#$%&\'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+' +
      '| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+',
  ],
};

/** By `tokenizer.ggml.pre`. Of names that mean the same, the first is the one that exports write. */
export const PRE_TOKENIZERS: Readonly<Record<string, PreTokenizer>> = {
  'gpt-2': GPT2,
  'phi-2': GPT2,
  gpt2: GPT2,
  gigachat: GPT2,
  jais: GPT2,
  trillion: GPT2,
  'llama-bpe': LLAMA3,
  llama3: LLAMA3,
  'llama-v3': LLAMA3,
  falcon3: LLAMA3,
  'falcon-h1': LLAMA3,
  pixtral: LLAMA3,
  lfm2: LLAMA3,
  dbrx: GPT4,
  'smaug-bpe': GPT4,
  glm4: GPT4,
  'chatglm-bpe': GPT4,
  qwen2: QWEN2,
  'deepseek-r1-qwen': QWEN2,
  megrez: QWEN2,
  stablelm2: QWEN_PLAIN,
  hunyuan: QWEN_PLAIN,
  olmo: { patterns: [GPT2_WORDS], nfc: true },
  mpt: { patterns: [GPT2_WORDS], nfc: true },
  smollm: DIGITS,
  starcoder: DIGITS,
  refact: DIGITS,
  codeshell: DIGITS,
  'minerva-7b': DIGITS,
  exaone: { patterns: DIGITS.patterns, nfc: true },
  'command-r': { patterns: DIGITS.patterns, nfc: true },
  falcon: { patterns: [PUNCTUATION_RUNS, GPT2_WORDS, '\\p{N}+', THREE_DIGITS] },
  default: { patterns: [PUNCTUATION_RUNS, GPT2_WORDS, '\\p{N}+', THREE_DIGITS] },
  'deepseek-llm': {
    patterns: [
      '[\r\n]',
      `\\s?[${CASED}]+`,
      '\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+',
      '\\s+$',
      CJK,
      '\\p{N}+',
    ],
  },
  'deepseek-coder': { patterns: ['[\r\n]', '\\s?\\p{L}+', '\\s?\\p{P}+', CJK, '\\p{N}'] },
  'deepseek-v3': DEEPSEEK3,
  'hunyuan-dense': DEEPSEEK3,
  tekken: { patterns: [casedWords('', '\\p{N}')], ignoreMerges: true, addBos: true },
  'gpt-4o': { patterns: [casedWords(`${CONTRACTIONS}?`, '\\p{N}{1,3}')] },
  llama4: { patterns: [casedWords(`${CONTRACTIONS}?`, '\\p{N}{1,3}')] },
  'seed-coder': {
    patterns: [pattern(CONTRACTIONS, WORDS, '\\p{N}{1}', ' ?[^\\s\\p{L}\\p{N}\\r\\n]+', SPACES)],
  },
  bloom: { patterns: [WIDE_WORDS] },
  'poro-chat': { patterns: [WIDE_WORDS] },
  viking: { patterns: [WIDE_WORDS, '\\p{N}'] },
};

/** The steps of a tokenizer.json that cut so and then spell bytes. */
export function preTokenizerJson(pre: PreTokenizer): object {
  const splits = pre.patterns.map((regex) => ({
    type: 'Split',
    pattern: { Regex: regex },
    behavior: 'Isolated',
    invert: false,
  }));
  return { type: 'Sequence', pretokenizers: [...splits, byteLevel()] };
}

export const byteLevel = (): object => ({
  type: 'ByteLevel',
  add_prefix_space: false,
  trim_offsets: true,
  use_regex: false,
});

// ---- the way back: what a tokenizer.json does, under its name ------------------------------------------

/** @returns the name in PRE_TOKENIZERS whose patterns are those of a tokenizer.json; null: none */
export function namePreTokenizer(
  preTokenizer: unknown,
  normalizer: unknown,
  ignoreMerges: boolean,
): string | null {
  const patterns = patternsOf(preTokenizer);
  const nfc = normalizesToNfc(normalizer);
  if (patterns === null || nfc === null) return null;
  const key = (list: readonly string[]) => JSON.stringify(list.map(oneSpelling));
  const same = Object.entries(PRE_TOKENIZERS).filter(([, pre]) => key(pre.patterns) === key(patterns));
  const exact = same.find(
    ([, pre]) => (pre.nfc ?? false) === nfc && (pre.ignoreMerges ?? false) === ignoreMerges,
  );
  return exact?.[0] ?? null;
}

/** Patterns of the splitting steps before the bytes are spelt; null when a step does anything else. */
function patternsOf(step: unknown): string[] | null {
  if (!isObject(step)) return null;
  switch (step['type']) {
    case 'Sequence': {
      const steps = step['pretokenizers'];
      if (!Array.isArray(steps)) return null;
      const parts = steps.map(patternsOf);
      return parts.every((part) => part !== null) ? parts.flat() : null;
    }
    case 'ByteLevel':
      if (step['add_prefix_space'] === true) return null;
      return step['use_regex'] === false ? [] : [GPT2_WORDS];
    case 'Digits':
      return [step['individual_digits'] === true ? '\\p{N}' : '\\p{N}+'];
    case 'Punctuation':
      return step['behavior'] === 'Contiguous' ? [PUNCTUATION_RUNS] : null;
    case 'Split': {
      const regex = isObject(step['pattern']) ? step['pattern']['Regex'] : undefined;
      // A pattern that matches every character gives the same pieces when the rest is removed.
      const isolated =
        step['behavior'] === 'Isolated' || (step['behavior'] === 'Removed' && step['invert'] === true);
      return isolated && typeof regex === 'string' ? [regex] : null;
    }
    default:
      return null;
  }
}

/** null: a normalizer that does something else. */
function normalizesToNfc(normalizer: unknown): boolean | null {
  if (normalizer === null || normalizer === undefined) return false;
  if (!isObject(normalizer)) return null;
  if (normalizer['type'] === 'NFC') return true;
  if (normalizer['type'] !== 'Sequence' || !Array.isArray(normalizer['normalizers'])) return null;
  const steps = normalizer['normalizers'].map(normalizesToNfc);
  return steps.includes(null) ? null : steps.includes(true);
}

/** Patterns are written with and without what stands for the same set of matches. */
const oneSpelling = (regex: string): string =>
  regex
    .replaceAll(CONTRACTIONS, "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])")
    .replaceAll('\\r', '\r')
    .replaceAll('\\n', '\n');
