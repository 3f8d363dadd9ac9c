"""The encoder itself learnt from judged queries: their answers come nearer than other documents.

Q queries of an update, L tokens, D size of a vector.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from lmjax.core.config import leaf
from lmjax.core.errors import UserError
from lmjax.core.types import Params
from lmjax.data.shuffle import permutation
from lmjax.interop.encoder import LoadedEncoder
from lmjax.models.encoder import Encoder, Pooling, text_vectors
from lmjax.objectives.contrastive import Distilled, cached_value_and_grad
from lmjax.search.embed import Embedder, shorten
from lmjax.search.engine import Engine
from lmjax.search.pairs import pad
from lmjax.search.ranking import mine_negatives, reciprocal_rank
from lmjax.search.sets import Query
from lmjax.search.teacher import Says, Teach, Teacher, Triples


class EncoderTuning(Distilled):
  """How the encoder is learnt; the numbers of updates are passes over the queries."""

  epochs: int = leaf(
    0, 'Times that the encoder itself sees each query; 0: it stays as it is.', low=0
  )
  rows: int = leaf(32, 'Queries of an update; their answers are negatives of each other.', low=2)
  pieces: int = leaf(4, 'Parts of an update whose activations are in memory one by one.', low=1)
  length: int = leaf(96, 'Tokens of a text that teach.', low=2)
  peak_lr: float = leaf(
    2e-5, 'Learning rate after a tenth of the updates, then falling.', above=0.0
  )
  teacher: str = leaf(
    '', 'Whose scores are learnt too: an --encoder, or package.module:function; empty: nobody.'
  )
  teacher_says: Says = leaf(
    'cosine', "A model's score: cosine, or how likely it finds the query after the document."
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if 3 * self.rows % self.pieces:
      raise UserError(
        f'rows={self.rows} are {3 * self.rows} texts with answers and negatives, which pieces='
        f'{self.pieces} do not divide: pass pieces one of '
        f'{[n for n in range(1, 3 * self.rows + 1) if 3 * self.rows % n == 0][:8]}'
      )
    if not self.epochs and (self.teacher or self.matryoshka):
      raise UserError(
        'epochs=0 leaves the encoder as it is, and so no teacher or matryoshka can teach it: pass '
        '--train.epochs=1 or more, or drop them'
      )

  def check(self, embedder: Embedder) -> None:
    """UserError where this embedder cannot learn."""
    if not isinstance(embedder.loaded, LoadedEncoder) or embedder.size < embedder.model.width:
      raise UserError(
        'train.epochs has an encoder (BERT) learn with all its dimensions: pass such an --encoder, or '
        '--train.epochs=0'
      )
    self.check_width(embedder.size)


def improve_encoder(
  engine: Engine,
  queries: list[Query],
  settings: EncoderTuning,
  negatives: int,
  seed: int,
  teacher: Teacher | None = None,
) -> tuple[Engine, list[Query], dict[int, tuple[float, float]]]:
  """Has the encoder learn three quarters of the queries.

  Returns:
    An engine with the better of both encoders, as the other queries find it; these queries; and their mean
    reciprocal ranks (before, after) by the first numbers of vectors, as many as `matryoshka` says, and by all.
  """
  order = permutation(len(queries), 'teach', seed)
  teaching, rest = (
    [queries[index] for index in some] for some in np.split(order, [3 * len(queries) // 4])
  )
  texts = [query.text for query in teaching]
  relevant, vectors = engine.places(teaching), engine.embedder.embed(texts)
  near_QK = mine_negatives(engine.vectors, vectors, relevant, negatives)
  answers_Q = np.array([min(good) for good in relevant])
  documents = [document.whole for document in engine.documents]
  # An epoch shows each query the next of these.
  given = Triples(texts, documents, answers_Q, near_QK[:, : settings.epochs], relevant)
  teach = teacher(given) if teacher else None
  tuned = Engine(engine.documents, tune_encoder(engine.embedder, given, settings, seed, teach))
  judging = [query.text for query in rest]
  asked = [(one, one.embedder.embed(judging), one.places(rest)) for one in (engine, tuned)]
  found = {}
  for size in (*settings.matryoshka, engine.embedder.size):
    before, after = (
      reciprocal_rank(shorten(one.vectors, size), shorten(vectors, size), places)
      for one, vectors, places in asked
    )
    found[size] = (before, after)
    print(
      f'mean reciprocal rank by {size} numbers of a vector, unseen queries: {before:.3f} -> {after:.3f}'
    )
  before, after = found[engine.embedder.size]
  return (tuned if after > before else engine), rest, found


def tune_encoder(
  embedder: Embedder,
  given: Triples,
  settings: EncoderTuning,
  seed: int,
  teach: Teach | None = None,
) -> Embedder:
  """An embedder that has learnt; InfoNCE over answers and one mined negative a query, by GradCache."""
  loaded = embedder.loaded
  assert isinstance(loaded, LoadedEncoder)
  rows = min(settings.rows, len(given.queries))
  length = min(settings.length, embedder.length)
  each = len(given.queries) // rows
  steps = settings.epochs * each
  update = _make_update(loaded.model, embedder.pooling, steps, settings)
  state = update.start(loaded.params)
  queries, documents = embedder.encode(given.queries), embedder.encode(given.documents)
  for step in range(steps):
    epoch, place = divmod(step, each)
    order = permutation(len(queries), 'encoder', seed, epoch)
    chosen = order[place * rows : (place + 1) * rows]
    answers = given.answers_Q[chosen]
    others = given.negatives_QK[chosen, epoch % given.negatives_QK.shape[1]]
    shown = np.concatenate([answers, others])
    good_QN = np.array([np.isin(shown, list(given.relevant[row])) for row in chosen.tolist()])
    good_QN[np.arange(rows), np.arange(rows)] = False
    texts = [*(queries[row] for row in chosen), *(documents[index] for index in shown)]
    taught_QN = teach(chosen, shown) if teach else None
    state, value = update.step(state, pad(texts, length), good_QN, taught_QN)
    if step % max(1, steps // 10) == 0:
      print(f'encoder: update {step + 1} of {steps}, loss {float(value):.3f}', flush=True)
  learnt = loaded._replace(params=state[0])
  return Embedder(learnt, embedder.length, pooling=embedder.pooling)


class _Update(NamedTuple):
  start: Callable[[Params], Any]
  step: Callable[..., tuple[Any, jax.Array]]


def _make_update(model: Encoder, pooling: Pooling, steps: int, settings: EncoderTuning) -> _Update:
  """AdamW on `cached_value_and_grad`; a state is parameters and moments."""
  warm = max(1, steps // 10)
  rate = optax.warmup_cosine_decay_schedule(0.0, settings.peak_lr, warm, max(steps, warm + 1))
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))

  def encode(params, texts):
    tokens_BL, lengths_B = texts
    return text_vectors(model, params, tokens_BL, lengths_B, pooling)

  @jax.jit
  def step(state, texts, excluded_QN, taught_QN):
    params, moments = state
    count = excluded_QN.shape[0]

    def loss(vectors_SD):
      queries_QD, documents_ND = vectors_SD[:count], vectors_SD[count:]
      return settings.of_vectors(queries_QD, documents_ND, excluded_QN, taught_QN).value

    pieces = settings.pieces if 3 * count % settings.pieces == 0 else 1
    value, slopes = cached_value_and_grad(encode, loss, params, texts, pieces=pieces)
    updates, moments = tx.update(slopes, moments, params)
    return (optax.apply_updates(params, updates), moments), value

  return _Update(lambda params: (params, tx.init(params)), step)
