"""What people type into a search box, understood or refused with a reason.

    diabetes "heart attack" from:nytimes since:2024-01-31 until:2024-03 lang:en has:link #health -sugar

Words are looked for by themselves and by their meaning; "phrases" and #tags must be there; `-` before any
of them, or before from: and lang:, leaves out what has it. Of several from: (or lang:) one is enough.
"""

import datetime
import re
import unicodedata
from typing import NamedTuple

from lmjax.core.errors import UserError, nearest

LONGEST = 1000  # characters
FILTERS = ('from', 'since', 'until', 'lang', 'has')
_HAS = ('link',)
_BARE = tuple(f'{name}:' for name in FILTERS)
_PIECE = re.compile(
  r'(?P<minus>-?)(?:"(?P<phrase>[^"]*)"|#(?P<tag>\w+)(?=\s|$)|(?P<name>[A-Za-z_]+):(?P<value>[^\s"/]\S*|"[^"]*")'
  r'|(?P<word>[^\s"]+))'
)
_DATES = ('%Y-%m-%d', '%Y-%m', '%Y')


class QueryError(UserError):
  """A query that cannot be understood: what is wrong and how it is meant to be."""


class Filters(NamedTuple):
  """What a post must be; empty: anything.

  Attributes:
    authors, languages: it must be of one of these, lower case.
    tags, phrases: it must have all of these.
    since, until: unix seconds, from and before.
    link: whether it must have a link (True) or must not (False).
    without_...: it must have none of these.
  """

  authors: tuple[str, ...] = ()
  languages: tuple[str, ...] = ()
  tags: tuple[str, ...] = ()
  phrases: tuple[str, ...] = ()
  since: float | None = None
  until: float | None = None
  link: bool | None = None
  without_authors: tuple[str, ...] = ()
  without_languages: tuple[str, ...] = ()
  without_tags: tuple[str, ...] = ()
  without_words: tuple[str, ...] = ()


class Query(NamedTuple):
  """A query, understood: `text` is what is looked for by words and by meaning, '' where all is filters."""

  text: str
  filters: Filters


def parse(asked: str) -> Query:
  """The query in `asked`.

  Raises:
    QueryError: it is empty, too long, has control characters, a quote without its end or a filter that
      is none.
  """
  _check(asked)
  words, filters = [], Filters()
  for found in _PIECE.finditer(asked):
    without = bool(found['minus'])
    if found['name'] is not None:
      filters = _filter(filters, found['name'].lower(), found['value'].strip('"'), without)
    elif found['tag'] is not None:
      filters = _add(filters, 'tags', found['tag'].lower(), without)
      words += [] if without else [found['tag']]
    elif found['phrase'] is not None:
      text = found['phrase'].strip()
      if text and without:
        filters = _add(filters, 'words', text, True)
      elif text:
        filters = _add(filters, 'phrases', text, False)
        words.append(text)
    elif found['word'].lower() in _BARE:
      raise QueryError(f'{found["word"]} has nothing after it: write it as {found["word"]}VALUE')
    elif without:
      filters = _add(filters, 'words', found['word'], True)
    else:
      words.append(found['word'])
  if filters.since is not None and filters.until is not None and filters.since >= filters.until:
    raise QueryError('since: is not before until:, so nothing can be found: swap them')
  if not words and filters == Filters():
    raise QueryError('nothing is asked for: give words, a "phrase", a #tag or from:NAME')
  return Query(' '.join(words), filters)


def _check(asked: str) -> None:
  if not asked.strip():
    raise QueryError('the query is empty: give words, a "phrase", a #tag or from:NAME')
  if len(asked) > LONGEST:
    raise QueryError(
      f'the query has {len(asked):,} characters, and {LONGEST:,} are allowed: shorten it'
    )
  for place, sign in enumerate(asked):
    if unicodedata.category(sign) in ('Cc', 'Cs') and sign not in '\t\n\r':
      raise QueryError(
        f'character {place + 1} of the query is the control character U+{ord(sign):04X}: remove it'
      )
  if asked.count('"') % 2:
    raise QueryError('a quote (") is opened and not closed: close it, or remove it')


def _filter(filters: Filters, name: str, value: str, without: bool) -> Filters:
  if name not in FILTERS:
    shown = ', '.join(f'{known}:' for known in FILTERS)
    raise QueryError(
      f'there is no filter {name}: ({nearest(name, FILTERS)}); there are {shown}: put it between '
      'quotes to look for the text'
    )
  if name in ('since', 'until'):
    if without:
      raise QueryError(f'-{name}: means nothing: use {"until" if name == "since" else "since"}:')
    return filters._replace(**{name: read_date(name, value)})
  if name == 'has':
    if value.lower() not in _HAS:
      raise QueryError(f'has:{value} is not known: use has:link')
    return filters._replace(link=not without)
  kind = 'authors' if name == 'from' else 'languages'
  return _add(filters, kind, value.lstrip('@').lower(), without)


def _add(filters: Filters, kind: str, value: str, without: bool) -> Filters:
  name = f'without_{kind}' if without else kind
  return filters._replace(**{name: (*getattr(filters, name), value)})


def read_date(name: str, value: str) -> float:
  """Unix seconds at which a day, month or year begins in UTC; QueryError where it is none."""
  for form in _DATES:
    try:
      return datetime.datetime.strptime(value, form).replace(tzinfo=datetime.UTC).timestamp()
    except ValueError:
      continue
  raise QueryError(f'{name}:{value} is no date: write it as 2024-01-31, 2024-01 or 2024')
