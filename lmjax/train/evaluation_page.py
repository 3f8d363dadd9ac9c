"""Before and after, measured: one HTML page of a report that has them, alone in one file."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.core import charts
from lmjax.core.charts import Bar, Part, figure
from lmjax.core.elements import Markup, document, section, table, tag
from lmjax.core.task import Report

_SAMPLES = 30
_SURE = 0.05  # a p-value below it is not chance
_LOWER = ('bits_per_byte', 'loss', 'toxi', 'perplexity', 'kl')  # of these less is better


def page(report: Report) -> str:
  """The page of a report with `after` and, where there are, `before`, `differences` and `samples`."""
  before, after = report.get('before') or {}, report['after']
  differences = report.get('differences') or {}
  title = 'Before and after' if before else 'Evaluation'
  parts = [
    _head(title, report, differences),
    section('Metrics', _metrics(before, after), _numbers(report, before, after, differences)),
    *filter(None, [_samples(report.get('samples') or [])]),
  ]
  return document(title, *parts)


def _head(title: str, report: Report, differences: Mapping[str, Any]) -> Markup:
  sure = {name: each for name, each in differences.items() if each['p'] < _SURE}
  better = [name for name, each in sure.items() if _is_better(name, each['difference'])]
  worse = [name for name in sure if name not in better]
  lines = [tag('h1', title)]
  if differences:
    word = f'{len(better)} better, {len(worse)} worse'
    rest = f', {len(differences) - len(sure)} not told apart'
    lines.append(tag('p', tag('strong', word), rest, class_='verdict bad' if worse else 'verdict'))
  for side, where in (report.get('checkpoints') or {}).items():
    lines.append(tag('p', f'{side}: ', tag('code', where['path']), class_='quiet'))
  shown = [
    (key, report.get(key)) for key in ('steps', 'trainable_params', 'peak_rss_gib', 'seconds')
  ]
  tiles = [
    tag(
      'div',
      tag('dt', key.replace('_', ' ')),
      tag('dd', f'{value:,}' if isinstance(value, int) else f'{value:,.4g}'),
    )
    for key, value in shown
    if isinstance(value, int | float)
  ]
  return tag('header', *lines, *([tag('dl', *tiles, class_='tiles')] if tiles else []))


def _is_better(name: str, difference: float) -> bool:
  return (difference < 0) == any(part in name for part in _LOWER)


def _metrics(before: Mapping[str, float], after: Mapping[str, float]) -> Markup:
  """A pair of bars for each metric, each pair to a scale of its own."""
  bars = []
  for name, value in after.items():
    old = before.get(name)
    scale = max(abs(value), abs(old or 0.0), 1e-12)
    if old is not None:
      note = f'{name} before: {old:.4g}'
      bars.append(Bar(f'{name}, before', [Part('', abs(old) / scale, 't4', note)], f'{old:.4g}'))
    note = f'{name} after: {value:.4g}'
    bars.append(Bar(f'{name}, after', [Part('', abs(value) / scale, 't0', note)], f'{value:.4g}'))
  told = '; '.join(f'{name} {before.get(name, "none")} -> {after[name]}' for name in after)
  rows = [
    (name, *(f'{side[name]:.6g}' if name in side else '' for side in (before, after)))
    for name in after
  ]
  numbers = table(('', '>before', '>after'), rows)
  tones = [('before', 't4', ''), ('after', 't0', '')] if before else []
  return figure('metrics', 'Metrics', told, charts.bars(bars), numbers=numbers, tones=tones)


def _numbers(
  report: Report,
  before: Mapping[str, float],
  after: Mapping[str, float],
  differences: Mapping[str, Any],
) -> Markup:
  rows = []
  for name, value in after.items():
    each = differences.get(name)
    interval = f'{each["low"]:+.4f} to {each["high"]:+.4f}' if each else ''
    rows.append(
      (
        name,
        f'{before[name]:.4f}' if name in before else '',
        f'{value:.4f}',
        f'{each["difference"]:+.4f}' if each else '',
        interval,
        f'{each["p"]:.3f}' if each else '',
        str((report.get('items') or {}).get(name, '')),
      )
    )
  head = ('', '>before', '>after', '>difference', '>95% interval', '>p', '>items')
  note = 'Intervals and p-values are of a paired bootstrap over the items.'
  return Markup(table(head, rows) + (tag('p', note, class_='quiet') if differences else ''))


def _samples(samples: Sequence[Mapping[str, str]]) -> Markup | None:
  items = []
  for sample in samples[:_SAMPLES]:
    texts = [tag('p', tag('strong', f'{key}: '), text) for key, text in sample.items()]
    items.append(tag('li', *texts))
  if not items:
    return None
  left = len(samples) - len(items)
  more = [tag('p', f'{left:,} more are in report.json', class_='quiet')] if left > 0 else []
  return section('Answers', tag('ul', *items, class_='findings'), *more)
