#!/usr/bin/env node
/** Writes src/kernels/native/declarations.h from the compiled kernel table, where it is not what it should be. */
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { declarationsHeader } from '../dist/kernels/native/declarations.js';

const file = fileURLToPath(new URL('../src/kernels/native/declarations.h', import.meta.url));
const wanted = declarationsHeader();

let held = '';
try {
  held = readFileSync(file, 'utf8');
} catch {
  // not written yet
}
if (held !== wanted) writeFileSync(file, wanted);
