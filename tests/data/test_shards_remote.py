"""Prepared posts on s3://, against a local server."""

import fsspec
import pytest
from generated import make_posts, prepare_posts, write_posts
from object_store import s3_server, write

from lmjax.core.errors import UserError
from lmjax.data import shards
from lmjax.data.prepare import prepare
from lmjax.data.sources import Posts
from lmjax.data.split import Split
from lmjax.data.tokenizer import TokenizerConfig


@pytest.fixture(scope='module', autouse=True)
def server():
  with s3_server():
    yield


def test_prepared_posts_on_s3_are_fetched_shard_by_shard_as_they_are_read(tmp_path, monkeypatch):
  monkeypatch.setattr(shards, 'SHARD_BYTES', 4096)
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path / 'made'))
  here = prepare_posts(write_posts(tmp_path / 'posts.jsonl', make_posts(300, 1)))
  fsspec.filesystem('s3').put(f'{here.folder}/', 's3://bucket/corpus/', recursive=True)
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path / 'fetched'))
  source = Posts(posts='s3://bucket/corpus/manifest.json')
  there = prepare(source, Split(), TokenizerConfig())
  files = there.manifest['parts']['train']['shards']
  assert len(files) > 2
  assert there.read('train', [0])[0].tolist() == here.read('train', [0])[0].tolist()
  fetched = {path.name for path in there.folder.iterdir()}
  assert fetched == {'manifest.json', 'tokenizer.json', 'train.lengths.npy', files[0]['file']}
  assert list(there.texts('train')) == list(here.texts('train'))
  assert (there.sha256, there.notes) == (here.sha256, here.notes)
  assert there.folder.is_relative_to(tmp_path / 'fetched')


def test_prepared_posts_on_s3_that_changed_are_refused(tmp_path, monkeypatch):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path / 'made'))
  here = prepare_posts(write_posts(tmp_path / 'posts.jsonl', make_posts(100, 1)))
  fsspec.filesystem('s3').put(f'{here.folder}/', 's3://bucket/changed/', recursive=True)
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path / 'fetched'))
  file = here.manifest['parts']['train']['shards'][0]['file']
  write(f'changed/{file}', b'other')
  there = shards.open_shards('s3://bucket/changed')
  with pytest.raises(UserError, match=f'{file} is not what its manifest says: copy the corpus'):
    there.read('train', [0])
  assert not list(there.folder.glob(f'*{file}*'))
