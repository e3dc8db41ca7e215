/** The page at `/` in a real Chromium. */
import { existsSync } from 'node:fs';
import { chromium, type Browser, type Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { startServer, type Started } from './start.js';

const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium';
const missing = existsSync(CHROMIUM) ? '' : ` (skipped: no ${CHROMIUM}; CHROMIUM names another)`;

describe.skipIf(missing !== '')(`the page${missing}`, () => {
  let s: Started;
  let browser: Browser;
  const problems: string[] = [];

  beforeAll(async () => {
    s = await startServer();
    browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-gpu'] });
  });
  afterAll(async () => {
    await browser.close();
    await s.close();
  });

  async function open(options: Parameters<Browser['newPage']>[0] = {}): Promise<Page> {
    const page = await browser.newPage({ viewport: { width: 1200, height: 800 }, ...options });
    page.on('console', (message) => message.type() === 'error' && problems.push(message.text()));
    page.on('pageerror', (error) => problems.push(error.message));
    await page.goto(s.url);
    await page.getByRole('option', { name: 'tales-4m-relu' }).waitFor({ state: 'attached' });
    return page;
  }
  const answerOf = (page: Page) => page.locator('.message.assistant .body').last();
  const finished = (page: Page) =>
    page.getByRole('button', { name: 'Send' }).and(page.locator(':enabled')).waitFor();

  it('loads nothing but itself and its API, and says what the demo model is', async () => {
    const page = await browser.newPage();
    const urls: string[] = [];
    page.on('request', (request) => urls.push(request.url()));
    await page.goto(s.url);
    await page.getByText('it does not chat').waitFor();
    expect(urls.filter((url) => !url.startsWith('data:'))).toEqual([`${s.url}/`, `${s.url}/v1/models`]);
    await page.close();
  });

  it('draws the layers of the last tokens while the answer comes, and of all at its end', async () => {
    const page = await open();
    await page.getByText('Settings').click();
    await page.getByLabel('Most tokens').fill('200');
    await page.evaluate(() => {
      const seen: { of: string; written: number; active: string }[] = [];
      Object.assign(window, { seen });
      const look = (): void => {
        const written = document.querySelector('.message.assistant .body')?.textContent.length ?? 0;
        const active = document.querySelector('#strip tbody tr td:nth-child(4)')?.textContent ?? '';
        seen.push({ of: document.querySelector('#strip-of')!.textContent, written, active });
      };
      new MutationObserver(look).observe(document.querySelector('#strip-of')!, { childList: true });
    });
    await page.getByLabel('Message').fill('Tell me of a king.');
    await page.keyboard.press('Enter');
    await finished(page);
    const seen = await page.evaluate(
      () => (window as unknown as { seen: { of: string; written: number; active: string }[] }).seen,
    );
    const written = (await answerOf(page).textContent())!.length;
    expect(seen.length).toBeGreaterThan(2);
    for (const { of } of seen.slice(0, -1)) expect(of).toMatch(/^writing: the last (token|\d+ tokens)$/);
    expect(seen.at(-1)!.of).toBe('the whole answer');
    expect(seen[0].written).toBeLessThan(written);
    expect(new Set(seen.map(({ active }) => active)).size).toBeGreaterThan(1);
    await page.close();
  });

  it('streams an answer and shows every layer', async () => {
    const page = await open();
    await page.getByLabel('Message').fill('Tell me of a king.');
    await page.keyboard.press('Enter');
    await finished(page);
    expect((await answerOf(page).textContent())!.length).toBeGreaterThan(20);
    const rows = page.locator('#strip tbody tr');
    expect(await rows.count()).toBe(4);
    const [layer, , computed, active] = await rows.first().locator('td').allTextContents();
    expect([layer, computed]).toEqual(['0', '100.0 %']); // mode exact computes every gate
    expect(parseFloat(active)).toBeGreaterThan(0);
    expect(parseFloat(active)).toBeLessThan(60);
    expect(
      await rows
        .first()
        .locator('.active')
        .evaluate((bar: HTMLElement) => bar.getBoundingClientRect().width),
    ).toBeGreaterThan(0);
    expect(await page.locator('#stats').textContent()).toMatch(
      /tokens\/s, sparsity \d+\.\d %, \d+ \+ \d+ tokens/,
    );
    await page.close();
  });

  it('goes on with a conversation, and continues a text in completion mode', async () => {
    const page = await open();
    await page.getByText('Settings').click();
    await page.getByLabel('Most tokens').fill('8');
    for (const question of ['One?', 'Two?']) {
      await page.getByLabel('Message').fill(question);
      await page.getByRole('button', { name: 'Send' }).click();
      await finished(page);
    }
    expect(await page.locator('.message').count()).toBe(4);
    await page.locator('#mode').selectOption('complete');
    await page.getByLabel('Text to continue').fill('Once upon a time');
    await page.keyboard.press('Enter');
    await finished(page);
    expect(await answerOf(page).textContent()).toMatch(/^Once upon a time./);
    await page.getByRole('button', { name: 'New chat' }).click();
    expect(await page.locator('.message').count()).toBe(0);
    await page.close();
  });

  it('stops an answer with the button, and the server stops too', async () => {
    const page = await open();
    await page.getByText('Settings').click();
    await page.getByLabel('Most tokens').fill('250');
    await page.getByLabel('Message').fill('Tell me of a king.');
    await page.keyboard.press('Enter');
    const stop = page.getByRole('button', { name: 'Stop' });
    if (await stop.isEnabled()) await stop.click().catch(() => {}); // it may have ended by itself
    await finished(page);
    const [served] = s.service.models.values();
    while (served.admission.running > 0) await new Promise((done) => setTimeout(done, 10));
    expect(await stop.isDisabled()).toBe(true);
    await page.close();
  });

  it('shows the server’s own words when it refuses', async () => {
    const page = await open();
    await page.getByLabel('Message').fill('king '.repeat(400));
    await page.keyboard.press('Enter');
    await page.getByRole('alert').waitFor();
    expect(await page.getByRole('alert').textContent()).toMatch(
      /the prompt has \d+ tokens, the context holds 256/,
    );
    problems.splice(0); // the browser logs the 400
    await page.close();
  });

  it('shows what a model writes as text, never as markup', async () => {
    const page = await open();
    await page.getByLabel('Message').fill('<img src=x onerror="document.title=1"><b>bold</b>');
    await page.keyboard.press('Enter');
    await finished(page);
    expect(await page.locator('.message.user b').count()).toBe(0);
    expect(await page.locator('.message.user .body').textContent()).toContain('<b>bold</b>');
    expect(await page.title()).toBe('hybrid-infer');
    await page.close();
  });

  it('is dark where the system is, and the button switches and is remembered', async () => {
    const background = (page: Page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const page = await open({ colorScheme: 'dark' });
    const dark = await background(page);
    await page.getByRole('button', { name: /light and dark/ }).click();
    const light = await background(page);
    expect(light).not.toBe(dark);
    await page.reload();
    expect(await background(page)).toBe(light);
    await page.close();
  });

  it('fits a phone without scrolling sideways, with targets for fingers', async () => {
    const page = await open({ viewport: { width: 360, height: 740 } });
    const [width, visible] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    expect(width).toBeLessThanOrEqual(visible);
    for (const button of await page.getByRole('button').all())
      expect((await button.boundingBox())!.height).toBeGreaterThanOrEqual(40);
    await page.close();
  });

  it('names every control, and all of it works from the keyboard', async () => {
    const page = await open();
    await page.getByText('Settings').click();
    const nameless = await page.evaluate(() =>
      Array.from(document.querySelectorAll<HTMLInputElement>('input, select, textarea, button'))
        .filter((e) => !e.labels?.length && !e.ariaLabel && !e.textContent?.trim())
        .map((e) => e.outerHTML),
    );
    expect(nameless).toEqual([]);
    const reached = new Set<string>();
    for (let i = 0; i < 30; i++) {
      await page.keyboard.press('Tab');
      reached.add(await page.evaluate(() => document.activeElement!.id || document.activeElement!.tagName));
    }
    for (const id of [
      'text',
      'send',
      'model',
      'theme',
      'clear',
      'SUMMARY',
      'temperature',
      'seed',
      'recall',
      'log',
    ])
      expect([...reached]).toContain(id);
    const contrast = await page.evaluate(() => {
      const luminance = (color: string): number => {
        const [r, g, b] = color
          .match(/\d+/g)!
          .map((v) => Number(v) / 255)
          .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const about = getComputedStyle(document.querySelector('#about')!).color;
      const [a, b] = [luminance(about), luminance(getComputedStyle(document.body).backgroundColor)].sort(
        (x, y) => y - x,
      );
      return (a + 0.05) / (b + 0.05);
    });
    expect(contrast).toBeGreaterThan(4.5); // WCAG AA for its faintest text
    await page.close();
  });

  it('logged no error and broke no rule of its content policy', () => expect(problems).toEqual([]));
});
