/* global document, getComputedStyle, innerWidth, NodeFilter */
/**
 * Runs inside a page of the site (so it may use nothing from outside this function).
 * @returns {{lines: string[], contrast: number}} what is wrong, and the lowest contrast of text that can be seen
 */
export function findings() {
  const lines = [];
  let contrast = Infinity;
  const seen = (element) => element.checkVisibility({ opacityProperty: true, visibilityProperty: true });

  const channels = (text) => {
    const [r, g, b, alpha = 1] = text.match(/[\d.]+/g).map(Number);
    return [r, g, b, alpha];
  };
  const over = (top, below) => top.slice(0, 3).map((part, i) => part * top[3] + below[i] * (1 - top[3]));
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((part) => {
      const share = part / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const color = channels(getComputedStyle(at).backgroundColor);
      if (color[3] > 0) layers.unshift(color);
      if (color[3] === 1) break;
    }
    return layers.reduce((below, top) => over(top, below), [255, 255, 255]);
  };

  /** What reaches furthest to the right, though nothing around it scrolls. */
  const widest = (width) =>
    [...document.querySelectorAll('main *')]
      .filter((element) => element.getBoundingClientRect().right > width + 1)
      .filter((element) => !element.parentElement.closest('pre, table, [class*=language-]'))
      .map((element) => `${element.tagName} ${element.className}`)
      .at(-1);

  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    const element = node.parentElement;
    const box = element.getBoundingClientRect();
    if (
      node.data.trim() === '' ||
      box.width <= 1 ||
      /^(SCRIPT|STYLE)$/.test(element.tagName) ||
      !seen(element)
    )
      continue;
    const style = getComputedStyle(element);
    const below = background(element);
    const [a, b] = [luminance(over(channels(style.color), below)), luminance(below)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    contrast = Math.min(contrast, ratio);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5))
      lines.push(
        `contrast ${ratio.toFixed(2)} of ${style.color} on ${below.map(Math.round)} in ${element.className || element.tagName}`,
      );
  }

  if (document.documentElement.scrollWidth > innerWidth)
    lines.push(`scrolls sideways: ${widest(innerWidth)}`);

  const levels = [...document.querySelectorAll('main h1, main h2, main h3, main h4, main h5, main h6')].map(
    (heading) => Number(heading.tagName[1]),
  );
  if (levels.filter((level) => level === 1).length !== 1) lines.push('not one h1');
  if (levels.some((level, i) => i > 0 && level > levels[i - 1] + 1)) lines.push('a heading skips a level');
  if (!document.title || !document.documentElement.lang) lines.push('no title, or no language');
  for (const image of document.images) if (!image.alt) lines.push(`image without a text: ${image.src}`);
  for (const control of document.querySelectorAll('a[href], button')) {
    const name =
      control.textContent.trim() || control.ariaLabel || control.title || control.querySelector('img')?.alt;
    if (!name && seen(control)) lines.push(`control without a name: ${control.className || control.tagName}`);
  }
  return { lines, contrast };
}
