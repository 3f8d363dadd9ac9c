"""A brief: what an advertisement is for, what it may claim and whom it is made for; typed and checked.

Knows nothing about what is fit to publish: `policy.py` judges that.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from lmjax.core.errors import UserError, nearest

AGES = ('18-24', '25-34', '35-44', '45-54', '55+', 'any')
PRICES = ('low', 'mid', 'high', 'any')
# Asked of an audience, these are refused whatever is sold.
PROTECTED = (
  'health', 'disability', 'religion', 'belief', 'faith', 'ethnicity', 'race', 'nationality', 'origin', 'caste',
  'orientation', 'sexual_orientation', 'sexuality', 'gender_identity', 'politics', 'political_views', 'party',
  'union', 'union_membership', 'genetics', 'criminal_record', 'immigration_status', 'pregnancy',
)  # fmt: skip
_SIZES = range(16, 8193)  # pixels
_PIXELS = 16_000_000  # of all formats together
_CHARACTERS = 400  # of a text
_TEXTS = 32  # of a list


class Refused(UserError):
  """A brief that no advertisement is made for; `reason` is one of `policy.REASONS`."""

  def __init__(self, reason: str, sentence: str):
    super().__init__(sentence)
    self.reason = reason


class Audience(NamedTuple):
  """Whom it is made for; `gender` is refused for housing, jobs and credit, as an age is."""

  age: str = 'any'
  interests: tuple[str, ...] = ()
  style: str = ''
  price: str = 'any'
  locale: str = ''
  gender: str = ''


class Brief(NamedTuple):
  """What is asked for.

  Attributes:
    formats: (width, height) of each picture, pixels.
    colours: of the brand, #rgb or #rrggbb.
    picture: what it shows, with skin tone and gender where a person said them.
  """

  product: str
  facts: tuple[str, ...] = ()
  audience: Audience = Audience()
  tone: str = ''
  formats: tuple[tuple[int, int], ...] = ()
  colours: tuple[str, ...] = ()
  must: tuple[str, ...] = ()
  must_not: tuple[str, ...] = ()
  picture: str = ''


def parse_brief(value: Any) -> Brief:
  """The brief that a JSON value stands for.

  Raises:
    Refused: it is none (`invalid`), or asks for an audience by a protected attribute.
  """
  row = _object('the brief', value, Brief._fields)
  product = _text('product', row.get('product'))
  if not re.search(r'\w', product):
    raise _invalid('product', row.get('product'), 'the name of what is advertised')
  lists = {name: _texts(name, row.get(name)) for name in ('facts', 'must', 'must_not', 'colours')}
  for colour in lists['colours']:
    if not re.fullmatch(r'#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})', colour):
      raise _invalid('colours', colour, "'#0a7' or '#00aa77'")
  fold = lambda name: {word.casefold().strip() for word in lists[name]}
  if both := sorted(fold('must') & fold('must_not')):
    raise _invalid('must', both[0], 'words that must_not does not hold')
  return Brief(
    product=product,
    audience=parse_audience(row.get('audience')),
    tone=_text('tone', row.get('tone')),
    formats=_sizes(_texts('formats', row.get('formats'))),
    picture=_text('picture', row.get('picture')),
    **lists,
  )


def parse_audience(value: Any) -> Audience:
  """The audience that a JSON object stands for, None for any; Refused where it is none."""
  row = _object('audience', {} if value is None else value, (*Audience._fields, *PROTECTED))
  if asked := [name for name in PROTECTED if row.get(name)]:
    raise Refused(
      'protected_targeting',
      f'audience.{asked[0]}={row[asked[0]]!r}: no audience is chosen by {asked[0]}: drop it',
    )
  audience = Audience(
    age=_text('audience.age', row.get('age')) or 'any',
    interests=_texts('audience.interests', row.get('interests')),
    style=_text('audience.style', row.get('style')),
    price=_text('audience.price', row.get('price')) or 'any',
    locale=_text('audience.locale', row.get('locale')),
    gender=_text('audience.gender', row.get('gender')),
  )
  for name, allowed in (('age', AGES), ('price', PRICES)):
    if getattr(audience, name) not in allowed:
      raise _invalid(f'audience.{name}', getattr(audience, name), f'one of {", ".join(allowed)}')
  if not re.fullmatch(r'|any|[a-z]{2,3}([-_][A-Za-z0-9]{2,4})*', audience.locale):
    raise _invalid('audience.locale', audience.locale, "a language and region, as in 'en-GB'")
  return audience


def _object(name: str, value: Any, known: tuple[str, ...]) -> Mapping[str, Any]:
  if not isinstance(value, Mapping):
    raise _invalid(name, value, 'an object of JSON, as in {"product": "Oat bread"}')
  for key in value:
    if key not in known:
      raise Refused('invalid', f'{name} has an unknown key {key!r}: {nearest(str(key), known)}')
  return value


def _text(name: str, value: Any) -> str:
  if value is None:
    return ''
  if not isinstance(value, str):
    raise _invalid(name, value, 'a text')
  return _bounded(name, value.strip())


def _texts(name: str, value: Any) -> tuple[str, ...]:
  if value is None:
    return ()
  if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
    raise _invalid(name, value, 'a list of texts')
  if len(value) > _TEXTS:
    raise _invalid(name, value, f'{_TEXTS} texts at most, not {len(value):,}')
  return tuple(_bounded(name, item) for item in value)


def _bounded(name: str, text: str) -> str:
  if len(text) > _CHARACTERS:
    raise _invalid(name, text, f'{_CHARACTERS} characters at most, not {len(text):,}')
  return text


def _sizes(texts: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
  sizes = tuple(map(_size, texts))
  if (pixels := sum(width * height for width, height in sizes)) > _PIXELS:
    raise _invalid(
      'formats', ', '.join(texts), f'sizes of {_PIXELS:,} pixels together at most, not {pixels:,}'
    )
  return sizes


def _size(text: str) -> tuple[int, int]:
  found = re.fullmatch(r'(\d{1,5})x(\d{1,5})', text.strip())
  size = (int(found[1]), int(found[2])) if found else (0, 0)
  if not all(side in _SIZES for side in size):
    raise _invalid(
      'formats', text, f"width x height as in '300x250', {_SIZES[0]} to {_SIZES[-1]} pixels"
    )
  return size


def _invalid(name: str, value: Any, allowed: str) -> Refused:
  return Refused('invalid', f'{name}: got {str(value)[:80]!r}: give {allowed}')
