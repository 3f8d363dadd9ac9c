"""Adds to an index, deletes from it and builds it anew as fast as it can, in a process that is there to be killed.

Processes are forked from one that has imported everything, so that a kill costs no start of Python.
"""

import multiprocessing
import random
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax
from small_encoder import WORDS

from lmjax.interop.encoder import load_encoder
from lmjax.search.embed import Embedder
from lmjax.search.index import Index
from lmjax.search.sets import Document

_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(
  ['lmjax.interop.encoder', 'lmjax.search.index', 'safetensors.numpy']
)


def start(folder: Path, encoder: str, seed: int, programs: Path) -> tuple[BaseProcess, Connection]:
  """A process that writes the index in `folder`, and what it says: 'open', then after each round how
  far the journal goes. What it compiles is kept in `programs`.
  """
  told, says = _CONTEXT.Pipe(duplex=False)
  process = _CONTEXT.Process(target=_write, args=(folder, encoder, seed, programs, says))
  process.start()
  says.close()
  return process, told


def _write(folder: Path, encoder: str, seed: int, programs: Path, says: Connection) -> None:
  jax.config.update('jax_compilation_cache_dir', str(programs))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  rng = random.Random(seed)
  with Index(folder, Embedder(load_encoder(encoder)), encoder) as index:
    says.send('open')
    while True:
      texts = [' '.join(rng.sample(WORDS, 4)) for _ in range(16)]
      index.add([Document(f'p{rng.randrange(400)}', text) for text in texts])
      index.delete([f'p{rng.randrange(400)}' for _ in range(8)])
      if rng.random() < 0.2:
        index.compact()
      says.send(index.store.seq)
