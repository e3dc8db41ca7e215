/** The page's elements. Everything has a name that a screen reader says; the strip is a table. */
export const MARKUP = `
<header>
  <h1>hybrid-infer</h1>
  <label class="model">Model <select id="model"></select></label>
  <button id="theme" type="button" aria-label="Switch between light and dark">◐</button>
  <button id="clear" type="button">New chat</button>
</header>
<main>
  <p id="about" class="about" hidden></p>
  <div id="log" role="log" aria-label="Conversation" aria-live="polite" tabindex="0"></div>
  <p id="error" role="alert" hidden></p>
  <form id="form">
    <label for="text" id="text-label">Message</label>
    <textarea id="text" rows="2" placeholder="Enter sends, Shift+Enter begins a line"></textarea>
    <div class="buttons">
      <button id="send" type="submit">Send</button>
      <button id="stop" type="button" disabled>Stop</button>
    </div>
  </form>
</main>
<aside aria-label="Neurons and settings">
  <section aria-labelledby="strip-title">
    <h2 id="strip-title">Neurons, layer by layer</h2>
    <p class="legend"><span class="key candidates"></span> computed <span class="key active"></span> active <span class="key skipped"></span> skipped</p>
    <div class="strip-scroll" tabindex="0" role="region" aria-labelledby="strip-title"><table id="strip">
      <thead><tr><th scope="col">Layer</th><th scope="col"><span class="hidden">Shares</span></th><th scope="col">Computed</th><th scope="col">Active</th><th scope="col">Recall</th></tr></thead>
      <tbody></tbody>
    </table></div>
    <p id="strip-of" class="stats"></p>
    <p id="stats" class="stats" aria-live="polite">Send something and watch.</p>
  </section>
  <details id="settings">
    <summary>Settings</summary>
    <fieldset>
      <legend>How to answer</legend>
      <label>Mode <select id="mode"><option value="chat">chat</option><option value="complete">completion</option></select></label>
      <label>System prompt <textarea id="system" rows="2"></textarea></label>
      <label>Temperature <input id="temperature" type="number" min="0" max="2" step="0.1" value="0.8"></label>
      <label>Top p <input id="top-p" type="number" min="0.05" max="1" step="0.05" value="0.95"></label>
      <label>Most tokens <input id="max-tokens" type="number" min="1" step="1" value="120"></label>
      <label>Seed <input id="seed" type="number" min="0" max="4294967295" step="1" placeholder="random"></label>
      <label class="check"><input id="recall" type="checkbox"> Measure recall (slower: computes what was skipped)</label>
      <label>API key <input id="key" type="password" autocomplete="off"></label>
    </fieldset>
  </details>
</aside>`;
