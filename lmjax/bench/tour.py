"""The task that makes one page of the reports of some runs: figures, what was written, banners.

Knows a few keys of reports by name, and shows of a run those that it has.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.core import elements
from lmjax.core.config import leaf
from lmjax.core.elements import Markup, tag
from lmjax.core.errors import UserError, need
from lmjax.core.storage import at
from lmjax.core.task import Report, Task

# (what it is called, its path in a report)
_FIGURES = (
  ('seconds, start to end', 'seconds'),
  ('parameters', 'params'),
  ('parameters that learn', 'trainable_params'),
  ('steps', 'steps'),
  ('tokens a second', 'tokens_per_second'),
  ('bits per byte, held-out posts', 'bits_per_byte'),
  ('the same of a Kneser-Ney 5-gram', 'baseline_bits_per_byte.kneser_ney'),
  ('bits per byte before', 'before.bits_per_byte'),
  ('bits per byte after', 'after.bits_per_byte'),
  ('loss before', 'before.loss'),
  ('loss after', 'after.loss'),
  ('posts that can be searched', 'documents'),
  ('posts read a second', 'encode_posts_per_second'),
  ('recall@10 against comparing all vectors', 'recall_at_10'),
  ('copies drawn', 'copies.drawn'),
  ('copies that the review refused', 'copies.refused'),
)
_TEXTS = ('samples', 'answers', 'creatives')  # lists of texts, or of rows
_SHOWN = 6  # of each


class TourPage(Task):
  """Makes an HTML page of the reports of runs, in their order."""

  runs: tuple[str, ...] = leaf((), 'Folders of finished runs, with commas.')
  output: str = leaf('', 'The page; empty: page.html in the workdir.')

  def run(self, workdir: Path) -> Report:
    """UserError where a run has no report."""
    need('runs', ','.join(self.runs), 'FOLDER,FOLDER, of finished runs')
    reports = [read_report(folder) for folder in self.runs]
    path = Path(self.output) if self.output else workdir / 'page.html'
    path.write_text(tour_page(reports), encoding='utf-8')
    print(f'{len(reports)} runs on one page: {path}')
    return {'page': str(path), 'runs': list(self.runs)}


def read_report(folder: str) -> Report:
  """The report of a run; UserError where there is none."""
  path = at(folder) / 'report.json'
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    raise UserError(f'--runs: {path} is no report: pass folders of finished runs') from None


def tour_page(reports: Sequence[Report]) -> str:
  """One section a run, as HTML."""
  head = tag('p', f'{reports[0]["device"]}, {reports[0]["started"][:10]}')
  return elements.document('From posts to products', head, *map(_section, reports))


def _section(report: Report) -> Markup:
  found = [(name, _find(report, path)) for name, path in _FIGURES]
  rows = [(name, _text(value)) for name, value in found if value is not None]
  parts = [elements.table(['~', '>'], rows)]
  parts += [_listed(report[key][:_SHOWN]) for key in _TEXTS if report.get(key)]
  return elements.section(report['experiment'], *parts, *_banners(report))


def _find(report: Mapping[str, Any], path: str) -> Any:
  node: Any = report
  for key in path.split('.'):
    node = node.get(key) if isinstance(node, Mapping) else None
  return node if isinstance(node, int | float) else None


def _text(value: float) -> str:
  return f'{value:,}' if isinstance(value, int) else f'{value:,.3f}'


def _listed(rows: Sequence[Any]) -> Markup:
  """Texts as a list, rows with texts as a table."""
  if not isinstance(rows[0], Mapping):
    return tag('ul', *(tag('li', row) for row in rows))
  names = [name for name, value in rows[0].items() if isinstance(value, str)]
  cells = [[str(row.get(name, '')) for name in names] for row in rows]
  return elements.table([f'~{name}' for name in names], cells)


def _banners(report: Report) -> list[Markup]:
  """The first picture of each creative of a run of ads_studio."""
  found = []
  for row in report.get('creatives', [])[:_SHOWN]:
    for path in sorted(Path(report['output'], row['folder']).glob('*.png'))[-1:]:
      data = base64.b64encode(path.read_bytes()).decode()
      source = f'data:image/png;base64,{data}'
      found.append(tag('img', src=source, alt=row['headline'], width=300))
  return found
