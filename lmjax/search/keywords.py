"""Words of an index: BM25 over stems, phrases and filters, by the library tantivy.

It follows the journal of a `Store`; what it holds beyond that, or lacks, is mended when it is opened to
write. BM25's k1 is 1.2 and b .75, which tantivy fixes.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.core.errors import UserError
from lmjax.data.split import strip_urls
from lmjax.search.query import Filters
from lmjax.search.sets import EXTRA, Document

_LONGEST = 60  # letters of a word
_HEAP_BYTES = 32 << 20  # of the writer, before it writes a segment
_TAG = re.compile(r'#(\w+)')
_SNIPPET = 240  # characters
_EVER = 2**62  # seconds
_SHUFFLE = 0x9E3779B97F4A7C15  # equal scores are ordered by a hash, as in `ranking.top`


def tantivy() -> Any:
  """The library, or a UserError that names the extra."""
  try:
    import tantivy
  except ImportError:
    raise UserError(EXTRA) from None
  return tantivy


class Keywords:
  """The words of posts in a folder.

  Args:
    write: whether to open it for writing, which one process can at a time.
  """

  def __init__(self, folder: Path, *, write: bool) -> None:
    self._library = library = tantivy()
    fields = library.SchemaBuilder()
    fields.add_integer_field('number', indexed=True, fast=True)
    fields.add_integer_field('time', indexed=True, fast=True)
    fields.add_integer_field('link', indexed=True)
    for name in ('author', 'tag', 'language'):
      fields.add_text_field(name, tokenizer_name='raw', index_option='basic')
    fields.add_text_field('text', tokenizer_name='words')
    self._schema = fields.build()
    try:
      if write:
        folder.mkdir(parents=True, exist_ok=True)
      self._index = library.Index(self._schema, path=str(folder))
      self._index.register_tokenizer('words', _analyzer(library))
      self._writer = self._index.writer(heap_size=_HEAP_BYTES, num_threads=1) if write else None
    except (ValueError, OSError) as error:
      if 'LockBusy' in str(error) or 'acquire' in str(error).lower():
        raise UserError(
          f'{folder} is being written by another process: wait until it ends'
        ) from None
      raise UserError(
        f'{folder} cannot be opened ({error}): make room on the disk, or delete {folder.parent} and start '
        'search_posts with this --index'
      ) from None
    self._words, self._asked = _analyzer(library), _analyzer(library, stop=True)
    self.reload()

  def __len__(self) -> int:
    return self._searcher.num_docs

  def reload(self) -> None:
    """Sees what has been written since."""
    self._index.reload()
    self._searcher = self._index.searcher()

  def update(self, add: dict[int, Document], gone: Iterable[int]) -> None:
    """Has `add` and nothing of `gone`; done twice it is as done once."""
    assert self._writer is not None
    try:
      for number in (*gone, *add):
        self._writer.delete_documents_by_term('number', int(number))
      for number, document in add.items():
        self._writer.add_document(self._document(number, document))
      self._writer.commit()
    except (ValueError, OSError) as error:
      raise UserError(
        f'words cannot be written ({error}): what was indexed before is kept; make room on the disk and '
        'start again to go on'
      ) from None
    self.reload()

  def close(self) -> None:
    """Ends writing."""
    if self._writer is not None:
      self._writer.wait_merging_threads()
      self._writer = None

  def _document(self, number: int, document: Document) -> Any:
    made = self._library.Document()
    made.add_integer('number', number)
    text = document.whole
    made.add_integer('link', int(strip_urls(text) != text.strip()))
    if document.time is not None:
      made.add_integer('time', int(document.time))
    for name, values in (
      ('author', [document.author.lstrip('@').lower()]),
      ('language', [document.language.lower()]),
      ('tag', {tag.lower() for tag in _TAG.findall(text)}),
    ):
      for value in values:
        made.add_text(name, value)
    made.add_text('text', strip_urls(text))
    return made

  def query(self, text: str, filters: Filters, among: Sequence[int] | None = None) -> Any:
    """What `find` takes: posts that pass `filters`, scored by the words of `text`, all where there are none.

    Args:
      among: of these numbers alone.
    """
    library, query = self._library, self._library.Query
    must, should = library.Occur.Must, library.Occur.Should
    parts = [(must, self._filtered(filters, among))]
    words = [query.term_query(self._schema, 'text', word) for word in self.stems(text)]
    if words:
      parts.append(
        (should if among is not None else must, query.boolean_query([(should, w) for w in words]))
      )
    return query.boolean_query(parts)

  def stems(self, text: str) -> list[str]:
    """The stemmed words of `text`, each once; stop words are left out unless there are no others."""
    text = strip_urls(text)
    return list(dict.fromkeys(self._asked.analyze(text) or self._words.analyze(text)))

  def _filtered(self, filters: Filters, among: Sequence[int] | None) -> Any:
    """Scores 0 for what passes."""
    library, query, schema = self._library, self._library.Query, self._schema
    must, must_not = library.Occur.Must, library.Occur.MustNot
    any_of = lambda name, values: query.boolean_query(
      [(library.Occur.Should, query.term_query(schema, name, value)) for value in values]
    )
    parts = [(must, query.all_query())]
    if among is not None:
      parts.append((must, query.term_set_query(schema, 'number', list(map(int, among)))))
    for name, wanted, without in (
      ('author', filters.authors, filters.without_authors),
      ('language', filters.languages, filters.without_languages),
    ):
      parts += [(must, any_of(name, wanted))] if wanted else []
      parts += [(must_not, any_of(name, without))] if without else []
    parts += [(must, query.term_query(schema, 'tag', tag)) for tag in filters.tags]
    parts += [(must_not, query.term_query(schema, 'tag', tag)) for tag in filters.without_tags]
    parts += [(must, self._phrase(phrase)) for phrase in filters.phrases]
    parts += [(must_not, self._phrase(phrase)) for phrase in filters.without_words]
    if filters.since is not None or filters.until is not None:
      start = -_EVER if filters.since is None else int(filters.since)
      end = _EVER if filters.until is None else int(filters.until)
      kind = library.FieldType.Integer
      parts.append((must, query.range_query(schema, 'time', kind, start, end, True, False)))
    if filters.link is not None:
      parts.append((must, query.term_query(schema, 'link', int(filters.link))))
    return query.const_score_query(query.boolean_query(parts), 0.0)

  def _phrase(self, phrase: str) -> Any:
    words = self._words.analyze(strip_urls(phrase))
    if len(words) > 1:
      return self._library.Query.phrase_query(self._schema, 'text', words)
    if words:
      return self._library.Query.term_query(self._schema, 'text', words[0])
    return self._library.Query.empty_query()

  def count(self, query: Any) -> int:
    """How many posts match."""
    return self._searcher.search(query, 1, count=True).count or 0

  def find(self, query: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(i64 numbers, f32 scores) of the best, in order."""
    hits = self._searcher.search(query, max(count, 1), count=False).hits
    numbers = self._searcher.fast_field_values('number', [address for _, address in hits])
    found = np.array(numbers, np.int64)
    scores = np.array([score for score, _ in hits], np.float32)
    order = np.lexsort((shuffled(found), -scores))
    return found[order], scores[order]

  def newest(self, query: Any, count: int) -> np.ndarray:
    """i64 numbers of posts that match, the latest first, those without a time last."""
    searcher = self._searcher
    hits = searcher.search(query, max(count, 1), count=False, order_by_field='time').hits
    return np.array(searcher.fast_field_values('number', [a for _, a in hits]), np.int64)

  def snippet(self, text: str, asked: str) -> tuple[str, list[tuple[int, int]]]:
    """(the part of `text` that has most of the words of `asked`, where in it they are)."""
    query = self.query(asked, Filters())
    generator = self._library.SnippetGenerator.create(self._searcher, query, self._schema, 'text')
    generator.set_max_num_chars(_SNIPPET)
    made = self._library.Document()
    made.add_text('text', text)
    found = generator.snippet_from_doc(made)
    fragment = found.fragment()
    if not fragment:
      return (text if len(text) <= _SNIPPET else text[: _SNIPPET - 1].rstrip() + '…'), []
    raw = fragment.encode()
    place = lambda byte: len(raw[:byte].decode(errors='ignore'))
    return fragment, [(place(one.start), place(one.end)) for one in found.highlighted()]


def shuffled(numbers: np.ndarray) -> np.ndarray:
  """u64: an order of posts that no file gave."""
  return numbers.astype(np.uint64) * np.uint64(_SHUFFLE)


def _analyzer(library: Any, stop: bool = False) -> Any:
  keep = library.Filter
  made = library.TextAnalyzerBuilder(library.Tokenizer.simple()).filter(keep.remove_long(_LONGEST))
  made = made.filter(keep.lowercase()).filter(keep.ascii_fold())
  made = made.filter(keep.stopword('english')) if stop else made
  return made.filter(keep.stemmer('english')).build()
