"""SIGKILL at random moments of adds and deletes, in real processes: what is there is what the journal says."""

import random
import signal
import subprocess
import sys
import time

import pytest
from small_encoder import WORDS, write_encoder

from lmjax.interop.encoder import load_encoder
from lmjax.search.embed import Embedder
from lmjax.search.index import Index
from lmjax.search.query import parse
from lmjax.search.searcher import Searcher

# Adds, deletes, bans and builds anew as fast as it can, and says when each was complete.
_CHILD = f"""
import random, sys
from pathlib import Path
from lmjax.interop.encoder import load_encoder
from lmjax.search.embed import Embedder
from lmjax.search.index import Index
from lmjax.search.sets import Document

rng, folder, encoder = random.Random(int(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
with Index(folder, Embedder(load_encoder(encoder)), encoder) as index:
  print('open', flush=True)
  while True:
    posts = [Document(f'p{{rng.randrange(400)}}', ' '.join(rng.sample({WORDS!r}, 4))) for _ in range(16)]
    index.add(posts)
    index.delete([f'p{{rng.randrange(400)}}' for _ in range(8)])
    if rng.random() < 0.2:
      index.compact()
    print('done', index.store.seq, flush=True)
"""


def _kill(seed, folder, encoder):
  """The last place in the journal that a child said it had reached before it was killed."""
  rng = random.Random(seed)
  command = [sys.executable, '-c', _CHILD, str(seed), str(folder), encoder]
  child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  assert child.stdout is not None
  lines = [child.stdout.readline() for _ in range(2 + rng.randrange(4))]
  time.sleep(rng.uniform(0.0, 0.1))
  child.kill()
  lines += child.communicate()[0].splitlines()
  assert child.returncode == -signal.SIGKILL
  return max(int(line.split()[1]) for line in lines if line.startswith('done'))


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


@pytest.mark.parametrize('kills', [1, pytest.param(20, marks=pytest.mark.slow)])
def test_after_a_kill_at_any_moment_the_index_is_what_its_journal_says(tmp_path, kills):
  encoder = str(write_encoder(tmp_path / 'bert'))
  embedder, folder = Embedder(load_encoder(encoder)), tmp_path / 'index'
  for seed in range(kills):
    _check(folder, embedder, encoder, _kill(seed, folder, encoder))
