/** The page at `/`. */
export const PAGE = {
  html: '<!doctype html><title>hybrid-infer</title>',
  headers: { 'content-type': 'text/html; charset=utf-8' },
};
