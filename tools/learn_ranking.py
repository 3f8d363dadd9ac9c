"""Learns lmjax/search/ranking.json, the weights that search is shipped with, from judged queries.

usage: python tools/learn_ranking.py OUT BOOLQ NAME DOCUMENTS QUERIES [NAME DOCUMENTS QUERIES ...]

OUT is written; of BoolQ the questions from place 8,000 on teach, BOOLQ of them (search_posts judges by the
first ones); NAME is how the file calls the queries of a set. Half of each set's queries teach and the other
half say how good that is, then all teach. BM25's k1 and b stay as they are, and nobody reads together.
Documents' vectors are kept in LMJAX_CACHE: where search_posts has rated BoolQ before, most time is saved.
"""

import sys
import time
from pathlib import Path

from lmjax.core.metrics import progress
from lmjax.interop.encoder import MINILM
from lmjax.search.embed import open_embedder
from lmjax.search.engine import Engine
from lmjax.search.posts import read_boolq
from lmjax.search.ranking import CROSS, FEATURES, READ, learn_weights, load_ranking, mean_of_first
from lmjax.search.sets import read_documents, read_queries

_TEACH = 8000  # place of the first BoolQ question that teaches


def read_sets(argv: list[str]) -> dict[str, tuple]:
  """Name -> (documents, queries)."""
  found = {}
  for name, documents, queries in zip(argv[3::3], argv[4::3], argv[5::3], strict=True):
    read = read_documents(documents)
    found[name] = (read, read_queries(queries, read))
  if int(argv[2]):
    name = f'BoolQ, questions {_TEACH:,} to {_TEACH + int(argv[2]):,} of the shuffled asset'
    found[name] = read_boolq(int(argv[2]), _TEACH)
  return found


def main(argv: list[str]) -> None:
  begun = time.monotonic()
  say = lambda what: print(f'{time.monotonic() - begun:5.0f} s: {what}', flush=True)
  sets, embedder, ranking = read_sets(argv), open_embedder(MINILM), load_ranking()
  engines = {name: Engine(pair[0], embedder, progress(name)) for name, pair in sets.items()}
  texts = {name: [query.text for query in pair[1]] for name, pair in sets.items()}
  say('documents are embedded; looking for candidates')
  vectors = {name: embedder.embed(texts[name]) for name in sets}
  relevant = {name: engine.places(sets[name][1]) for name, engine in engines.items()}
  found = {name: one.find(texts[name], vectors[name], ranking) for name, one in engines.items()}

  def learn(names, candidates, start: int, step: int) -> dict[str, float]:
    some = [one for name in sets for one in candidates[name][start::step]]
    return learn_weights(names, some, [one for name in sets for one in relevant[name][start::step]])

  def tell(what: str, candidates, weights) -> None:
    for name in sets:
      mean = mean_of_first(candidates[name][1::2], relevant[name][1::2], weights)
      say(f'{what}, {name}: mean reciprocal rank {mean:.4f} in the other half')

  tell('hybrid', found, learn(FEATURES, found, 0, 2))
  ranking = ranking._replace(hybrid=learn(FEATURES, found, 0, 1))
  say('reading the first candidates again')
  again = {
    name: one.read_again(texts[name], vectors[name], found[name], ranking)
    for name, one in engines.items()
  }
  tell('reranked', again, learn((*FEATURES, *READ), again, 0, 2))
  told = '; '.join(f'{name} ({len(queries)} queries)' for name, (_, queries) in sets.items())
  weights = learn((*FEATURES, *READ), again, 0, 1)
  say(f'writing {argv[1]}')
  learnt = {'reranked': weights, 'cross': {**weights, CROSS: 0.0}}
  ranking._replace(**learnt, trained_on=f'training queries: {told}').save(Path(argv[1]))


if __name__ == '__main__':
  main(sys.argv)
