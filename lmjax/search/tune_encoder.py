"""The encoder itself learnt from judged queries: their answers come nearer than other documents.

Q queries of an update, L tokens, D size of a vector.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.core.config import Config, leaf
from lmjax.core.errors import UserError
from lmjax.core.types import Params
from lmjax.data.shuffle import permutation
from lmjax.interop.encoder import LoadedEncoder
from lmjax.models.encoder import Encoder, Pooling
from lmjax.objectives.contrastive import cached_value_and_grad, info_nce
from lmjax.search.embed import Embedder, text_vectors
from lmjax.search.engine import Engine
from lmjax.search.ranking import mine_negatives, reciprocal_rank
from lmjax.search.sets import Query


class EncoderTuning(Config):
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
  temperature: float = leaf(0.05, 'Of InfoNCE.', above=0.0)

  def __post_init__(self) -> None:
    super().__post_init__()
    if 3 * self.rows % self.pieces:
      raise UserError(
        f'rows={self.rows} are {3 * self.rows} texts with answers and negatives, which pieces='
        f'{self.pieces} do not divide: pass pieces one of '
        f'{[n for n in range(1, 3 * self.rows + 1) if 3 * self.rows % n == 0][:8]}'
      )


class Triples(NamedTuple):
  """What teaches: indices of queries, of an answer and of near documents that are none, for each.

  Attributes:
    relevant: indices of all documents that answer each query.
  """

  queries: Sequence[str]
  documents: Sequence[str]
  answers_Q: np.ndarray
  negatives_QK: np.ndarray
  relevant: Sequence[set[int]]


def improve_encoder(
  engine: Engine, queries: list[Query], settings: EncoderTuning, negatives: int, seed: int
) -> tuple[Engine, list[Query], tuple[float, float]]:
  """Has the encoder learn three quarters of the queries.

  Returns:
    An engine with the better of both encoders, as the other queries find it; these queries; and their mean
    reciprocal ranks (before, after).
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
  given = Triples(texts, documents, answers_Q, near_QK, relevant)
  tuned = Engine(engine.documents, tune_encoder(engine.embedder, given, settings, seed))
  judging = [query.text for query in rest]
  before, after = (
    reciprocal_rank(one.vectors, one.embedder.embed(judging), one.places(rest))
    for one in (engine, tuned)
  )
  print(f'mean reciprocal rank by the encoder, unseen queries: {before:.3f} -> {after:.3f}')
  return (tuned if after > before else engine), rest, (before, after)


def tune_encoder(
  embedder: Embedder, given: Triples, settings: EncoderTuning, seed: int
) -> Embedder:
  """An embedder that has learnt; InfoNCE over answers and one mined negative a query, by GradCache."""
  loaded = embedder.loaded
  if not isinstance(loaded, LoadedEncoder) or embedder.size < loaded.model.width:
    raise UserError(
      'train.epochs has an encoder (BERT) learn with all its dimensions: pass such an --encoder, or '
      '--train.epochs=0'
    )
  rows = min(settings.rows, len(given.queries))
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
    state, value = update.step(state, _padded(texts, settings.length), good_QN)
    if step % max(1, steps // 10) == 0:
      print(f'encoder: update {step + 1} of {steps}, loss {float(value):.3f}', flush=True)
  learnt = loaded._replace(params=state[0])
  return Embedder(learnt, embedder.length, pooling=embedder.pooling)


class _Update(NamedTuple):
  start: Callable[[Params], Any]
  step: Callable[[Any, Any, np.ndarray], tuple[Any, jax.Array]]


def _make_update(model: Encoder, pooling: Pooling, steps: int, settings: EncoderTuning) -> _Update:
  """AdamW on `cached_value_and_grad`; a state is parameters and moments."""
  warm = max(1, steps // 10)
  rate = optax.warmup_cosine_decay_schedule(0.0, settings.peak_lr, warm, max(steps, warm + 1))
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))

  def encode(params, texts):
    return text_vectors(model, params, *texts, pooling)

  @jax.jit
  def step(state, texts, excluded_QN):
    params, moments = state
    count = excluded_QN.shape[0]

    def loss(vectors_SD):
      queries_QD, documents_ND = vectors_SD[:count], vectors_SD[count:]
      none_QKD = jnp.zeros((count, 0, vectors_SD.shape[1]))
      places_Q = jnp.arange(count)
      return info_nce(
        queries_QD, documents_ND, places_Q, none_QKD, excluded_QN, temperature=settings.temperature
      ).value

    pieces = settings.pieces if 3 * count % settings.pieces == 0 else 1
    value, slopes = cached_value_and_grad(encode, loss, params, texts, pieces=pieces)
    updates, moments = tx.update(slopes, moments, params)
    return (optax.apply_updates(params, updates), moments), value

  return _Update(lambda params: (params, tx.init(params)), step)


def _padded(texts: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
  """(i32 [texts, L], i32 lengths) of token ids cut at `length`."""
  tokens_SL = np.zeros((len(texts), length), np.int32)
  lengths_S = np.array([min(len(ids), length) for ids in texts], np.int32)
  for row, ids in enumerate(texts):
    tokens_SL[row, : lengths_S[row]] = ids[:length]
  return tokens_SL, lengths_S
