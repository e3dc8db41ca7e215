#!/usr/bin/env node
/**
 * The public API as text: every export of dist/index.d.ts with its declaration, without comments and private members.
 * test/package/api-surface.txt holds it, and a test compares: a change of the API is seen in review.
 *
 *   npx tsc -p tsconfig.build.json && npm run api:record
 */
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const entry = path.join(root, 'dist/index.d.ts');
const program = ts.createProgram([entry], {
  module: ts.ModuleKind.NodeNext,
  moduleResolution: ts.ModuleResolutionKind.NodeNext,
  target: ts.ScriptTarget.ES2022,
  skipLibCheck: true,
  types: [],
});
const checker = program.getTypeChecker();
const printer = ts.createPrinter({ removeComments: true });
const isHidden = (node) =>
  ts.isClassElement(node) && (ts.getCombinedModifierFlags(node) & ts.ModifierFlags.Private) !== 0;

const symbols = checker.getExportsOfModule(checker.getSymbolAtLocation(program.getSourceFile(entry)));
for (const symbol of [...symbols].sort((a, b) => (a.name < b.name ? -1 : 1))) {
  const target = symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol;
  for (const declaration of target.declarations ?? []) {
    const node = ts.isVariableDeclaration(declaration) ? declaration.parent.parent : declaration;
    console.log(`${textOf(node)}\n`);
  }
}

function textOf(node) {
  const { transformed } = ts.transform(node, [
    (context) => (start) => {
      const visit = (child) => (isHidden(child) ? undefined : ts.visitEachChild(child, visit, context));
      return ts.visitNode(start, visit);
    },
  ]);
  return printer.printNode(ts.EmitHint.Unspecified, transformed[0], node.getSourceFile());
}
