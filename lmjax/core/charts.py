"""Charts as SVG inside of a page: bars, lanes of time, scattered points.

Sideways everything is in percent of the width that there is, upwards in pixels: text keeps its size
on a phone. Tones are classes of `lmjax.core.elements`. Knows nothing of what they show.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from lmjax.core.elements import Markup, join, legend, tag

_WIDE, _NARROW = 960, 350  # pixels of a chart on a desk and on a phone


class Part(NamedTuple):
  """A piece of a bar; `tone` is a class, `note` what a pointer on it is told."""

  name: str
  value: float
  tone: str
  note: str


class Bar(NamedTuple):
  """A named bar of parts, `text` at its end, with a thin one of `alert` below."""

  name: str
  parts: Sequence[Part]
  text: str
  alert: float = 0.0


class Block(NamedTuple):
  """What goes on in one lane from `start` on, for `length`."""

  start: float
  length: float
  name: str
  tone: str
  note: str


class Point(NamedTuple):
  """A point of a scatter; its marker is drawn by its tone, with a `name` beside it if there is one."""

  x: float
  y: float
  name: str
  tone: str
  note: str


class Drawing(NamedTuple):
  body: Markup
  height: int


def image(key: str, title: str, description: str, drawing: Drawing) -> Markup:
  """A drawing that a screen reader tells by its title and description."""
  return tag(
    'svg',
    tag('title', title, id=f'{key}-title'),
    tag('desc', description, id=f'{key}-desc'),
    drawing.body,
    role='img',
    aria_labelledby=f'{key}-title',
    aria_describedby=f'{key}-desc',
    width='100%',
    height=drawing.height,
  )


def figure(
  key: str,
  title: str,
  told: str,
  drawing: Drawing,
  *,
  numbers: Markup,
  tones: Sequence[tuple[str, str, str]] = (),
) -> Markup:
  """A drawing, what its tones mean, and its numbers."""
  drawn = image(key, title, told, drawing)
  below = tag('details', tag('summary', 'in numbers'), numbers)
  return tag('figure', drawn, legend(tones) if tones else '', below)


def stacked(parts: Sequence[Part], limit: float | None, limit_text: str) -> Drawing:
  """One bar of parts after each other, against a limit."""
  total = sum(part.value for part in parts)
  scale = max(total, limit or 0.0) * 1.02 or 1.0
  top, height = 20, 44
  drawn = _row(parts, scale, top, height)
  if limit is not None:
    at = _percent(limit / scale)
    drawn.append(tag('rect', x='0', y=top, width=at, height=height, class_='track'))
    drawn.append(tag('line', x1=at, x2=at, y1=top - 6, y2=top + height + 6, class_='limit'))
    drawn.append(tag('text', limit_text, x=at, y=top - 8, text_anchor='end', class_='strong'))
    if total > limit:
      over = _percent((total - limit) / scale)
      drawn.append(tag('rect', x=at, y=top + height + 2, width=over, height=4, class_='alert'))
  return Drawing(join(drawn), top + height + 8)


def bars(rows: Sequence[Bar]) -> Drawing:
  """Bars to one scale, each below its name."""
  scale = max((sum(part.value for part in row.parts) for row in rows), default=0.0) or 1.0
  pitch, drawn = 42, []
  for index, row in enumerate(rows):
    y = index * pitch
    drawn.append(tag('text', row.name, x='0', y=y + 12))
    drawn.append(tag('text', row.text, x='100%', y=y + 12, text_anchor='end', class_='strong'))
    drawn += _row(row.parts, scale, y + 18, 13)
    if row.alert:
      width = _percent(row.alert / scale)
      drawn.append(tag('rect', x='0', y=y + 32, width=width, height=3, class_='alert'))
  return Drawing(join(drawn), max(1, len(rows) * pitch - 4))


def lanes(
  rows: Sequence[tuple[str, Sequence[Block]]], marks: Sequence[tuple[float, float]], unit: str
) -> Drawing:
  """Lanes of blocks over one time; `marks` are spans drawn over the last lane, and faintly over all."""
  blocks = [block for _, lane in rows for block in lane]
  end = max((block.start + block.length for block in blocks), default=0.0) or 1.0
  pitch, height = 62, 36
  bottom = len(rows) * pitch
  drawn = []
  for at in ticks(0.0, end):
    x = _percent(at / end)
    anchor = 'start' if at == 0 else 'end' if at > 0.94 * end else 'middle'
    drawn.append(tag('line', x1=x, x2=x, y1=18, y2=bottom - 4, class_='grid'))
    drawn.append(tag('text', f'{at:g} {unit}', x=x, y=bottom + 10, text_anchor=anchor))
  for start, stop in marks:
    place = {'x': _percent(start / end), 'width': _percent((stop - start) / end)}
    drawn.append(tag('rect', **place, y=18, height=bottom - 22, class_='faint'))
  for index, (name, lane) in enumerate(rows):
    y = index * pitch
    drawn.append(tag('text', name, x='0', y=y + 12, class_='strong'))
    drawn += [_box(each, end, y + 18, height) for each in lane]
  for start, stop in marks:
    place = {'x': _percent(start / end), 'width': _percent((stop - start) / end)}
    note = tag('title', f'exposed: computing waits {stop - start:.4g} {unit}')
    drawn.append(tag('rect', note, **place, y=bottom - 14, height=6, class_='alert'))
  return Drawing(join(drawn), bottom + 16)


def scatter(
  points: Sequence[Point], limit: tuple[float, str] | None, path: Sequence[Point], axes: str
) -> Drawing:
  """Points in a plane whose `axes` are told above it, a limit sideways, a staircase along `path`."""
  top, height = 34, 250
  xs = [point.x for point in points] + ([limit[0]] if limit else [])
  wide, tall = _padded(xs), _padded([point.y for point in points])
  x = lambda value: _percent((value - wide[0]) / (wide[1] - wide[0]))
  y = lambda value: round(top + height * (1 - (value - tall[0]) / (tall[1] - tall[0])), 1)
  drawn = [tag('text', axes, x='0', y=12, class_='strong')]
  for at in ticks(*tall):
    drawn.append(tag('line', x1='0', x2='100%', y1=y(at), y2=y(at), class_='grid'))
    drawn.append(tag('text', f'{at:,.4g}', x='0', y=y(at) - 3))
  for at in ticks(*wide):
    drawn.append(tag('text', f'{at:,.4g}', x=x(at), y=top + height + 16, text_anchor='middle'))
  drawn.append(tag('line', x1='0', x2='100%', y1=top + height, y2=top + height, class_='axis'))
  if limit:
    at = x(limit[0])
    drawn.append(tag('line', x1=at, x2=at, y1=top - 4, y2=top + height, class_='limit'))
    drawn.append(tag('text', limit[1], x=at, y=top - 8, text_anchor='end', class_='strong'))
  for low, high in itertools.pairwise(path):
    step = {'x1': x(low.x), 'x2': x(high.x), 'y1': y(low.y), 'y2': y(low.y)}
    drawn.append(tag('line', **step, class_='path'))
    step = {'x1': x(high.x), 'x2': x(high.x), 'y1': y(low.y), 'y2': y(high.y)}
    drawn.append(tag('line', **step, class_='path'))
  for each in points:
    place = {'cx': x(each.x), 'cy': y(each.y), 'r': 5.5, 'class_': f'dot {each.tone}'}
    drawn.append(tag('circle', tag('title', each.note), **place))
    if each.name:
      drawn.append(tag('text', each.name, x=x(each.x), y=y(each.y) - 11, class_='near'))
  return Drawing(join(drawn), top + height + 22)


def ticks(low: float, high: float) -> list[float]:
  """Round numbers from `low` to `high`, four to eight of them."""
  if high <= low:
    return [low]
  size = 10 ** math.floor(math.log10((high - low) / 4))
  size *= next(by for by in (10, 5, 2, 1) if (high - low) / (by * size) >= 3)
  first = math.ceil(low / size - 1e-9)
  return [n * size for n in range(first, math.floor(high / size + 1e-9) + 1)]


def _row(parts: Sequence[Part], scale: float, y: float, height: float) -> list[Markup]:
  start, drawn = 0.0, []
  for part in parts:
    drawn.append(_box(Block(start, part.value, part.name, part.tone, part.note), scale, y, height))
    start += part.value
  return drawn


def _box(block: Block, scale: float, y: float, height: float) -> Markup:
  """A block, with its name in it where there is room; an inner svg cuts off what there is not."""
  share = block.length / scale
  place = {'x': _percent(block.start / scale), 'width': _percent(share), 'y': y, 'height': height}
  note = tag('title', block.note)
  wanted = 6.4 * len(block.name) + 12  # pixels
  if height < 20 or share * _WIDE < wanted:
    return tag('rect', note, **place, class_=f'box {block.tone}')
  rect = tag('rect', note, width='100%', height='100%', class_=f'box {block.tone}')
  room = 'name' if share * _NARROW < wanted else 'name wide'
  name = tag('text', block.name, x=7, y=height / 2 + 4, class_=f'{room} on-{block.tone}')
  return tag('svg', rect, name, **place)


def _percent(share: float) -> str:
  return f'{100 * share:.2f}%'


def _padded(values: Sequence[float]) -> tuple[float, float]:
  """A range that values do not touch the ends of."""
  low, high = min(values), max(values)
  room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
  return low - room, high + room
