/**
 * The page's program. It runs in the browser: `page.ts` takes the function's text, so it may use nothing from
 * outside itself. Text is only ever set as text.
 */
export function pageClient(): void {
  interface Layer {
    layer: number;
    sparsity: number;
    predicted_sparsity: number | null;
    recall: number | null;
  }
  interface Chunk {
    choices: { text?: string; delta?: { content?: string } }[];
    /** While the choice is written: means over its last tokens. */
    layers_now?: { tokens: number; layers: Layer[] };
    /** At its end: of each choice. */
    layers?: Layer[][];
    usage?: { completion_tokens: number; prompt_tokens: number } | null;
    timings?: { predicted_per_second: number | null };
    sparsity?: { sparsity: number | null };
    error?: { message: string };
  }
  interface Message {
    role: string;
    content: string;
  }

  const find = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;
  const input = (id: string): HTMLInputElement => find<HTMLInputElement>(id);
  const log = find('log');
  const text = find<HTMLTextAreaElement>('text');
  const send = find<HTMLButtonElement>('send');
  const stop = find<HTMLButtonElement>('stop');
  const mode = find<HTMLSelectElement>('mode');
  const model = find<HTMLSelectElement>('model');
  const rows = find('strip').querySelector('tbody')!;
  const templates = new Map<string, boolean>();
  let messages: Message[] = [];
  let running: AbortController | null = null;

  // ---- requests ----------------------------------------------------------------------------------------

  const headers = (): Record<string, string> => {
    const key = input('key').value;
    return { 'content-type': 'application/json', ...(key ? { authorization: `Bearer ${key}` } : {}) };
  };

  async function failure(response: Response): Promise<Error> {
    const body = (await response.json().catch(() => null)) as Chunk | null;
    return new Error(body?.error?.message ?? `the server answers ${response.status}`);
  }

  async function* chunksOf(response: Response): AsyncGenerator<Chunk> {
    const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
    let held = '';
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      const events = held.split('\n\n');
      held = events.pop()!;
      for (const event of events) {
        const data = event.split('\n').find((line) => line.startsWith('data: '));
        if (data && data !== 'data: [DONE]') yield JSON.parse(data.slice(6)) as Chunk;
      }
    }
  }

  function requestOf(prompt: string): { path: string; body: object } {
    const seed = input('seed').value;
    const shared = {
      model: model.value,
      max_tokens: Number(input('max-tokens').value),
      temperature: Number(input('temperature').value),
      top_p: Number(input('top-p').value),
      ...(seed === '' ? {} : { seed: Number(seed) }),
      stream: true,
      stream_options: { include_usage: true },
      hybrid_infer: { layers: true, measure_recall: input('recall').checked },
    };
    if (mode.value === 'complete') return { path: 'v1/completions', body: { ...shared, prompt } };
    const system = input('system').value;
    const all = [...(system ? [{ role: 'system', content: system }] : []), ...messages];
    return { path: 'v1/chat/completions', body: { ...shared, messages: all } };
  }

  // ---- what is shown -----------------------------------------------------------------------------------

  function show(role: string, content: string): HTMLElement {
    const box = document.createElement('div');
    box.className = `message ${role}`;
    const who = document.createElement('span');
    who.className = 'who';
    who.textContent = role === 'user' ? 'You' : model.value;
    const body = document.createElement('span');
    body.className = 'body';
    body.textContent = content;
    box.append(who, body);
    log.append(box);
    log.scrollTop = log.scrollHeight;
    return box;
  }

  const percent = (share: number | null): string => (share === null ? '–' : `${(100 * share).toFixed(1)} %`);

  /** @param of which tokens these are means */
  function showLayers(layers: readonly Layer[], of: string): void {
    find('strip-of').textContent = of;
    while (rows.children.length > layers.length) rows.lastElementChild!.remove();
    for (const layer of layers) {
      const row = rows.children[layer.layer] ?? newRow(layer.layer);
      const computed = layer.predicted_sparsity === null ? 1 : 1 - layer.predicted_sparsity;
      const active = 1 - layer.sparsity;
      const [candidateBar, activeBar] = Array.from(row.querySelectorAll<HTMLElement>('.track span'));
      candidateBar.style.width = `${100 * computed}%`;
      activeBar.style.width = `${100 * active}%`;
      const cells = row.querySelectorAll('td');
      cells[2].textContent = percent(computed);
      cells[3].textContent = percent(active);
      cells[4].textContent = percent(layer.recall);
    }
  }

  function newRow(layer: number): HTMLElement {
    const row = document.createElement('tr');
    for (const part of [String(layer), null, '', '', '']) {
      const cell = document.createElement('td');
      if (part === null) {
        cell.className = 'bar';
        const track = document.createElement('div');
        track.className = 'track';
        for (const name of ['candidates', 'active']) {
          const bar = document.createElement('span');
          bar.className = name;
          track.append(bar);
        }
        cell.append(track);
      } else cell.textContent = part;
      row.append(cell);
    }
    rows.append(row);
    return row;
  }

  function showError(message: string): void {
    find('error').textContent = message;
    find('error').hidden = message === '';
  }

  function setRunning(controller: AbortController | null): void {
    running = controller;
    send.disabled = controller !== null;
    stop.disabled = controller === null;
  }

  // ---- one answer --------------------------------------------------------------------------------------

  async function answer(prompt: string): Promise<void> {
    showError('');
    const chatting = mode.value === 'chat';
    if (chatting) {
      messages.push({ role: 'user', content: prompt });
      show('user', prompt);
    }
    const controller = new AbortController();
    setRunning(controller);
    const box = show('assistant', chatting ? '' : prompt);
    box.classList.add('writing');
    find('strip').classList.add('writing');
    find('stats').textContent = '';
    const body = box.querySelector('.body')!;
    let written = '';
    const add = (chunk: Chunk): void => {
      if (chunk.error) throw new Error(chunk.error.message);
      const [choice] = chunk.choices;
      const piece = choice?.delta?.content ?? choice?.text ?? '';
      written += piece;
      // Templates end before a space that the model then writes.
      if (piece) body.append(written === piece && chatting ? piece.trimStart() : piece);
      if (piece) log.scrollTop = log.scrollHeight;
      if (chunk.layers_now) {
        const { layers, tokens } = chunk.layers_now;
        showLayers(layers, `writing: the last ${tokens === 1 ? 'token' : `${tokens} tokens`}`);
      }
      if (chunk.layers) showLayers(chunk.layers[0], 'the whole answer');
      if (chunk.timings) {
        const speed = chunk.timings.predicted_per_second ?? 0;
        find('stats').textContent =
          `${speed.toFixed(1)} tokens/s, sparsity ${percent(chunk.sparsity?.sparsity ?? null)}`;
      }
      if (chunk.usage)
        find('stats').textContent +=
          `, ${chunk.usage.prompt_tokens} + ${chunk.usage.completion_tokens} tokens`;
    };
    try {
      const { path, body: request } = requestOf(prompt);
      const response = await fetch(path, {
        method: 'POST',
        headers: headers(),
        body: JSON.stringify(request),
        signal: controller.signal,
      });
      if (!response.ok) throw await failure(response);
      for await (const chunk of chunksOf(response)) add(chunk);
    } catch (error) {
      if (!controller.signal.aborted) showError((error as Error).message);
    } finally {
      box.classList.remove('writing');
      find('strip').classList.remove('writing');
      if (written === '' && chatting) {
        // Nothing came: the next try must not send the question twice.
        messages.pop();
        box.remove();
      } else if (chatting) messages.push({ role: 'assistant', content: written });
      setRunning(null);
      text.focus();
    }
  }

  // ---- the page ----------------------------------------------------------------------------------------

  function modelChanged(): void {
    const chats = templates.get(model.value) ?? false;
    mode.value = chats ? mode.value : 'complete';
    (mode.querySelector('[value=chat]') as HTMLOptionElement).disabled = !chats;
    const lines = [];
    if (!chats) lines.push('This model has no chat template: it continues your text.');
    if (model.value === 'tales-4m-relu')
      lines.push('The demo model is small and tells tales after Shakespeare and Grimm; it does not chat.');
    find('about').textContent = lines.join(' ');
    find('about').hidden = lines.length === 0;
    modeChanged();
  }

  function modeChanged(): void {
    find('text-label').textContent = mode.value === 'chat' ? 'Message' : 'Text to continue';
  }

  async function loadModels(): Promise<void> {
    try {
      const response = await fetch('v1/models', { headers: headers() });
      if (!response.ok) throw await failure(response);
      const { data } = (await response.json()) as { data: { id: string; has_chat_template: boolean }[] };
      model.replaceChildren(
        ...data.map(({ id, has_chat_template: chats }) => {
          templates.set(id, chats);
          const option = document.createElement('option');
          option.textContent = id;
          return option;
        }),
      );
      showError('');
      modelChanged();
    } catch (error) {
      showError((error as Error).message);
    }
  }

  find<HTMLFormElement>('form').addEventListener('submit', (event) => {
    event.preventDefault();
    const prompt = text.value;
    if (running || prompt.trim() === '') return;
    text.value = '';
    void answer(prompt);
  });
  text.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    find<HTMLFormElement>('form').requestSubmit();
  });
  stop.addEventListener('click', () => running?.abort());
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') running?.abort();
  });
  find('clear').addEventListener('click', () => {
    running?.abort();
    messages = [];
    log.replaceChildren();
    showError('');
    text.focus();
  });
  find('theme').addEventListener('click', () => {
    const root = document.documentElement;
    const dark = root.dataset.theme
      ? root.dataset.theme === 'dark'
      : matchMedia('(prefers-color-scheme: dark)').matches;
    root.dataset.theme = dark ? 'light' : 'dark';
    localStorage.setItem('theme', root.dataset.theme);
  });
  const theme = localStorage.getItem('theme');
  if (theme) document.documentElement.dataset.theme = theme;
  model.addEventListener('change', modelChanged);
  mode.addEventListener('change', modeChanged);
  input('key').addEventListener('change', () => void loadModels());
  void loadModels();
  text.focus();
}
