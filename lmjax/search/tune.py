"""The task that learns from a user's own judgments how to rank.

Q queries, N documents, K negatives, D size of a vector.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError, need
from lmjax.core.metrics import progress
from lmjax.core.task import Report, Task
from lmjax.data.shuffle import permutation
from lmjax.interop.encoder import MINILM
from lmjax.objectives.contrastive import info_nce
from lmjax.search.cross import ScorePairs, open_cross
from lmjax.search.embed import open_embedder
from lmjax.search.engine import Engine
from lmjax.search.evaluate import CROSS_HELP, DOCUMENTS, ENCODER, QUERIES, Tuned, save_tuned
from lmjax.search.ranking import (
  CROSS,
  FEATURES,
  READ,
  Candidates,
  Ranking,
  learn_weights,
  load_ranking,
  mean_of_first,
  mine_negatives,
  reciprocal,
  reciprocal_rank,
)
from lmjax.search.sets import Query, read_documents, read_queries
from lmjax.search.teacher import open_teacher
from lmjax.search.tune_encoder import EncoderTuning, improve_encoder

_SMALLEST = 20  # judged queries that are worth learning from
_K1, _B = (0.6, 0.9, 1.2, 1.6, 2.0), (0.1, 0.3, 0.5, 0.75, 0.9)


class SearchTune(Task):
  """Learns BM25's numbers, where queries lie and what each score weighs, from judged queries.

  A matrix moves queries' vectors, so that documents need not be read again. Where `train.epochs` has the
  encoder itself learn, three quarters of the queries teach it and the others all the rest.
  """

  documents: str = leaf('', DOCUMENTS)
  queries: str = leaf('', QUERIES)
  encoder: str = leaf(MINILM, ENCODER)
  folds: int = leaf(4, 'Parts of the queries, each scored by what the others taught.', low=2)
  steps: int = leaf(200, 'Updates of the matrix at most; folds say how many.', low=1)
  learning_rate: float = leaf(3e-4, 'Of these updates.', above=0.0)
  temperature: float = leaf(0.05, 'Of InfoNCE.', above=0.0)
  negatives: int = leaf(32, 'Documents near a query that do not answer it, for each.', low=1)
  rerank_queries: int = leaf(
    200, 'Queries that teach re-ranking at most, half of them only judge it: it is slow.', low=2
  )
  cross: str = leaf('', f'{CROSS_HELP} Its weight is learnt.')
  train: EncoderTuning = part(EncoderTuning(), 'Learning of the encoder itself.')
  seed: int = leaf(0, 'Of the folds.', low=0)

  def run(self, workdir: Path) -> Report:
    """Writes a run that search_eval's --checkpoint takes."""
    need('documents', self.documents, 'FILE.jsonl, what is searched')
    need('queries', self.queries, 'FILE.jsonl, judged queries')
    documents = read_documents(self.documents)
    queries = read_queries(self.queries, documents)
    if len(queries) < _SMALLEST:
      raise UserError(
        f'--queries={self.queries} has {len(queries)} queries: pass {_SMALLEST} or more to learn from'
      )
    embedder, teacher = open_embedder(self.encoder), None
    cross = open_cross('cross', self.cross) if self.cross else None
    if self.train.epochs:  # like cross, before documents are read, which may take minutes
      self.train.check(embedder)
      teacher = open_teacher(self.train.teacher, self.train.teacher_says)
    engine = Engine(documents, embedder, progress('documents read'))
    rest, trained = queries, {}
    if self.train.epochs:
      engine, rest, trained = improve_encoder(
        engine, queries, self.train, self.negatives, self.seed, teacher
      )
    vectors = engine.embedder.embed([query.text for query in rest])
    tuned, said = self.learn(engine, rest, vectors, cross)
    save_tuned(workdir, tuned, engine.embedder, changed=engine.embedder is not embedder)
    print(f'written to {workdir}: pass it to search_eval as --checkpoint={workdir}')
    counts = {'documents': len(documents), 'queries': len(queries)}
    by_size = {str(size): both for size, both in trained.items()}
    return {**counts, 'mrr_encoder': trained.get(embedder.size), 'mrr_by_size': by_size, **said}

  def learn(
    self, engine: Engine, queries: list[Query], vectors: np.ndarray, cross: ScorePairs | None
  ) -> tuple[Tuned, Report]:
    """What the queries teach; weights are learnt on queries that the matrix did not see.

    Args:
      vectors: of the queries, f32 [queries, D].
      cross: who reads the first documents together with the query, where somebody does.
    """
    relevant = engine.places(queries)
    texts = [query.text for query in queries]
    ranking = tune_words(engine, texts, relevant)._replace(
      trained_on=f'{len(queries)} queries of {self.queries}'
    )
    fold_Q = permutation(len(queries), 'folds', self.seed) % self.folds
    every = max(1, self.steps // 4)
    counts = [0, *range(every, self.steps + 1, every)]
    held_out = np.zeros((len(counts), *vectors.shape), np.float32)
    for fold in range(self.folds):
      inside = fold_Q != fold
      taught = self._adapters(engine.vectors, vectors[inside], _pick(relevant, inside), every)
      for number, adapter_DD in enumerate(taught):
        held_out[number, ~inside] = Tuned(ranking, adapter_DD).adapt(vectors[~inside])
    moved = [held_out[number] for number in range(len(counts))]
    gains = [reciprocal_rank(engine.vectors, one, relevant) for one in moved]
    best = int(np.argmax(gains))
    print(f'mean reciprocal rank by meaning, unseen queries: {gains[0]:.3f} -> {gains[best]:.3f}')
    adapter_DD = list(self._adapters(engine.vectors, vectors, relevant, every))[best]
    found = engine.find(texts, held_out[best], ranking)
    ranking = ranking._replace(hybrid=learn_weights(FEATURES, found, relevant))
    asked = (texts, held_out[best], found, relevant)
    ranking, told = self._rerank(engine, asked, ranking, cross)
    report = {'ranking': ranking._asdict(), 'updates': counts[best], 'mrr_held_out': gains, **told}
    return Tuned(ranking, adapter_DD, self.cross if ranking.cross[CROSS] else ''), report

  def _rerank(
    self,
    engine: Engine,
    queries: tuple[Sequence[str], np.ndarray, Sequence[Candidates], Sequence[set[int]]],
    ranking: Ranking,
    cross: ScorePairs | None,
  ) -> tuple[Ranking, dict[str, list[float]]]:
    """The ranking with weights for reading again and together, and what they gain: (before, after) each.

    Args:
      queries: texts, vectors that did not see these queries, candidates, and who answers.
    """
    texts, vectors, found, relevant = queries
    chosen = np.arange(len(texts)) < self.rerank_queries
    print(f'reading the first documents of {chosen.sum()} queries again', flush=True)
    texts, found, good = (_pick(items, chosen) for items in (texts, found, relevant))
    again = engine.read_again(texts, vectors[chosen], found, ranking)
    unread = {**ranking.hybrid, **dict.fromkeys(READ, 0.0)}
    weights, gains = _where_it_gains('by reading again', unread, again, good)
    ranking, told = ranking._replace(reranked=weights), {'mrr_reranking': gains}
    weights = {**weights, CROSS: 0.0}
    if cross:
      together = engine.read_together(texts, again, ranking, cross)
      weights, told['mrr_cross'] = _where_it_gains('by reading together', weights, together, good)
    return ranking._replace(cross=weights), told

  def _adapters(self, documents, queries, relevant, every):
    """The matrix after 0, `every`, 2 x `every` ... updates, f32 [D, D] each."""
    answers = [min(good) for good in relevant]
    shared, answers_Q = np.unique(answers, return_inverse=True)
    excluded_QN = np.array([np.isin(shared, list(good)) for good in relevant])
    excluded_QN[np.arange(len(answers)), answers_Q] = False
    negatives_QK = mine_negatives(documents, queries, relevant, self.negatives)
    batch = (queries, documents[shared], answers_Q, documents[negatives_QK], excluded_QN)
    start, update = make_update(self.learning_rate, self.temperature)
    size = documents.shape[1]
    state = start(jnp.zeros((size, size)))
    yield np.zeros((size, size), np.float32)
    for step in range(1, self.steps + 1):
      state = update(state, batch)
      if step % every == 0:
        yield np.asarray(state[0])


def make_update(learning_rate: float, temperature: float) -> tuple[Callable, Callable]:
  """Adam on InfoNCE of queries moved by a matrix: matrix -> state, and (state, batch) -> state.

  A state is the matrix and Adam's moments.
  """
  tx = optax.adam(learning_rate)

  def loss(adapter_DD, batch):
    queries_QD, documents_ND, answers_Q, negatives_QKD, excluded_QN = batch
    moved_QD = queries_QD + queries_QD @ adapter_DD
    moved_QD /= jnp.linalg.norm(moved_QD, axis=1, keepdims=True)
    return info_nce(
      moved_QD, documents_ND, answers_Q, negatives_QKD, excluded_QN, temperature=temperature
    ).value

  @jax.jit
  def step(state, batch):
    adapter_DD, moments = state
    updates, moments = tx.update(jax.grad(loss)(adapter_DD, batch), moments)
    return optax.apply_updates(adapter_DD, updates), moments

  return lambda adapter_DD: (adapter_DD, tx.init(adapter_DD)), step


def tune_words(engine: Engine, texts: Sequence[str], relevant: Sequence[set[int]]) -> Ranking:
  """The shipped ranking with the k1 and b under which BM25 alone puts answers first."""
  best, shipped = (-1.0, load_ranking()), load_ranking()
  for k1 in _K1:
    for b in _B:
      ranking = shipped._replace(k1=k1, b=b)
      scores = engine.score_words(texts, ranking)
      mean = float(
        np.mean([reciprocal(one, good) for one, good in zip(scores, relevant, strict=True)])
      )
      best = max(best, (mean, ranking), key=lambda pair: pair[0])
  return best[1]


def _where_it_gains(
  how: str, before: Mapping[str, float], found: Sequence[Candidates], relevant: Sequence[set[int]]
) -> tuple[Mapping[str, float], list[float]]:
  """Weights of the same names as `before` learnt of these candidates, or `before` where they gain nothing.

  Half of the queries teach and the other half say whether they do: mean reciprocal ranks before and
  after. Then all teach.
  """
  names = list(before)
  after = learn_weights(names, found[::2], relevant[::2])
  gains = [mean_of_first(found[1::2], relevant[1::2], one) for one in (before, after)]
  print(f'mean reciprocal rank {how}, unseen queries: {gains[0]:.3f} -> {gains[1]:.3f}', flush=True)
  return learn_weights(names, found, relevant) if gains[1] > gains[0] else before, gains


def _pick(items: Sequence, chosen: np.ndarray) -> list:
  return [items[index] for index in np.flatnonzero(chosen).tolist()]
