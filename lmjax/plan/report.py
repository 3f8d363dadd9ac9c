"""The report of a plan in the terminal.

Every figure shows where it is from, in a column or at its head. Of long tables there are the rows
that matter most; the page of `lmjax.plan.page` has them all.
"""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.core.task import Report
from lmjax.plan.wording import (
  GROUPS,
  breakdown,
  dollars,
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

PAGE = 'plan.html'

_COLUMNS, _ROWS, _BAR = 100, 8, 24
_LETTERS = {'compiled': '(c)', 'modelled': '(m)', 'given': '(g)'}
_LEGEND = 'where a figure is from: (c) compiled, (m) modelled, (g) given'


def terminal(report: Report, workdir: Path | str = '.') -> str:
  """What a plan comes to, in at most 100 columns.

  Args:
    report: of the plan. `ms` of a row of `timeline` spans all its `times` rounds, `start_ms` is on
      the same axis: a loop is drawn as one round, stretched. Units of totals for the job in
      dollars are '$'. `microbatch` is the rows of one of data x fsdp x expert in a pass.
    workdir: where page and report.json are.
  """
  sections = [
    _headline(report),
    _memory(report),
    _changes(report.get('changes') or []),
    _step(report),
    _traffic(report),
    _candidates(report['candidates']),
    _figures(report['figures']),
    _findings(report['findings']),
    _remarks('warnings', report['warnings']),
    _remarks('notes', report['notes']),
    _next(report, str(workdir)),
  ]
  return '\n\n'.join('\n'.join(lines) for lines in sections if lines)


def _headline(report: Report) -> list[str]:
  fits, by = verdict(report)
  speed = [
    f'{number(report["tokens_per_second"])} tokens/s',
    f'MFU {percent(report["mfu"])}',
    f'{number(report["days"])} days',
    dollars(report['dollars']),
  ]
  under = f'{mesh_text(report["mesh"])}; compiled in {number(report["compile_seconds"])} s; '
  under += f'goodput {percent(report["goodput"])} (m)'
  return [
    *_wrap(subject(report)),
    *_wrap(f'{fits.upper()} {by} (c); {", ".join(speed)} (m)'),
    *_wrap(under),
    _LEGEND,
  ]


def _memory(report: Report) -> list[str]:
  owners = sorted(report['memory'], key=lambda row: -row['gib'])
  if not owners:
    return []
  peak = report['peak_gib'] or sum(row['gib'] for row in owners)
  scale = max(peak, report['hbm_gib'] or 0.0) or 1.0
  line = lambda name, gib: (f'  {name}', f'{gib:,.2f}', percent(gib / scale), _bar(gib / scale))
  rows = [line(row['owner'], row['gib']) for row in owners[:_ROWS]]
  if len(owners) > _ROWS:
    rest = sum(row['gib'] for row in owners[_ROWS:])
    rows.append(line(f'{len(owners) - _ROWS} more', rest))
  rows.append(('  peak', f'{peak:,.2f}', percent(peak / scale), ''))
  if report['hbm_gib'] is not None:
    hbm = report['hbm_gib']
    rows.append(('  the card offers (g)', f'{hbm:,.2f}', percent(hbm / scale), ''))
  return _table([('memory a GPU', 'GiB (c)', 'share', ''), *rows], '<>><')


def _step(report: Report) -> list[str]:
  timeline = report['timeline']
  total = step_ms(timeline)
  lines = []
  if total:
    rows = [
      (f'  {name}', f'{ms:,.1f}', percent(ms / total), _bar(ms / total))
      for name, ms in breakdown(timeline)
    ]
    head = ('step', 'ms (m)', 'share', '')
    lines = _table([head, *rows, ('  all', f'{total:,.1f}', percent(1.0), '')], '<>><')
  counts = lambda of: ', '.join(f'{name} {number(n)}' for name, n in of.items())
  if report['flops']:
    lines += _wrap(f'PFLOP a GPU a step (c): {counts(report["flops"])}')
  if report['kernels']:
    most = dict(Counter(report['kernels']).most_common(_ROWS))
    left = _left(len(report['kernels']) - len(most))
    lines += _wrap(f'launches a step (c): {counts(most)}{left and f", {left}"}')
  return lines


def _traffic(report: Report) -> list[str]:
  traffic = report['traffic']
  if not traffic:
    return []
  order = sorted(traffic, key=lambda row: (-(row['exposed_gib'] or 0.0), -row['gib']))
  head = ('traffic a GPU a step', 'axis', 'over', 'dtype', 'count (c)', 'GiB (c)')
  rows: list[tuple[str, ...]] = [(*head, 'exposed (m)', 's (m)')]
  for row in order[:_ROWS]:
    rows.append(
      (
        f'  {row["kind"]}',
        row['axis'],
        'between nodes' if row['between_nodes'] else 'in node',
        row['dtype'],
        f'{row["count"]:,}',
        number(row['gib'], 2),
        number(row['exposed_gib'], 2),
        number(row['seconds'], 3),
      )
    )
  wire = ', '.join(f'{axis} {number(gib)}' for axis, gib in report['wire_gib'].items())
  told = f'GiB by axis (c): {wire}; exposed (m): {number(report["exposed_gib"])}'
  return [*_table(rows, '<<<<>>>>'), *_more(traffic), *_wrap(told)]


def _candidates(candidates: Sequence[Mapping[str, Any]]) -> list[str]:
  if not candidates:
    return []
  rows: list[tuple[str, ...]] = [
    ('candidates', 'GPUs', 'GiB', 'tokens/s (m)', '', 'rows', 'remat', 'mesh')
  ]
  for each in ranked(candidates)[:_ROWS]:
    rows.append(
      (
        _standing(each),
        f'{each["gpus"]:,}',
        number(each['peak_gib'], 1),
        number(each['tokens_per_second'], 1),
        _LETTERS[each['label']],
        f'{each["microbatch"]} x {each["accumulate"]}',
        str(each['remat']),
        mesh_text(each['mesh']),
      )
    )
  told = '  rows: those of a microbatch x how many are accumulated'
  return [*_table(rows, '<>>><><<'), *_more(candidates), told]


def _standing(candidate: Mapping[str, Any]) -> str:
  """How a candidate compares; pareto: none beats it in speed, memory and number of GPUs."""
  if candidate['best']:
    return '* best'
  if not candidate['fits']:
    return '  too large'
  return '  pareto' if candidate.get('pareto') else '  fits'


def _changes(changes: Sequence[Mapping[str, Any]]) -> list[str]:
  if not changes:
    return []
  rows = [('changes', 'GiB', 'tokens/s (m)', '', 'flags, cheapest first')]
  for change in changes[:_ROWS]:
    rows.append(
      (
        '  fits' if change['fits'] else '  too large',
        number(change['peak_gib'], 1),
        number(change['tokens_per_second'], 1),
        _LETTERS[change['label']],
        change['flags'],
      )
    )
  return [*_table(rows, '<>><<'), *_more(changes)]


def _figures(figures: Sequence[Mapping[str, Any]]) -> list[str]:
  rows: list[tuple[str, ...]] = []
  for group, title in GROUPS.items():
    members = [each for each in figures if each['group'] == group]
    rows += [(title, '', '', '')] if members else []
    for each in members:
      shown = quantity(each['value'], each['unit'])
      rows.append((f'  {each["name"]}', shown, _LETTERS[each['label']], each['note'] or ''))
  return _table(rows, '<><<') if rows else []


def _findings(findings: Sequence[Mapping[str, Any]]) -> list[str]:
  if not findings:
    return []
  lines = [f'findings: {len(findings)}']
  for each in findings[:_ROWS]:
    tensor = f' ({each["tensor"]})' if each['tensor'] else ''
    lines += _wrap(f'{each["what"]}{tensor}: {each["cost"]}', '  - ', 4)
    lines += _wrap(f'at {each["where"]}', '    ', 7) if each['where'] else []
    lines += _wrap(f'fix: {each["fix"]}', '    ', 9) if each['fix'] else []
  return [*lines, *_more(findings)]


def _remarks(title: str, texts: Sequence[str]) -> list[str]:
  if not texts:
    return []
  lines = [title]
  for text in texts[:_ROWS]:
    wrapped = _wrap(text, '  - ', 4)
    # The compiler's lines quote whole instructions.
    lines += wrapped if len(wrapped) <= 4 else [*wrapped[:3], '    ...']
  return [*lines, *_more(texts)]


def _next(report: Report, workdir: str) -> list[str]:
  told, words = next_command(report)
  lines = [f'  {words[0]} {words[1]} {words[2]}']
  for word in words[3:]:
    if len(lines[-1]) + len(word) > _COLUMNS - 3:
      lines[-1] += ' \\'
      lines.append(f'    {word}')
    else:
      lines[-1] += f' {word}'
  return [f'written to {workdir}: {PAGE}, report.json', f'next, {told}:', *lines]


def _table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
  """Lines of aligned columns; the last column is wrapped."""
  widths = [max(len(row[column]) for row in rows) for column in range(len(align))]
  room = max(20, _COLUMNS - sum(widths[:-1]) - 2 * len(widths[:-1]))
  widths[-1] = min(room, widths[-1])
  lines = []
  for row in rows:
    first, *more = textwrap.wrap(row[-1], room) or ['']
    cells = zip([*row[:-1], first], align, widths, strict=True)
    lines.append('  '.join(f'{text:{how}{width}}' for text, how, width in cells))
    lines += [' ' * (_COLUMNS - room) + text for text in more]
  return [line.rstrip()[:_COLUMNS] for line in lines]


def _wrap(text: str, first: str = '', hang: int = 2) -> list[str]:
  text = ' '.join(text.split())
  return textwrap.wrap(
    text, _COLUMNS, initial_indent=first, subsequent_indent=' ' * hang, break_on_hyphens=False
  )


def _bar(share: float) -> str:
  return '#' * round(share * _BAR)


def _left(count: int) -> str:
  return f'{count:,} more on the page' if count > 0 else ''


def _more(rows: Sequence[Any]) -> list[str]:
  left = _left(len(rows) - _ROWS)
  return [f'  {left}'] if left else []
