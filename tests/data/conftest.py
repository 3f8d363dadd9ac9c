"""Caches and prepared corpora for the tests of the data."""

from collections.abc import Callable
from pathlib import Path

import pytest
from generated import make_posts, prepare_posts, write_posts

from lmjax.data.shards import Shards


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
  """An empty cache folder."""
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache' / 'corpora'


@pytest.fixture(scope='session')
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Shards]:
  """(posts, seed) -> their shards, made once; not to be written to."""
  folder = tmp_path_factory.mktemp('prepared')
  made: dict[tuple[int, int], Shards] = {}

  def get(count: int, seed: int) -> Shards:
    if (count, seed) not in made:
      path = write_posts(folder / f'{count}-{seed}.jsonl', make_posts(count, seed))
      with pytest.MonkeyPatch.context() as patch:
        patch.setenv('LMJAX_CACHE', str(folder / 'cache'))
        made[count, seed] = prepare_posts(path)
    return made[count, seed]

  return get
