"""Copy and a picture as a finished banner of one size: where all of it goes, so that none is cut.

Knows nothing about files: `draw.py` makes PNG and SVG of a `Banner`. Extra [ads]. All lengths in pixels.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from lmjax.ads.creative import Copy
from lmjax.core.errors import UserError

AA, AA_SHAPE = (
  4.5,
  3.0,
)  # WCAG 2.2: contrast of text (1.4.3) and of shapes that carry meaning (1.4.11)
_DARK, _LIGHT = '#000000', '#ffffff'  # one of which reaches AA on any colour
_SMALLEST = 9  # of letters, pixels
_LEADING = 1.2  # from one line to the next, of the letters' size


class Box(NamedTuple):
  x: int
  y: int
  width: int
  height: int

  def inset(self, by: int) -> 'Box':
    return Box(self.x + by, self.y + by, self.width - 2 * by, self.height - 2 * by)


class Line(NamedTuple):
  """A line of text: its left end on the baseline, the size of its letters and its width."""

  text: str
  x: float
  y: float
  size: int
  width: float
  colour: str
  ground: str


class Shape(NamedTuple):
  """A filled rectangle with rounded corners."""

  box: Box
  colour: str
  radius: int


class Palette(NamedTuple):
  """Colours as #rrggbb: `text` on `ground` and `label` on `button` reach AA."""

  ground: str
  text: str
  button: str
  label: str


class Banner(NamedTuple):
  """A layout; `picture` is None where there is none or no room for one."""

  width: int
  height: int
  palette: Palette
  shapes: list[Shape]
  lines: list[Line]
  picture: Box | None
  alt: str

  @property
  def contrast(self) -> float:
    """The least of any line."""
    return min(contrast(line.colour, line.ground) for line in self.lines)


class Fonts:
  """Sizes of one font: a user's file, or the one that Pillow carries (Latin letters)."""

  def __init__(self, path: str = '') -> None:
    try:
      from PIL import ImageFont
    except ImportError:
      raise UserError("banners need Pillow: pip install 'lmjax[ads]'") from None
    self._path, self._library = path, ImageFont
    self.at = functools.cache(self._at)
    self.at(12)

  def _at(self, size: int) -> Any:
    if not self._path:
      return self._library.load_default(size)
    try:
      return self._library.truetype(self._path, size)
    except OSError as error:
      raise UserError(
        f'--font={self._path} is no font ({error}): pass a .ttf or .otf file'
      ) from None

  def width(self, text: str, size: int) -> float:
    return self.at(size).getlength(text)

  def check(self, text: str) -> None:
    """UserError where the font lacks a letter of `text`."""
    font = self.at(24)
    blank = bytes(font.getmask('\uffff'))
    lacking = [one for one in text if one.strip() and bytes(font.getmask(one)) == blank]
    if lacking:
      raise UserError(
        f'the font has no {lacking[0]!r}: pass --font=FILE.ttf, one that has the letters of the copy'
      )


def choose_palette(colours: Sequence[str]) -> Palette:
  """Brand colours in their order as ground, text and button, where contrast allows; else dark or light."""
  brand = [_long(colour) for colour in colours]
  ground = brand[0] if brand else '#f4f1ea'
  text = _readable(ground, brand[1:])
  far = [one for one in brand[1:] if one != text and contrast(one, ground) >= AA_SHAPE]
  button = far[0] if far else text
  return Palette(ground, text, button, _readable(button, [ground]))


def _readable(ground: str, wished: Sequence[str]) -> str:
  """The first of `wished` that reaches AA on `ground`, else the better of dark and light, which does."""
  good = [one for one in wished if contrast(one, ground) >= AA]
  return good[0] if good else max((_DARK, _LIGHT), key=lambda one: contrast(one, ground))


def contrast(one: str, other: str) -> float:
  """The contrast ratio of WCAG 2.2, from 1 to 21."""
  low, high = sorted((_luminance(one), _luminance(other)))
  return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
  parts = [int(_long(colour)[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _long(colour: str) -> str:
  return '#' + (''.join(2 * one for one in colour[1:]) if len(colour) == 4 else colour[1:]).lower()


def lay_out(
  copy: Copy,
  size: tuple[int, int],
  palette: Palette,
  fonts: Fonts,
  *,
  picture: bool,
  alt: str,
  disclosure: str = '',
) -> Banner:
  """The banner of `size`; the picture gives way before text does.

  Raises:
    UserError: the text does not fit even so, in letters of 9 pixels, or has letters that the font lacks.
  """
  fonts.check(copy.text + disclosure)
  for shown in [True, False] if picture else [False]:
    banner = _try(copy, size, palette, fonts, shown, alt, disclosure)
    if banner is not None:
      return banner
  raise UserError(
    f'the copy does not fit {size[0]}x{size[1]} in letters of {_SMALLEST} pixels: {copy.headline!r} '
    'is too long: use a larger format'
  )


def _try(copy, size, palette, fonts, shown, alt, disclosure) -> Banner | None:
  whole = Box(0, 0, *size)
  margin = max(4, min(size) // 18)
  lines: list[Line] = []
  if disclosure:
    strip, whole = _split(
      whole, 1 - max(_SMALLEST * _LEADING + 4, size[1] * 0.045) / size[1], False
    )[::-1]
    found = _fit(
      disclosure,
      Box(strip.x + margin, strip.y, size[0] - 2 * margin, strip.height),
      palette.text,
      palette.ground,
      fonts,
      most=max(_SMALLEST, size[1] // 40),
      few=1,
    )
    if found is None:
      return None
    lines += found
  ratio = size[0] / size[1]
  image = None
  if shown and ratio > 1.4:
    image, whole = _split(whole, min(0.42, whole.height * 1.2 / whole.width), True)
  elif shown:
    image, whole = _split(whole, 0.45, False)
  inner = whole.inset(margin)
  across = ratio > 3
  texts, button = _split(inner, 0.74 if across else 0.8, across)
  if across:
    button = Box(
      button.x + margin,
      button.y + button.height // 5,
      button.width - margin,
      button.height * 3 // 5,
    )
  else:
    button = Box(button.x, button.y + margin // 2, button.width, button.height - margin // 2)
  head, body = _split(texts, 0.5 if copy.body else 1.0, False)
  paint = functools.partial(_fit, colour=palette.text, ground=palette.ground, fonts=fonts)
  parts = [paint(copy.headline, head, most=max(_SMALLEST, int(min(size) * 0.16)))]
  if copy.body and parts[0]:
    parts.append(paint(copy.body, body, most=max(_SMALLEST, int(parts[0][0].size * 0.7))))
  pad = max(3, button.height // 6)
  label = _fit(
    copy.action,
    button.inset(pad),
    palette.label,
    palette.button,
    fonts,
    most=max(_SMALLEST, int(min(size) * 0.09)),
    few=1,
  )
  if label is None or any(part is None for part in parts):
    return None
  width = min(button.width, int(label[0].width) + 6 * pad)
  shape = Shape(Box(button.x, button.y, width, button.height), palette.button, button.height // 5)
  centred = label[0]._replace(x=button.x + (width - label[0].width) / 2)
  lines += [line for part in parts for line in part or []] + [centred]
  return Banner(size[0], size[1], palette, [shape], lines, image, alt)


def _split(box: Box, share: float, across: bool) -> tuple[Box, Box]:
  """The left (or upper) `share` of a box, and the rest."""
  if across:
    first = int(box.width * share)
    return Box(box.x, box.y, first, box.height), Box(
      box.x + first, box.y, box.width - first, box.height
    )
  first = int(box.height * share)
  return Box(box.x, box.y, box.width, first), Box(
    box.x, box.y + first, box.width, box.height - first
  )


def _fit(
  text: str, box: Box, colour: str, ground: str, fonts: Fonts, *, most: int, few: int = 99
) -> list[Line] | None:
  """`text` in the largest letters, up to `most`, that fit `box` in at most `few` lines; None where none do."""
  for size in range(most, _SMALLEST - 1, -1):
    rows = _wrap(text, box.width, size, fonts)
    height = len(rows) * size * _LEADING if rows else box.height + 1
    if height <= box.height and len(rows) <= few:
      top = box.y + (box.height - height) / 2
      return [
        Line(
          row,
          box.x,
          top + size * (_LEADING * i + 0.95),
          size,
          fonts.width(row, size),
          colour,
          ground,
        )
        for i, row in enumerate(rows)
      ]
  return None


def _wrap(text: str, width: int, size: int, fonts: Fonts) -> list[str]:
  """Rows of whole words no wider than `width`; none where a word is wider."""
  rows: list[str] = []
  for word in text.split():
    longer = f'{rows[-1]} {word}' if rows else word
    if rows and fonts.width(longer, size) <= width:
      rows[-1] = longer
    elif fonts.width(word, size) <= width:
      rows.append(word)
    else:
      return []
  return rows
