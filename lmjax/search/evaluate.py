"""The task that measures search on judged queries, and what `--checkpoint` means to it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmjax.core.config import leaf
from lmjax.core.errors import UserError, need
from lmjax.core.metrics import progress
from lmjax.core.storage import at
from lmjax.core.task import Report, Task, write_json
from lmjax.interop.encoder import MINILM, LoadedEncoder, save_encoder
from lmjax.search.cross import ScorePairs, open_cross
from lmjax.search.embed import Embedder, open_embedder
from lmjax.search.engine import Engine, Scores
from lmjax.search.ranking import METHODS, Ranking, load_ranking
from lmjax.search.sets import MEASURES, measure, read_documents, read_queries

DOCUMENTS = 'JSONL, plain or compressed: id, text and perhaps title of each.'
QUERIES = 'JSONL, plain or compressed: id, text and relevant (ids of documents) of each.'
ENCODER = (
  'What makes vectors: the folder of an encoder (BERT), an asset, or any model, as --checkpoint.'
)
CROSS_HELP = 'Reads query and document together: a model or package.module:function.'
_RANKING, _ADAPTER, _TUNED, _ENCODER = 'ranking.json', 'adapter.npy', 'tuned.json', 'encoder'


class Tuned(NamedTuple):
  """What ranks: as shipped, or as `search_tune` learnt it.

  Attributes:
    adapter_DD: f32, what is added to a query's vector: vector @ adapter_DD.
    cross: who reads the first documents together with the query; '' = nobody.
  """

  ranking: Ranking
  adapter_DD: np.ndarray
  cross: str = ''

  def adapt(self, vectors: np.ndarray) -> np.ndarray:
    """Queries' vectors f32 [queries, D], moved to where their answers are."""
    moved = vectors + vectors @ self.adapter_DD
    return moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)

  def open_cross(self, cross: str) -> ScorePairs | None:
    """Who reads the first documents together with the query: `cross`, its own where that is empty, or nobody."""
    name = cross or self.cross
    return open_cross('cross', name) if name else None

  def rank(
    self, engine: Engine, texts: Sequence[str], cross: ScorePairs | None
  ) -> dict[str, list[Scores]]:
    """`Engine.rank` of queries that are moved."""
    return engine.rank(texts, self.adapt(engine.embedder.embed(texts)), self.ranking, cross)


def save_tuned(folder: Path, tuned: Tuned, embedder: Embedder, *, changed: bool) -> None:
  """Writes what `load_tuned` reads.

  Args:
    changed: whether the encoder has learnt too, and is to be kept with the rest.
  """
  if changed:
    assert isinstance(embedder.loaded, LoadedEncoder)
    save_encoder(folder / _ENCODER, embedder.loaded)
  tuned.ranking.save(folder / _RANKING)
  np.save(folder / _ADAPTER, tuned.adapter_DD)
  write_json(folder / _TUNED, {'embedder': embedder.name, 'cross': tuned.cross})


def encoder_of(checkpoint: str, encoder: str) -> str:
  """The encoder that a run of `search_tune` has made, where it made one; else `encoder`."""
  own = at(checkpoint) / _ENCODER
  return str(own) if checkpoint and own.is_dir() else encoder


def load_tuned(checkpoint: str, embedder: Embedder) -> Tuned:
  """As shipped where `checkpoint` is empty.

  Raises:
    UserError: it is no run of `search_tune`, or one of another encoder.
  """
  if not checkpoint:
    return Tuned(load_ranking(), np.zeros((embedder.size, embedder.size), np.float32))
  folder = at(checkpoint)
  try:
    said = json.loads((folder / _TUNED).read_text(encoding='utf-8'))
    embedded, cross = said['embedder'], said['cross']
    adapter_DD = np.load(folder / _ADAPTER)
  except (OSError, ValueError, KeyError, TypeError):
    raise UserError(
      f'--checkpoint={folder} holds no tuned search: pass the folder of a run of search_tune'
    ) from None
  if embedder.name != embedded:
    raise UserError(
      f'--checkpoint={folder} was tuned with another encoder, or for vectors of another size: pass the '
      '--encoder that it was tuned with'
    )
  return Tuned(load_ranking(folder / _RANKING), adapter_DD, cross)


class SearchEval(Task):
  """Ranks documents for judged queries, by words, by meaning and by both, and says how well."""

  documents: str = leaf('', DOCUMENTS)
  queries: str = leaf('', QUERIES)
  checkpoint: str = leaf('', 'The folder of a run of search_tune; empty = as shipped.')
  encoder: str = leaf(MINILM, ENCODER)
  cross: str = leaf('', f"{CROSS_HELP} Empty: the checkpoint's.")
  dimensions: int | None = leaf(
    None, 'Numbers of a vector that are kept, the first; none: all.', low=1
  )

  def run(self, workdir: Path) -> Report:
    """Trains nothing; the report's `methods` are means over all queries."""
    need('documents', self.documents, 'FILE.jsonl, what is searched')
    need('queries', self.queries, 'FILE.jsonl, judged queries')
    documents = read_documents(self.documents)
    queries = read_queries(self.queries, documents)
    embedder = open_embedder(encoder_of(self.checkpoint, self.encoder), dimensions=self.dimensions)
    tuned = load_tuned(self.checkpoint, embedder)
    cross = tuned.open_cross(self.cross)  # before documents are read, which may take minutes
    engine = Engine(documents, embedder, progress('documents read'))
    texts = [query.text for query in queries]
    ranked = tuned.rank(engine, texts, cross)
    ids = [query.id for query in queries]
    runs = {method: dict(zip(ids, ranked[method], strict=True)) for method in METHODS}
    methods = measure(queries, runs)
    print(table(methods))
    return {
      'documents': len(documents),
      'queries': len(queries),
      'checkpoint': self.checkpoint or None,
      'embedder': embedder.name,
      'cross': self.cross or tuned.cross or None,
      'ranking': tuned.ranking._asdict(),
      'methods': methods,
    }


def table(methods: dict[str, dict[str, float]]) -> str:
  """A line a method, a column a measure."""
  lines = [f'{"":10}' + ''.join(f'{name:>14}' for name in MEASURES)]
  for method, means in methods.items():
    lines.append(f'{method:10}' + ''.join(f'{means[name]:14.3f}' for name in MEASURES))
  return '\n'.join(lines)
