"""SIGKILL at random moments of adds and deletes, in real processes: what is there is what the journal says."""

import contextlib
import random
import signal
import time

import index_writer
import pytest
from small_encoder import write_encoder

from lmjax.interop.encoder import load_encoder
from lmjax.search.embed import Embedder
from lmjax.search.index import Index
from lmjax.search.query import parse
from lmjax.search.searcher import Searcher


def _kill(seed, folder, encoder, programs):
  """The last place in the journal that a process said it had reached before it was killed."""
  rng = random.Random(seed)
  process, told = index_writer.start(folder, encoder, seed, programs)
  try:
    said = [told.recv() for _ in range(2 + rng.randrange(4))]
    time.sleep(rng.uniform(0.0, 0.1))
  finally:
    process.kill()
    process.join()
  with contextlib.suppress(EOFError):  # it comes after all that was said
    while True:
      said.append(told.recv())
  assert process.exitcode == -signal.SIGKILL
  return max(seq for seq in said if seq != 'open')


def _check(folder, embedder, encoder, completed):
  with Index(folder, embedder, encoder) as index:
    journal = index.store.journal()
    assert [entry.seq for entry in journal] == list(range(1, len(journal) + 1))
    assert len(journal) >= completed
    count = sum(entry.added for entry in journal) - sum(entry.deleted for entry in journal)
    assert index.store.count == count > 0
    numbers, vectors = index.store.vectors(index.store.numbers(), index.store.tables()[0])
    assert len(numbers) == len(vectors) == count
    index.settle()
  searcher = Searcher(folder)
  assert len(searcher.nearest(vectors[0], 1000)) == count
  hits, _ = searcher.hits(parse('-zebra'), 1000)
  assert len({hit.document.id for hit in hits}) == count
  searcher.close()


@pytest.mark.parametrize('kills', [1, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.long])])
def test_after_a_kill_at_any_moment_the_index_is_what_its_journal_says(tmp_path, kills):
  encoder = str(write_encoder(tmp_path / 'bert'))
  embedder, folder = Embedder(load_encoder(encoder)), tmp_path / 'index'
  for seed in range(kills):
    _check(folder, embedder, encoder, _kill(seed, folder, encoder, tmp_path / 'programs'))
