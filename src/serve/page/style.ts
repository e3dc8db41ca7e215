/** The page's look: light and dark by the system's choice or the button's, one column on a phone. */
export const STYLE = `
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5a626b; --page: #fbfbf9; --card: #ffffff; --line: #d9dcdf;
  --mine: #e8eef7; --accent: #0b5cad; --on-accent: #ffffff; --candidates: #9cc4e8; --active: #0b5cad; --skipped: #eceef0; --bad: #a4161a; }
@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) { --ink: #e6e8ea; --soft: #a3abb3; --page: #14171a; --card: #1c2024;
  --line: #363c42; --mine: #22303f; --accent: #7db7ee; --on-accent: #10202f; --candidates: #2f567a; --active: #7db7ee; --skipped: #272c31; --bad: #ff8a80; } }
:root[data-theme=dark] { color-scheme: dark; --ink: #e6e8ea; --soft: #a3abb3; --page: #14171a; --card: #1c2024;
  --line: #363c42; --mine: #22303f; --accent: #7db7ee; --on-accent: #10202f; --candidates: #2f567a; --active: #7db7ee; --skipped: #272c31; --bad: #ff8a80; }
:root[data-theme=light] { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100dvh; display: grid; grid-template: auto 1fr / minmax(0, 1fr) 25rem; gap: 0 1.5rem;
  max-width: 78rem; margin-inline: auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); }
header { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; padding: .75rem 0; border-bottom: 1px solid var(--line); }
h1 { font-size: 1.1rem; margin: 0 auto 0 0; } h2 { font-size: .95rem; margin: 0 0 .25rem; }
main { display: flex; flex-direction: column; min-height: 0; height: calc(100dvh - 4rem); padding: 1rem 0; }
#log { flex: 1; overflow-y: auto; display: flex; flex-direction: column; gap: .75rem; padding: .25rem; }
.message { border: 1px solid var(--line); background: var(--card); border-radius: .6rem; padding: .6rem .8rem; max-width: 46rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.message.user { align-self: flex-end; background: var(--mine); }
.message .who { display: block; font-size: .75rem; color: var(--soft); }
.message.writing .body::after { content: "▍"; color: var(--accent); }
.about, .stats, .legend { color: var(--soft); font-size: .85rem; margin: .25rem 0; }
#error { color: var(--bad); margin: .5rem 0; }
form { display: grid; grid-template-columns: 1fr auto; gap: .25rem .5rem; padding-top: .75rem; }
form > label { grid-column: 1 / -1; font-size: .85rem; color: var(--soft); }
.buttons { display: flex; flex-direction: column; gap: .35rem; }
textarea, input, select, button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .4rem .6rem; }
textarea { width: 100%; resize: vertical; }
button { cursor: pointer; min-height: 2.5rem; } button:disabled { opacity: .5; cursor: default; }
#send { background: var(--accent); color: var(--on-accent); border-color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 1px; }
aside { padding: 1rem 0; font-size: .9rem; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .3rem; text-align: right; font-weight: normal; white-space: nowrap; } th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-size: .8rem; } td.bar { width: 99%; } td:nth-child(n+3) { min-width: 4.4em; }
.track { position: relative; height: .8rem; background: var(--skipped); border-radius: .2rem; overflow: hidden; }
.track span { position: absolute; inset: 0 auto 0 0; width: 0; } #strip:not(.writing) .track span { transition: width .25s ease-out; }
#strip-of { min-height: 1.5em; }
.candidates { background: var(--candidates); } .active { background: var(--active); } .skipped { background: var(--skipped); }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; vertical-align: -.1rem; margin-left: .5rem; }
.strip-scroll { max-height: 50dvh; overflow-y: auto; }
details { margin-top: 1rem; } summary { cursor: pointer; padding: .25rem 0; }
fieldset { border: 1px solid var(--line); border-radius: .4rem; display: grid; gap: .5rem; min-width: 0; }
fieldset label { display: grid; gap: .15rem; } .check { display: flex !important; align-items: center; gap: .5rem; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@media (max-width: 52rem) { body { grid-template: auto auto auto / minmax(0, 1fr); } main { height: auto; min-height: 60dvh; } #log { max-height: 60dvh; } }
@media (prefers-reduced-motion: reduce) { .track span { transition: none; } }
`;
