"""The tags that pages of reports are made of, and how they look by day and by night.

One colour in tints, `t0` the strongest to `t7`, and one for what is wrong.
"""

import html
from collections.abc import Sequence

TINTS = 8


class Markup(str):
  """Text that is HTML already; any other is escaped where it meets a tag."""


def escape(value: object) -> Markup:
  return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def tag(name: str, *children: object, **attributes: object) -> Markup:
  """An element; of attributes `class_` is `class` and `stroke_width` `stroke-width`."""
  shown = ''.join(
    f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
    for key, value in attributes.items()
  )
  return Markup(f'<{name}{shown}>{"".join(map(escape, children))}</{name}>')


def join(parts: Sequence[Markup]) -> Markup:
  return Markup('\n'.join(parts))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
  """A table; a head that starts with `>` is of numbers, with `~` of text that may be wrapped."""
  kinds = [{'>': {'class_': 'n'}, '~': {'class_': 'w'}}.get(name[:1], {}) for name in head]
  names = [name[1:] if kind else name for name, kind in zip(head, kinds, strict=True)]
  top = [tag('th', name, scope='col', **kind) for name, kind in zip(names, kinds, strict=True)]
  body = [
    tag('tr', *(tag('td', cell, **kind) for cell, kind in zip(row, kinds, strict=True)))
    for row in rows
  ]
  above = tag('thead', tag('tr', *top)) if any(names) else ''
  return tag('div', tag('table', above, tag('tbody', *body)), class_='scroll')


def legend(entries: Sequence[tuple[str, str, str]]) -> Markup:
  """What tones mean, each (name, tone, figure)."""
  items = [
    tag('li', tag('i', class_=f'key {tone}'), name, ' ', tag('b', text))
    for name, tone, text in entries
  ]
  return tag('ul', *items, class_='legend')


def badge(label: str) -> Markup:
  """Where a figure is from."""
  return tag('span', label, class_=f'badge {label}')


def document(title: str, *parts: Markup) -> str:
  """A page that needs no other file: nothing is loaded, nothing runs."""
  head = tag(
    'head',
    Markup('<meta charset="utf-8">'),
    Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
    tag('title', title),
    tag('style', Markup(_STYLE)),
  )
  body = tag('body', tag('main', *parts))
  return f'<!doctype html>\n{tag("html", head, body, lang="en")}\n'


def section(title: str, *parts: Markup, label: str = '') -> Markup:
  """A part of the page under a heading; `label` is a badge beside it."""
  return tag('section', tag('h2', title, badge(label) if label else ''), *parts)


def pair(left: Markup | None, right: Markup | None) -> Markup | None:
  """Two things beside each other, where there is room."""
  return tag('div', left, right, class_='pair') if left and right else left or right


_STYLE = """
:root {
  color-scheme: light dark;
  --back: #fdfdfc; --raised: #f4f5f5; --ink: #16191c; --quiet: #626a72; --rule: #dfe2e4;
  --accent: #0b6470; --on-accent: #ffffff; --alert: #c2410c; --net: #9aa3ab;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #101315; --raised: #191d20; --ink: #e4e7e9; --quiet: #949da5; --rule: #2b3135;
    --accent: #56b9c6; --on-accent: #06181b; --alert: #f2895b; --net: #5b656d;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--back); color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1040px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 17px; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
h2 {
  font-size: 13px; font-weight: 600; margin: 34px 0 12px; padding-top: 8px;
  border-top: 1px solid var(--ink);
}
h3 { font-size: 13px; font-weight: 600; margin: 18px 0 2px; color: var(--quiet); }
p { margin: 4px 0; }
.quiet { color: var(--quiet); }
figure + .quiet { font-size: 12px; }
.bad { color: var(--alert); }
.verdict { font-size: 28px; line-height: 1.2; margin: 4px 0 6px; letter-spacing: -.01em; }
.verdict strong { font-weight: 650; color: var(--accent); }
.verdict.bad, .verdict.bad strong { color: var(--alert); }
.tiles {
  display: grid; grid-template-columns: repeat(4, 1fr); gap: 1px; margin: 18px 0 0;
  background: var(--rule); border: 1px solid var(--rule);
}
.tiles div { background: var(--back); padding: 8px 12px 9px; }
dt { font-size: 12px; color: var(--quiet); }
dd { margin: 0; font-size: 20px; font-weight: 600; letter-spacing: -.01em; white-space: nowrap; }
h2 .badge, dt .badge { margin-left: 5px; vertical-align: 1px; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); column-gap: 36px; }
figure { margin: 0 0 10px; }
svg { display: block; overflow: visible; }
svg svg { overflow: hidden; }
svg text { font-size: 12px; fill: var(--quiet); }
svg text.strong { fill: var(--ink); }
svg text.near { fill: var(--ink); font-weight: 600; text-anchor: middle; }
svg text.name { fill: var(--ink); }
svg text.on-t0, svg text.on-t1, svg text.on-t2 { fill: var(--on-accent); }
.t0, .t1, .t2, .t3, .t4, .t5, .t6, .t7 { --tint: var(--accent); fill: var(--accent); }
.t1 { opacity: .84; } .t2 { opacity: .7; } .t3 { opacity: .56; } .t4 { opacity: .44; }
.t5 { opacity: .35; } .t6 { opacity: .27; } .t7 { opacity: .2; }
.net { --tint: var(--net); fill: var(--net); opacity: .6; }
.alert { --tint: var(--alert); fill: var(--alert); }
.faint { fill: var(--alert); opacity: .1; }
.box { stroke: var(--back); stroke-width: 1; }
.track { fill: none; stroke: var(--quiet); stroke-width: 1; }
.limit { stroke: var(--ink); stroke-width: 1.5; }
.grid { stroke: var(--rule); }
.axis { stroke: var(--quiet); }
.path { stroke: var(--accent); stroke-width: 1.5; opacity: .5; }
.dot { stroke: var(--accent); stroke-width: 2; fill: var(--back); }
.dot.ring { fill: var(--accent); }
.dot.cross { stroke: var(--alert); stroke-dasharray: 3 2; }
.legend {
  display: flex; flex-wrap: wrap; gap: 2px 18px; list-style: none; margin: 8px 0 0; padding: 0;
  font-size: 12px; color: var(--quiet);
}
.legend b { font-weight: 600; color: var(--ink); }
.key { display: inline-block; width: 10px; height: 10px; margin-right: 6px; background: var(--tint); }
.key.ring, .key.hollow, .key.cross { border-radius: 50%; border: 2px solid var(--accent); }
.key.ring { background: var(--accent); }
.key.cross { border: 2px dashed var(--alert); }
details { margin-top: 8px; }
summary { cursor: pointer; font-size: 12px; color: var(--quiet); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 6px 0 4px; }
th { font-size: 12px; font-weight: 500; color: var(--quiet); text-align: left; vertical-align: bottom; }
th, td { padding: 4px 16px 4px 0; border-bottom: 1px solid var(--rule); white-space: nowrap; }
td { vertical-align: top; }
.n { text-align: right; }
.w { width: 100%; min-width: 110px; padding-right: 0; white-space: normal; }
.badge {
  display: inline-block; font-size: 11px; line-height: 15px; padding: 0 6px; border-radius: 8px;
  font-weight: 500; white-space: nowrap; border: 1px solid var(--accent); color: var(--accent);
}
.badge.compiled { background: var(--accent); color: var(--on-accent); }
.badge.given { border-color: var(--rule); color: var(--quiet); }
code, .where { font-family: ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace; }
code { font-size: 12.5px; overflow-wrap: anywhere; }
.where { font-size: 12px; color: var(--quiet); overflow-wrap: anywhere; }
pre .word { display: inline-block; }
pre { background: var(--raised); padding: 12px 14px; margin: 8px 0; white-space: pre-wrap; }
.findings, .remarks { padding-left: 18px; margin: 0; }
.findings li, .remarks li { margin: 0 0 10px; overflow-wrap: anywhere; }
@media (max-width: 600px) {
  main { padding: 18px 14px 40px; }
  .verdict { font-size: 22px; }
  .tiles { grid-template-columns: repeat(2, 1fr); }
  dd { font-size: 17px; }
  .pair { grid-template-columns: minmax(0, 1fr); }
  svg text.name { display: none; }
  svg text.name.wide { display: inline; }
  th, td { padding-right: 12px; }
}
"""
