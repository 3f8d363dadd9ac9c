"""Audiences as a small taxonomy: what interests and styles of a brief stand for.

The taxonomy is audiences.json; a user's file of the same form adds groups, and words to known ones.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lmjax.ads.brief import Audience
from lmjax.ads.policy import targeted
from lmjax.core.errors import UserError, nearest

_DATA = Path(__file__).with_name('audiences.json')
_FORM = '{"interests": {"sailing": ["boats", "regattas"]}, "styles": {}}'


class Taxonomy(NamedTuple):
  """Group -> the words that stand for it, in lower case; age, price and locale are `brief`'s."""

  interests: Mapping[str, tuple[str, ...]]
  styles: Mapping[str, tuple[str, ...]]

  def features(self, audience: Audience) -> tuple[str, ...]:
    """What is known of an audience, as in `('age:25-34', 'interest:outdoors', 'price:mid')`, sorted.

    An interest or style that the taxonomy does not know is `interest:other` or `style:other`. Gender is
    no feature: nothing is chosen by it.
    """
    found = {f'interest:{_group(text, self.interests)}' for text in audience.interests}
    if audience.style:
      found.add(f'style:{self.style_of(audience)}')
    for name in ('age', 'price'):
      if getattr(audience, name) != 'any':
        found.add(f'{name}:{getattr(audience, name)}')
    if audience.locale not in ('', 'any'):
      found.add(f'locale:{audience.locale.replace("_", "-").casefold()}')
    return tuple(sorted(found))

  def style_of(self, audience: Audience) -> str:
    """The group of styles that an audience's is of, 'other' where it has none that is known."""
    return _group(audience.style, self.styles)


@functools.cache
def load_taxonomy(path: str = '') -> Taxonomy:
  """The taxonomy, with a user's file added.

  Raises:
    UserError: the file is of another form, or names a group of people that nothing is aimed at.
  """
  base = _read(_DATA)
  added = _read(Path(path)) if path else Taxonomy({}, {})
  for words in ({**added.interests, **added.styles}).items():
    if said := targeted('\n'.join([words[0], *words[1]])):
      raise UserError(
        f'--audiences={path}: {words[0]!r} aims at people by a protected attribute ({said}): drop it'
      )
  return Taxonomy(*(_merged(*pair) for pair in zip(base, added, strict=True)))


def _merged(base: Mapping[str, tuple[str, ...]], added: Mapping[str, tuple[str, ...]]):
  names = dict.fromkeys([*base, *added])
  return {name: (*base.get(name, ()), *added.get(name, ())) for name in names}


def _group(text: str, groups: Mapping[str, tuple[str, ...]]) -> str:
  """The group that shares most words with `text`, the longest phrase first; 'other' where none does."""
  said = f' {" ".join(text.casefold().replace("-", " ").split())} '
  best = max(
    (
      (len(word), name)
      for name, words in groups.items()
      for word in (name, *words)
      if f' {word.replace("-", " ")} ' in said
    ),
    default=(0, 'other'),
  )
  return best[1]


def _read(path: Path) -> Taxonomy:
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise UserError(f'--audiences={path} cannot be read ({error}): give {_FORM}') from None
  if not isinstance(value, dict):
    raise UserError(f'--audiences={path} is no object: give {_FORM}')
  for key in value:
    if key not in Taxonomy._fields:
      raise UserError(f'--audiences={path}: unknown {key!r}: {nearest(key, Taxonomy._fields)}')
  return Taxonomy(*(_groups(path, key, value.get(key, {})) for key in Taxonomy._fields))


def _groups(path: Path, key: str, value: Any) -> dict[str, tuple[str, ...]]:
  texts = lambda words: isinstance(words, list) and all(isinstance(word, str) for word in words)
  if not isinstance(value, dict) or not all(texts(words) for words in value.values()):
    raise UserError(f'--audiences={path}: {key} is not of the form {_FORM}: mend it')
  return {
    name.casefold(): tuple(word.casefold() for word in words) for name, words in value.items()
  }
