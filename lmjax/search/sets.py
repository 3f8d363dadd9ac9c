"""Documents and judged queries, read from JSONL files, and how well rankings answer these queries."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lmjax.core.errors import UserError
from lmjax.data.files import numbered_lines

MEASURES = {
  'map_at_5': 'AP@5',
  'mrr_at_10': 'RR@10',
  'recall_at_10': 'R@10',
  'ndcg_at_10': 'nDCG@10',
}
EXTRA = "search needs what the extra has: pip install 'lmjax[search]'"


class Document(NamedTuple):
  """What is found; a title is read before the text.

  Attributes:
    time: unix seconds, or None.
    language: a code, or '' where nobody said.
    likes: or any other count of how many took notice, or None.
  """

  id: str
  text: str
  title: str = ''
  author: str = ''
  time: float | None = None
  language: str = ''
  likes: float | None = None

  @property
  def whole(self) -> str:
    return f'{self.title}. {self.text}' if self.title else self.text


class Query(NamedTuple):
  """What is looked for, and the ids of the documents that answer it."""

  id: str
  text: str
  relevant: tuple[str, ...]


def read_documents(path: str) -> list[Document]:
  """The documents of a JSONL file, plain or compressed; UserError at the first that is none."""
  shape = '{"id": "1", "text": "...", "title": "..."}, where a title may be missing'
  found = []
  for number, row in _rows('documents', path, shape):
    title = row.get('title') or ''
    if not isinstance(title, str):
      raise _wrong('documents', path, number, shape)
    found.append(Document(str(row['id']), row['text'], title))
  return _distinct('documents', path, found)


def read_queries(path: str, documents: list[Document]) -> list[Query]:
  """The judged queries of a JSONL file; UserError where one names no document, or an unknown one."""
  shape = '{"id": "1", "text": "...", "relevant": ["ids of documents"]}'
  known = {document.id for document in documents}
  found = []
  for number, row in _rows('queries', path, shape):
    relevant = row.get('relevant')
    if not isinstance(relevant, list) or not relevant:
      raise _wrong('queries', path, number, shape)
    ids = tuple(map(str, relevant))
    if missing := [one for one in ids if one not in known]:
      raise UserError(
        f'--queries={path}: line {number} calls {missing[0]!r} relevant, which --documents does not '
        'hold: pass the documents that these queries were judged on'
      )
    found.append(Query(str(row['id']), row['text'], ids))
  return _distinct('queries', path, found)


def measure(
  queries: list[Query], runs: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> dict[str, dict[str, float]]:
  """Method -> measure -> its mean over `queries`.

  Args:
    runs: method -> query's id -> document's id -> score, the best first; of equal ones too, which
      measures would each put in an order of their own.
  """
  try:
    import ir_measures
  except ImportError:
    raise UserError(EXTRA) from None
  judged = {query.id: dict.fromkeys(query.relevant, 1) for query in queries}
  wanted = {name: ir_measures.parse_measure(text) for name, text in MEASURES.items()}
  found = {}
  for method, scored in runs.items():
    run = {
      query: {document: -float(place) for place, document in enumerate(ranked)}
      for query, ranked in scored.items()
    }
    means = ir_measures.calc_aggregate(list(wanted.values()), judged, run)
    found[method] = {name: float(means[one]) for name, one in wanted.items()}
  return found


def _rows(flag: str, path: str, shape: str) -> Iterator[tuple[int, dict[str, Any]]]:
  """(line's number, object with an id and a text)."""
  for number, line in numbered_lines(flag, path):
    yield number, _row(line, _wrong(flag, path, number, shape))


def _row(line: str, wrong: UserError) -> dict[str, Any]:
  try:
    row = json.loads(line)
    good = isinstance(row['text'], str) and isinstance(row['id'], str | int)
    row['text'].encode()  # half a surrogate pair is no text
  except (ValueError, KeyError, TypeError, AttributeError):
    good = False
  if not good:
    raise wrong
  return row


def _wrong(flag: str, path: str, number: int, shape: str) -> UserError:
  return UserError(f'--{flag}={path}: line {number} is not of the form {shape}: mend or drop it')


def _distinct(flag: str, path: str, found: list[Any]) -> list[Any]:
  if not found:
    raise UserError(f'--{flag}={path} is empty: pass a JSONL file with a line for each')
  seen = set()
  for one in found:
    if one.id in seen:
      raise UserError(f'--{flag}={path}: the id {one.id!r} is there twice: keep one of the two')
    seen.add(one.id)
  return found
