/** Modules of the test suite for tools: compiled into one folder, from where their imports resolve. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import ts from 'typescript';
import { root } from './pack-folder.mjs';

/**
 * @param names paths below test/ without `.ts`: one for every module that another of them imports
 * @returns what all of them export
 */
export async function loadTestModules(names) {
  const folder = path.join(root, 'node_modules/.cache/test-modules');
  mkdirSync(folder, { recursive: true });
  const files = names.map((name) => {
    const source = readFileSync(path.join(root, 'test', `${name}.ts`), 'utf8');
    const { outputText } = ts.transpileModule(source, {
      compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 },
    });
    const file = path.join(folder, `${path.basename(name)}.js`);
    writeFileSync(file, outputText.replaceAll("'../../src/", "'../../../dist/"));
    return file;
  });
  return Object.assign({}, ...(await Promise.all(files.map((file) => import(file)))));
}
