"""The report of a plan as one HTML page: nothing is loaded, nothing runs, every text is escaped.

Charts are drawn by `lmjax.core.charts`; under each are its numbers. Badges tell where a figure is from.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.core import charts
from lmjax.core.charts import Bar, Block, Drawing, Part, Point, figure
from lmjax.core.elements import TINTS, Markup, badge, document, join, pair, section, table, tag
from lmjax.core.task import Report
from lmjax.plan.wording import (
  GROUPS,
  SOURCES,
  breakdown,
  dollars,
  exposed,
  mesh_text,
  next_command,
  number,
  percent,
  quantity,
  ranked,
  step_ms,
  subject,
  verdict,
)

_ROWS = 60  # rows of the timeline that are told in numbers
_TONES = {'product': 't0', 'attention': 't2', 'experts': 't4', 'memory': 't6'}

Row = Mapping[str, Any]


def page(report: Report) -> str:
  """The page of a report as `lmjax.plan.report.terminal` takes it."""
  traffic, figures = report['traffic'], report['figures']
  sections = [
    _changes(report.get('changes') or []),
    _memory(report),
    _timeline(report['timeline']),
    pair(_axes(traffic), _money(figures)),
    _collectives(traffic),
    _candidates(report),
    _findings(report['findings']),
    _remarks('Warnings of the compiler', report['warnings']),
    _figures(figures),
    _program(report),
    _remarks('Notes', report['notes']),
    _next(report),
  ]
  return document(f'Plan: {subject(report)}', _head(report), *filter(None, sections))


def _head(report: Report) -> Markup:
  word, by = verdict(report)
  shown = [
    ('tokens_per_second', 'tokens/s', number(report['tokens_per_second'])),
    ('mfu', 'MFU', percent(report['mfu'])),
    ('days', 'days', number(report['days'])),
    ('dollars', 'cost', dollars(report['dollars'])),
    ('goodput', 'goodput', percent(report['goodput'])),
    ('peak_gib', 'peak a GPU', quantity(report['peak_gib'], 'GiB')),
    ('hbm_gib', 'the card offers', quantity(report['hbm_gib'], 'GiB')),
    ('exposed_gib', 'exposed', quantity(report['exposed_gib'], 'GiB')),
  ]
  tiles = [
    tag('div', tag('dt', name, ' ', badge(SOURCES[key])), tag('dd', text))
    for key, name, text in shown
  ]
  tone = 'verdict bad' if report['fits'] is False else 'verdict'
  mesh = f'{mesh_text(report["mesh"])}; compiled in {number(report["compile_seconds"])} s'
  return tag(
    'header',
    tag('h1', subject(report)),
    tag('p', tag('strong', word), f' {by}', class_=tone),
    tag('p', mesh, class_='quiet'),
    tag('dl', *tiles, class_='tiles'),
  )


def _changes(changes: Sequence[Row]) -> Markup | None:
  rows = [
    (
      _fits(each['fits']),
      number(each['peak_gib'], 1),
      number(each['tokens_per_second'], 1),
      badge(each['label']),
      tag('code', each['flags']),
    )
    for each in changes
  ]
  head = ('', '>GiB a GPU', '>tokens/s', '', '~flags, cheapest first')
  return section('What makes it fit', table(head, rows)) if rows else None


def _memory(report: Report) -> Markup | None:
  owners = sorted(report['memory'], key=lambda row: -row['gib'])
  if not owners:
    return None
  peak = sum(row['gib'] for row in owners) or 1.0
  parts = [
    Part(row['owner'], row['gib'], _tint(n), f'{row["owner"]}: {row["gib"]:.2f} GiB')
    for n, row in enumerate(owners)
  ]
  offered = quantity(report['hbm_gib'], 'GiB')
  drawing = charts.stacked(parts, report['hbm_gib'], f'{offered} offered')
  rows = [
    (row['owner'], f'{row["gib"]:,.2f}', percent(row['gib'] / peak), badge('compiled'))
    for row in owners
  ]
  told = f'{_named(rows)}; the card offers {offered}'
  numbers = table(('owner', '>GiB', '>share', ''), rows)
  tones = [(part.name, part.tone, f'{part.value:.2f}') for part in parts]
  chart = figure('memory', 'Memory by owner', told, drawing, numbers=numbers, tones=tones)
  return section('Memory a GPU, GiB', chart, label='compiled')


def _timeline(timeline: Sequence[Row]) -> Markup | None:
  total = step_ms(timeline)
  if not total:
    return None
  scale, unit = (1000.0, 's') if total >= 2000 else (1.0, 'ms')
  lanes: dict[str, list[Block]] = {'compute': [], 'network': []}
  tones = {}
  for row in timeline:
    tone = 'net' if row['stream'] == 'network' else _TONES.get(row['kind'], 't7')
    note = f'{row["name"]}, {row["kind"]}: {row["ms"]:,.1f} ms, {row["times"]:,} times'
    place = (row['start_ms'] / scale, row['ms'] / scale)
    lanes[row['stream']].append(Block(*place, row['kind'], tone, note))
    tones[row['kind']] = tone
  marks = [(start / scale, end / scale) for start, end in exposed(timeline)]
  drawing = charts.lanes(list(lanes.items()), marks, unit)
  spent = [(name, f'{ms:,.1f}', percent(ms / total)) for name, ms in breakdown(timeline)]
  keys = [
    (n, tones.get(n, 'alert' if 'network' in n else 'none'), f'{ms} ms') for n, ms, _ in spent
  ]
  numbers = join([_spent(spent), _longest(timeline)])
  told = f'{total:,.1f} ms: {_named(spent)}'
  chart = figure(
    'step', 'One step', told, drawing, numbers=numbers, tones=[*keys, ('network', 'net', '')]
  )
  quiet = tag('p', 'A loop is drawn as one round, stretched over all its rounds.', class_='quiet')
  return section(f'One step, {total:,.1f} ms', chart, quiet, label='modelled')


def _spent(spent: Sequence[tuple[str, str, str]]) -> Markup:
  return table(('', '>ms', '>share', ''), [(*part, badge('modelled')) for part in spent])


def _longest(timeline: Sequence[Row]) -> Markup:
  """The rows of the timeline that take most of the step."""
  longest = sorted(timeline, key=lambda row: -row['ms'])[:_ROWS]
  rows = [
    (
      row['stream'],
      row['name'],
      row['kind'],
      number(row['start_ms'], 1),
      number(row['ms'], 1),
      number(row['times']),
    )
    for row in longest
  ]
  left = len(timeline) - len(longest)
  more = [tag('p', f'{left:,} shorter ones are in report.json', class_='quiet')] if left else []
  return join([table(('', 'name', 'kind', '>from ms', '>ms', '>times'), rows), *more])


def _axes(traffic: Sequence[Row]) -> Markup | None:
  bars, rows = [], []
  for axis in dict.fromkeys(row['axis'] for row in traffic):
    mine = [row for row in traffic if row['axis'] == axis]
    between = sum(row['gib'] for row in mine if row['between_nodes'])
    inside = sum(row['gib'] for row in mine if not row['between_nodes'])
    waits = sum(row['exposed_gib'] or 0.0 for row in mine)
    parts = [
      Part('between nodes', between, 't0', f'{axis}, between nodes: {between:,.2f} GiB'),
      Part('in node', inside, 't4', f'{axis}, in node: {inside:,.2f} GiB'),
    ]
    bars.append(Bar(axis, parts, f'{between + inside:,.1f} GiB', waits))
    rows.append((axis, f'{between:,.2f}', f'{inside:,.2f}', f'{waits:,.2f}'))
  if not bars:
    return None
  told = '; '.join(f'{row[0]}: {row[1]} GiB between nodes, {row[2]} in node' for row in rows)
  tones = [('between nodes', 't0', ''), ('in node', 't4', ''), ('exposed, modelled', 'alert', '')]
  numbers = table(('axis', '>GiB between nodes', '>GiB in node', '>GiB exposed'), rows)
  drawing = charts.bars(bars)
  chart = figure('traffic', 'Traffic by axis', told, drawing, numbers=numbers, tones=tones)
  return section('Traffic a GPU a step', chart, label='compiled')


def _collectives(traffic: Sequence[Row]) -> Markup | None:
  rows = [
    (
      row['kind'],
      row['axis'],
      'between nodes' if row['between_nodes'] else 'in node',
      row['dtype'],
      number(row['count']),
      number(row['gib'], 2),
      badge('compiled'),
      number(row['exposed_gib'], 2),
      number(row['seconds'], 3),
      badge('modelled'),
    )
    for row in sorted(traffic, key=lambda row: -row['gib'])
  ]
  head = ('kind', 'axis', 'over', 'dtype', '>count', '>GiB', '', '>GiB exposed', '>seconds', '')
  return section('Collectives a GPU a step', table(head, rows)) if rows else None


def _money(figures: Sequence[Row]) -> Markup | None:
  paid = [row for row in figures if row['group'] == 'money' and row['unit'] == '$' and row['value']]
  if not paid:
    return None
  bar = lambda row: Part(row['name'], row['value'], 't0', f'{row["name"]}: {row["note"]}')
  drawing = charts.bars([Bar(row['name'], [bar(row)], dollars(row['value'])) for row in paid])
  rows = [(row['name'], dollars(row['value']), badge(row['label'])) for row in paid]
  numbers = table(('', '>', ''), rows)
  return section('Cost', figure('cost', 'Cost', _named(rows), drawing, numbers=numbers))


def _candidates(report: Report) -> Markup | None:
  candidates = ranked(report['candidates'])
  rows = [
    (
      tag('strong', 'best') if each['best'] else _fits(each['fits']),
      number(each['peak_gib'], 1),
      number(each['tokens_per_second'], 2),
      badge(each['label']),
      number(each['gpus']),
      f'{each["microbatch"]} x {each["accumulate"]}',
      each['remat'],
      mesh_text(each['mesh']),
    )
    for each in candidates
  ]
  head = ('', '>GiB', '>tokens/s', '', '>GPUs', '>rows x passes', 'remat', 'mesh')
  numbers = table(head, rows)
  drawing = _scatter(candidates, report['hbm_gib'])
  if drawing is None:
    return section('Candidates', numbers) if rows else None
  tones = [('compiled', 'ring', ''), ('modelled', 'hollow', ''), ('does not fit', 'cross', '')]
  told = f'{len(candidates)} candidates; {_named([(row[-1], row[2]) for row in rows[:3]])} tokens/s'
  chart = figure('candidates', 'Speed over memory', told, drawing, numbers=numbers, tones=tones)
  return section('Candidates', chart)


def _scatter(candidates: Sequence[Row], offered: float | None) -> Drawing | None:
  known = [each for each in candidates if None not in (each['peak_gib'], each['tokens_per_second'])]
  if not known:
    return None
  fastest = max(each['tokens_per_second'] for each in known)
  unit, scale = ('M ', 1e6) if fastest >= 1e6 else ('k ', 1e3) if fastest >= 1e3 else ('', 1.0)
  points, path = [], []
  for each in sorted(known, key=lambda each: (each['peak_gib'], -each['tokens_per_second'])):
    tone = 'ring' if each['label'] == 'compiled' else 'hollow'
    how = f'{mesh_text(each["mesh"])}, {each["microbatch"]} x {each["accumulate"]}, {each["remat"]}'
    speed = f'{number(each["tokens_per_second"])} tokens/s, {each["label"]}'
    point = Point(
      each['peak_gib'],
      each['tokens_per_second'] / scale,
      'best' if each['best'] else '',
      tone if each['fits'] else 'cross',
      f'{how}: {each["peak_gib"]:.1f} GiB, {speed}',
    )
    points.append(point)
    if each['fits'] and (not path or point.y > path[-1].y):
      path.append(point)
  limit = None if offered is None else (offered, f'{offered:.1f} GiB offered')
  return charts.scatter(points, limit, path, f'{unit}tokens/s over GiB a GPU')


def _findings(findings: Sequence[Row]) -> Markup | None:
  items = []
  for each in findings:
    tensor = tag('span', '(', tag('code', each['tensor']), ')') if each['tensor'] else ''
    lines = [tag('p', tag('strong', each['what']), ' ', tensor, f': {each["cost"]}')]
    lines += [tag('p', each['where'], class_='where')] if each['where'] else []
    lines += [tag('p', 'fix: ', tag('code', each['fix']))] if each['fix'] else []
    items.append(tag('li', *lines))
  return section('Findings', tag('ul', *items, class_='findings')) if items else None


def _remarks(title: str, texts: Sequence[str]) -> Markup | None:
  items = [tag('li', text) for text in texts]
  return section(title, tag('ul', *items, class_='remarks')) if items else None


def _figures(figures: Sequence[Row]) -> Markup | None:
  groups = []
  for group, title in GROUPS.items():
    rows = [
      (row['name'], quantity(row['value'], row['unit']), badge(row['label']), row['note'] or '')
      for row in figures
      if row['group'] == group
    ]
    if rows:
      groups.append(tag('div', tag('h3', title), table(('', '>', '', '~'), rows)))
  return section('Figures', *groups) if groups else None


def _program(report: Report) -> Markup | None:
  kernels = sorted(report['kernels'].items(), key=lambda item: -item[1])
  work = [(name, f'{pflop:,.3f}') for name, pflop in report['flops'].items()]
  runs = [(name, number(count)) for name, count in kernels]
  both = pair(
    table(('kind of work', '>PFLOP a GPU a step'), work) if work else None,
    table(('kernel', '>launches a step'), runs) if runs else None,
  )
  return section('Program', both, label='compiled') if both else None


def _next(report: Report) -> Markup:
  told, words = next_command(report)
  command = ' '.join(tag('span', word, class_='word') for word in words)
  return section('Next', tag('p', f'{told}:'), tag('pre', tag('code', Markup(command))))


def _named(rows: Sequence[Sequence[str]]) -> str:
  """The first two columns in words."""
  return ', '.join(f'{row[0]} {row[1]}' for row in rows)


def _fits(fits: bool) -> Markup:
  return tag('span', 'fits' if fits else 'too large', class_='quiet' if fits else 'bad')


def _tint(index: int) -> str:
  return f't{min(index, TINTS - 1)}'
