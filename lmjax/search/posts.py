"""The task that makes posts searchable: builds their index, says how good it is, answers in the terminal."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.core import assets
from lmjax.core.clock import duration_text
from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError
from lmjax.core.metrics import progress
from lmjax.core.task import Report, Task
from lmjax.data.files import numbered_lines
from lmjax.data.sources import Posts, Rows
from lmjax.interop.encoder import MINILM
from lmjax.models.encoder import Pooling
from lmjax.search.cross import ScorePairs
from lmjax.search.embed import Embedder, open_embedder
from lmjax.search.engine import Engine
from lmjax.search.evaluate import (
  CROSS_HELP,
  DOCUMENTS,
  ENCODER,
  QUERIES,
  Tuned,
  encoder_of,
  load_tuned,
  table,
)
from lmjax.search.index import Index, from_posts
from lmjax.search.query import Filters, Query, QueryError, parse
from lmjax.search.ranking import METHODS
from lmjax.search.searcher import Hit, Searcher
from lmjax.search.sets import Document, measure, read_documents, read_queries
from lmjax.search.sets import Query as Judged
from lmjax.search.vectors import Precision

_SAMPLE = 200  # posts whose words are asked for, to time queries and to count what is missed
_SHOWN = 10  # hits of an answer
_HELP = (
  'words, "phrases", #tags, from:NAME, since:2024-01, until:2024-03, lang:en, has:link, -not; /exit'
)


class SearchPosts(Task):
  """Builds an index of posts, or brings it up to date, measures it and answers queries."""

  resumes = True

  source: Posts = part(Posts(), 'What is searched.', inline=True, run=True)
  index: str = leaf('', 'Folder of the index; empty: index in the workdir.', run=True)
  encoder: str = leaf(MINILM, ENCODER, run=True)
  dimensions: int | None = leaf(
    None, 'Numbers of a vector that are kept, the first; none: all.', low=1, run=True
  )
  pooling: Pooling | None = leaf(
    None, "A text's vector: mean, first or last token's; none: the encoder's own.", run=True
  )
  precision: Precision = leaf(
    'float32',
    'Of vectors in memory: also int8, or a bit each; found ones are compared in f32.',
    run=True,
  )
  reembed: bool = leaf(False, 'Make all vectors anew where the encoder is another.', run=True)
  qdrant: str = leaf(
    '', 'Address of a Qdrant server for the vectors; empty: in the index.', run=True
  )
  deleted: str = leaf('', 'File of ids, one a line: posts that may be in no index.', run=True)
  checkpoint: str = leaf('', 'The folder of a run of search_tune; empty = as shipped.', run=True)
  cross: str = leaf('', f"{CROSS_HELP} Empty: the checkpoint's.", run=True)
  freshness: float = leaf(0.0, 'Weight of how recent a post is.', low=0.0, run=True)
  engagement: float = leaf(0.0, 'Weight of how many likes a post has.', low=0.0, run=True)
  boolq: int = leaf(300, 'Questions over all BoolQ passages that rate ranking.', low=0, run=True)
  documents: str = leaf('', f'A judged set of yours: {DOCUMENTS}', run=True)
  queries: str = leaf('', f'Of these documents: {QUERIES}', run=True)
  query: str = leaf('', 'One query, answered before the end; empty: a prompt.', run=True)

  def run(self, workdir: Path) -> Report:
    """Goes on where a run that was cut off ended."""
    if bool(self.documents) != bool(self.queries):
      raise UserError('--documents and --queries go together: pass both, or neither')
    if self.query:
      parse(self.query)
    folder = Path(self.index) if self.index else workdir / 'index'
    encoder = encoder_of(self.checkpoint, self.encoder)
    embedder = open_embedder(encoder, dimensions=self.dimensions, pooling=self.pooling)
    tuned = load_tuned(self.checkpoint, embedder)
    judges = self.boolq or self.documents
    cross = tuned.open_cross(self.cross) if judges else None  # before posts are read: minutes
    report = self._build(folder, embedder, encoder)
    priors = {'freshness': self.freshness, 'engagement': self.engagement}
    searcher = Searcher(folder, checkpoint=self.checkpoint, priors=priors)
    if searcher.count:
      report |= measure_index(searcher)
      print(f'recall@10 {report["recall_at_10"]:.3f}, queries {report["query_ms"]}', flush=True)
    report['sets'] = self._sets(embedder, tuned, cross)
    answer(searcher, self.query)
    searcher.close()
    return report

  def _build(self, folder: Path, embedder: Embedder, encoder: str) -> dict[str, Any]:
    rows = Rows()
    total = sum(1 for _ in self.source.read(Rows()))
    print(f'{total:,} posts; the index is in {folder}', flush=True)
    with Index(
      folder,
      embedder,
      encoder,
      reembed=self.reembed,
      precision=self.precision,
      qdrant=self.qdrant,
      progress=eta('embedded again', None),
    ) as index:
      deleted = index.delete(read_ids(self.deleted), forever=True) if self.deleted else 0
      counts = index.add(from_posts(self.source.read(rows)), eta('posts', total))
      index.settle()
      store, spent = index.store, index.spent
      if self.deleted:
        assert not store.known(read_ids(self.deleted))
      for line in rows.sentences():
        print(line, flush=True)
      rate = spent['embedded'] / spent['embed_seconds'] if spent['embed_seconds'] else None
      return {
        'index': str(folder),
        'documents': store.count,
        'counts': {**counts._asdict(), 'deleted': deleted},
        'rows': {'total': rows.total, **rows.dropped},
        'index_seconds': spent['index_seconds'],
        'encode_posts_per_second': rate,
        'index_bytes': sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()),
        'embedder': embedder.name,
      }

  def _sets(self, embedder: Embedder, tuned: Tuned, cross: ScorePairs | None) -> dict[str, Any]:
    """Set -> method -> measure."""
    sets = {}
    if self.boolq:
      sets['boolq'] = read_boolq(self.boolq)
    if self.documents:
      documents = read_documents(self.documents)
      sets['judged'] = (documents, read_queries(self.queries, documents))
    found = {}
    for name, (documents, queries) in sets.items():
      print(f'{name}: {len(queries):,} queries over {len(documents):,} documents', flush=True)
      engine = Engine(documents, embedder, progress('documents read'))
      texts = [query.text for query in queries]
      ranked = tuned.rank(engine, texts, cross)
      ids = [query.id for query in queries]
      runs = {method: dict(zip(ids, ranked[method], strict=True)) for method in METHODS}
      found[name] = measure(queries, runs)
      print(table(found[name]), flush=True)
    return found


def read_boolq(count: int, first: int = 0) -> tuple[list[Document], list[Judged]]:
  """All passages, and `count` of the questions; what answers one is the passage that it was asked of.

  Args:
    first: place of the first of these in an order that is always the same.
  """
  lines = assets.fetch('boolq-passages').read_text(encoding='utf-8').split('\n')
  rows = [json.loads(line) for line in lines if line.strip()]
  passages = {text: str(n) for n, text in enumerate(dict.fromkeys(row['passage'] for row in rows))}
  chosen = np.random.default_rng(0).permutation(len(rows))
  chosen = chosen[first : first + count].tolist()
  queries = [Judged(str(n), rows[n]['question'], (passages[rows[n]['passage']],)) for n in chosen]
  return [Document(id, text) for text, id in passages.items()], queries


def read_ids(path: str) -> list[str]:
  """The ids in a file, one a line."""
  return [line.strip() for _, line in numbered_lines('deleted', path)]


def measure_index(searcher: Searcher) -> dict[str, Any]:
  """How long queries take, and which share of the nearest 10 the vectors' index finds.

  Queries are the first halves of posts. `query_ms` leaves out what embedding them takes,
  `query_ms_embedding` does not.
  """
  texts = [text for text in searcher.sample(_SAMPLE) if text]
  vectors = searcher.embed(texts)
  nearest = searcher.exact(vectors, 10)
  found = [searcher.nearest(vector, 10) for vector in vectors]
  hits = [len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, nearest, strict=True)]
  times: dict[str, list[float]] = {'query_ms': [], 'query_ms_embedding': []}
  for text, vector in zip(texts, vectors, strict=True):
    query = Query(text, Filters())
    for key, known in (('query_ms', vector), ('query_ms_embedding', None)):
      begun = time.perf_counter()
      searcher.rank(query, known)
      times[key].append(1000 * (time.perf_counter() - begun))
  told = {
    key: dict(zip(('p50', 'p99'), np.percentile(ms, (50, 99)).tolist(), strict=True))
    for key, ms in times.items()
  }
  return {**told, 'recall_at_10': float(np.mean(hits)), 'vectors': searcher.kind}


def answer(searcher: Searcher, query: str) -> None:
  """Prints what is found for `query`, or for each line that is typed."""
  if query:
    _show(searcher, query)
    return
  print(_HELP, flush=True)
  while True:
    try:
      asked = input('search> ').strip()
    except (EOFError, KeyboardInterrupt):
      print()
      return
    if asked == '/exit':
      return
    if asked:
      _show(searcher, asked)


def _show(searcher: Searcher, asked: str) -> None:
  try:
    hits, _ = searcher.hits(parse(asked), _SHOWN)
  except QueryError as error:
    print(error, file=sys.stderr)
    return
  if not any(hit.relevant for hit in hits):
    print('nothing close was found' + ('; the nearest there is:' if hits else ''))
  for place, hit in enumerate(hits, 1):
    print(f'{place:2}. {_marked(hit)}\n    {hit.document.id}: {hit.why}', flush=True)


def _marked(hit: Hit) -> str:
  """The snippet, bold where it shows the query's words and this is a terminal."""
  if not sys.stdout.isatty():
    return ' '.join(hit.snippet.split())
  text, end = '', 0
  for start, stop in hit.highlights:
    text += f'{hit.snippet[end:start]}\033[1m{hit.snippet[start:stop]}\033[0m'
    end = stop
  return ' '.join((text + hit.snippet[end:]).split())


def eta(what: str, total: int | None):
  """(more that were embedded, more that were read) -> prints how far it is and how long it may take."""
  begun, done, shown = time.monotonic(), 0, 0.0

  def show(added: int, more: int) -> None:
    nonlocal done, shown
    done += more
    now = time.monotonic()
    if now - shown < 5.0 and done != total:
      return
    shown, rate = now, done / max(now - begun, 1e-9)
    left = f' of {total:,}, {duration_text((total - done) / rate)} left' if total else ''
    print(f'{done:,} {what}{left}, {rate:,.0f}/s', flush=True)

  return show
