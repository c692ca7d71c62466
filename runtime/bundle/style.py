"""How the integration page looks."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --paper: #f7f8fa; --card: #fff; --line: #dfe3e9; --host: #0f766e;
  --package: #6d28d9; --code: #f1f3f6; --wave: #0f766e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --paper: #12161c; --card: #1a2029; --line: #2c3542;
  --host: #2dd4bf; --package: #b794f6; --code: #11161d; --wave: #2dd4bf; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
.layout { display: grid; grid-template-columns: 15rem minmax(0, 1fr); max-width: 78rem; margin: 0 auto; }
nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow: auto; padding: 2rem 1rem 2rem 1.5rem;
  font-size: .86rem; }
nav b { display: block; margin: 1rem 0 .3rem; color: var(--soft); font-weight: 600; }
nav a { display: flex; gap: .5rem; align-items: center; padding: .16rem 0; color: var(--ink); text-decoration: none; }
nav a:hover { text-decoration: underline; }
nav i { width: .55rem; height: .55rem; border-radius: 50%; border: 2px solid var(--host); flex: none; }
nav i.package { border-color: var(--package); background: var(--package); border-radius: 2px; }
main { padding: 2rem 1.5rem 5rem; min-width: 0; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.35rem; margin: 2.8rem 0 .8rem; }
h3 { font-size: 1.08rem; margin: 0; }
p { margin: .5rem 0; max-width: 46rem; }
.lead { color: var(--soft); }
.facts { display: flex; flex-wrap: wrap; gap: .5rem; margin: 1.1rem 0; padding: 0; list-style: none; }
.facts li { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .35rem .7rem; font-size: .88rem; }
.facts span { color: var(--soft); margin-right: .4rem; }
section.step { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--host); border-radius: .5rem;
  padding: 1rem 1.2rem;
  margin: 0 0 1rem; scroll-margin-top: 1rem; }
section.step.package { border-left-color: var(--package); }
.head { display: flex; align-items: baseline; gap: .7rem; flex-wrap: wrap; }
.number { color: var(--soft); font-variant-numeric: tabular-nums; }
.kind { font-size: .76rem; font-weight: 600; color: var(--host); margin-left: auto; }
.package .kind { color: var(--package); }
pre, .formulas { background: var(--code); border-radius: .4rem; padding: .7rem .9rem; overflow-x: auto; margin: .7rem 0;
  font: .84rem/1.6 ui-monospace,
  SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
.formulas { list-style: none; }
.formulas li { white-space: pre-wrap; padding-left: 1.2rem; text-indent: -1.2rem; }
.formulas li + li { margin-top: .15rem; }
code { font: .85em ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
.scroll { overflow-x: auto; margin: .7rem 0; }
table { border-collapse: collapse; font-size: .86rem; width: 100%; }
th { text-align: left; color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); padding: .3rem .9rem .3rem 0;
  white-space: nowrap; }
td { padding: .34rem .9rem .34rem 0; border-bottom: 1px solid var(--line); vertical-align: middle; overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
.whole { white-space: nowrap; font-variant-numeric: tabular-nums; }
td:first-child { white-space: nowrap; }
td.look { width: 250px; min-width: 250px; padding-right: 0; }
td.look svg, td.look img { display: block; width: 240px; height: 40px; border-radius: 3px; }
td.look img { image-rendering: pixelated; }
svg path { fill: none; stroke: var(--wave); stroke-width: 1; vector-effect: non-scaling-stroke; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--soft); font-size: .88rem; }
.note { border-left: 3px solid #d97706; padding: .1rem 0 .1rem .9rem; }
.hash { color: var(--soft); font-size: .78rem; overflow-wrap: anywhere; }
@media (max-width: 60rem) { .layout { display: block; } nav { position: static; max-height: none; columns: 2;
  padding: 1.5rem 1.5rem 0; }
  main { padding-top: 1rem; }
  td:nth-child(4), td:nth-child(3):last-child { min-width: 11rem; } }
"""
