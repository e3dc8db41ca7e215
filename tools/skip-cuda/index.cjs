/* global exports */
/**
 * In a clone this package takes the place of global-agent (`overrides` in package.json), whose `bootstrap` is the first
 * thing onnxruntime-node's install script calls. The script goes on to fetch 200 MB of CUDA from a host that is not the
 * npm registry, and where that fails npm takes the whole package away again. npm before 11.10 knows no `allowScripts`,
 * and a setting of the package in .npmrc is an unknown one to npm. `ONNXRUNTIME_NODE_INSTALL=cuda12 npm ci` still
 * fetches it.
 */
exports.bootstrap = () => {
  process.env.ONNXRUNTIME_NODE_INSTALL ??= 'skip';
};
