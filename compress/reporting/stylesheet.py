"""The look of report.html: light and dark, on a telephone, on a wide screen and on paper."""

STYLESHEET = """
:root {
  --paper: #ffffff; --panel: #f6f8fa; --ink: #1f2328; --muted: #59636e; --rule: #d1d9e0;
  --accent: #0b5cad; --mark: #eaf3fd;
  --series-1: #0072b2; --series-2: #d55e00; --series-3: #009e73;
  --series-4: #c4679b; --series-5: #3d9fd3; --series-6: #c98500;
  color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #12161b; --panel: #1a2027; --ink: #e6eaef; --muted: #9aa6b2; --rule: #303841;
    --accent: #7ab7ff; --mark: #17293d;
    --series-1: #4fa8e0; --series-2: #ff8a3d; --series-3: #2fc79b;
    --series-4: #e695c3; --series-5: #8fd0f5; --series-6: #f0b840;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    "Liberation Sans", sans-serif;
  font-variant-numeric: lining-nums;
}
main { max-width: 74rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
p, .terms { max-width: 44rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 1rem; }
h2 {
  font-size: 1.3rem; line-height: 1.3; letter-spacing: -0.01em; margin: 3.25rem 0 1rem;
  padding-top: 1rem; border-top: 1px solid var(--rule);
}
h3 { font-size: 1.06rem; margin: 2.25rem 0 0.5rem; }
p { margin: 0 0 1rem; overflow-wrap: break-word; }
.lead { font-size: 1.14rem; line-height: 1.55; }
.note, figcaption, small { color: var(--muted); font-size: 0.85rem; line-height: 1.45; }
.key {
  display: grid; grid-template-columns: repeat(3, 1fr); gap: 1px;
  margin: 1.75rem 0; background: var(--rule); border: 1px solid var(--rule);
  border-radius: 6px; overflow: hidden;
}
.key div { background: var(--paper); padding: 0.9rem 1.1rem; }
.key dt { color: var(--muted); font-size: 0.85rem; }
.key dd {
  margin: 0; font-size: 1.45rem; font-weight: 600; line-height: 1.35; letter-spacing: -0.01em;
  font-variant-numeric: tabular-nums;
}
.key dd.note { font-size: 0.85rem; font-weight: 400; letter-spacing: 0; }
nav {
  display: flex; flex-wrap: wrap; gap: 0.3rem 1.05rem; font-size: 0.87rem; margin-top: 1.75rem;
}
a { color: var(--accent); text-decoration: none; }
a:hover, a:focus-visible { text-decoration: underline; }
figure { margin: 1.5rem 0 2rem; }
figure.table + .note { margin-top: -1.25rem; }
.scroll:has(.narrow) { width: fit-content; max-width: 100%; }
figcaption { max-width: 44rem; }
figcaption b { color: var(--ink); font-weight: 600; }
figure.table figcaption { margin-bottom: 0.5rem; }
figure.plots > figcaption, figure.pictures > figcaption { margin-top: 0.6rem; }
.scroll {
  overflow-x: auto; border: solid var(--ink); border-width: 1.5px 0;
}
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; line-height: 1.35; }
table.narrow { width: auto; min-width: min(100%, 26rem); }
th, td { padding: 0.5rem 0.6rem; text-align: left; vertical-align: top; font-weight: 400; }
thead th {
  vertical-align: bottom; font-weight: 600; font-size: 0.82rem;
  border-bottom: 1px solid var(--rule);
}
tbody tr + tr > * { border-top: 1px solid var(--rule); }
tbody th {
  font-weight: 500; white-space: nowrap; position: sticky; left: 0; background: var(--paper);
}
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
th small, td small { display: block; font-size: 0.78rem; font-weight: 400; }
tr.highlight > * { background: var(--mark); }
tr.highlight th, tr.highlight td { font-weight: 600; }
figure.plots > div, figure.pictures > div { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure.plots svg {
  flex: 1 1 20rem; min-width: 0; max-width: 33rem; height: auto; align-self: start;
}
figure.plots svg text { font-family: inherit !important; }
figure.pictures img { max-width: 100%; height: auto; border: 1px solid var(--rule); }
.gallery > div { display: flex; flex-wrap: wrap; gap: 0.9rem; }
.gallery figure { margin: 0; width: 7rem; }
.gallery img { width: 7rem; height: 7rem; object-fit: cover; border-radius: 4px; display: block; }
.gallery figcaption { margin-top: 0.3rem; font-size: 0.78rem; overflow-wrap: anywhere; }
.gallery figcaption b, .gallery figcaption span { display: block; }
.gallery .right::before { content: "\\2713\\00a0"; color: var(--series-3); }
.gallery .wrong::before { content: "\\2717\\00a0"; color: var(--series-2); }
.gallery small { font-size: inherit; }
details { border-top: 1px solid var(--rule); }
details + details { margin-top: 0; }
details:last-of-type { border-bottom: 1px solid var(--rule); }
summary {
  cursor: pointer; font-size: 1.06rem; font-weight: 600; padding: 0.8rem 0;
}
summary:hover { color: var(--accent); }
details[open] > summary { margin-bottom: 0.5rem; }
h2 + details, figure + details, p + details { margin-top: 3.25rem; }
figure.halves img { flex: 1 1 20rem; min-width: 0; max-width: 33rem; }
.terms dt { font-weight: 600; margin-top: 0.9rem; }
.terms dd { margin: 0.15rem 0 0; }
pre {
  background: var(--panel); border: 1px solid var(--rule); border-radius: 6px;
  padding: 1rem 1.1rem; overflow-x: auto; font-size: 0.85rem; line-height: 1.5;
}
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
@media (max-width: 40rem) {
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.6rem; }
  h2 { margin-top: 2.5rem; }
  .lead { font-size: 1.05rem; }
  .key div { padding: 0.6rem 0.7rem; }
  .key dd { font-size: 1.05rem; }
  th, td { padding: 0.45rem 0.6rem; }
  th.number { min-width: 4.75rem; }
  tbody th { white-space: normal; }
  td:last-child:not(.number) { min-width: 12rem; }
}
@media print {
  :root {
    --paper: #fff; --panel: #fff; --ink: #000; --muted: #444; --rule: #bbb; --mark: #f0f0f0;
    --series-1: #0072b2; --series-2: #d55e00; --series-3: #009e73;
    --series-4: #c4679b; --series-5: #3d9fd3; --series-6: #c98500;
  }
  @page { size: A4; margin: 16mm 14mm; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: 0.25rem 0.35rem; }
  thead th, th small, td small { font-size: 7pt; }
  h2, h3, .terms dt { break-after: avoid; }
  .key dd { font-size: 12pt; }
  tbody th { white-space: normal; }
  figure, .key { break-inside: avoid; }
  pre { white-space: pre-wrap; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
  .gallery figure { width: 22mm; }
  .gallery img { width: 22mm; height: 22mm; }
}
"""
