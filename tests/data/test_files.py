"""Files of every packing, from a disk and from a store."""

import gzip
import hashlib
import sys
import zipfile

import fsspec
import pyarrow as pa
import pytest
from fsspec.registry import _registry

from lmjax.core.errors import UserError
from lmjax.data import files

CONTENT = b'one\ntwo\n' * 1000


def zstd(content: bytes) -> bytes:
  return pa.compress(content, 'zstd', asbytes=True)


def read(path) -> dict[str, bytes]:
  return {name: stream.read() for name, stream in files.streams(str(path))}


@pytest.mark.parametrize('pack', [bytes, gzip.compress, zstd])
def test_packing_is_told_from_the_bytes(tmp_path, pack):
  path = tmp_path / 'misleading.zip'
  path.write_bytes(pack(CONTENT))
  assert read(path) == {str(path): CONTENT}


@pytest.mark.parametrize('pack', [gzip.compress, zstd])
def test_files_packed_one_after_the_other_are_all_read(tmp_path, pack):
  path = tmp_path / 'posts'
  path.write_bytes(pack(CONTENT) + pack(b'three\n'))
  assert read(path) == {str(path): CONTENT + b'three\n'}


def write_zip(path, **members: bytes) -> None:
  with zipfile.ZipFile(path, 'w') as archive:
    for name, content in members.items():
      archive.writestr(name, content)


def test_only_file_of_a_zip(tmp_path):
  path = tmp_path / 'posts.zip'
  write_zip(
    path, **{'posts.csv': CONTENT, '__MACOSX/._posts.csv': b'x', '.DS_Store': b'x', 'a/': b''}
  )
  assert read(path) == {f'{path}/posts.csv': CONTENT}


def test_posts_of_a_platforms_archive(tmp_path):
  path = tmp_path / 'twitter.zip'
  others = {'data/deleted-tweets.js': b'x', 'data/like.js': b'x', 'assets/1.jpg': b'x'}
  write_zip(path, **{'data/tweets.js': b'1', 'data/tweets-part1.js': b'2', **others})
  assert read(path) == {f'{path}/data/tweets.js': b'1', f'{path}/data/tweets-part1.js': b'2'}


def test_zip_of_several_files_refused(tmp_path):
  write_zip(tmp_path / 'two.zip', a=b'1', b=b'2')
  with pytest.raises(UserError, match=r'two.zip holds 2 files .*: unpack it and name those'):
    read(tmp_path / 'two.zip')


def test_empty_zip_refused(tmp_path):
  write_zip(tmp_path / 'none.zip')
  with pytest.raises(UserError, match='is an empty zip archive: leave it out'):
    read(tmp_path / 'none.zip')


def test_locked_zip_refused(tmp_path):
  path = tmp_path / 'locked.zip'
  write_zip(path, a=b'1')
  content = bytearray(path.read_bytes())
  content[content.rindex(b'PK\x01\x02') + 8] |= 1  # the flag of encryption
  path.write_bytes(content)
  with pytest.raises(UserError, match='is locked with a password: unpack it'):
    read(path)


def test_patterns_and_plain_names(tmp_path, monkeypatch):
  for name in ('a.csv', 'b.csv', 'c[1].csv', 'd.txt'):
    (tmp_path / name).touch()
  (tmp_path / 'folder.csv').mkdir()
  monkeypatch.chdir(tmp_path)
  assert sorted(files.matches('[ab].csv')) == [str(tmp_path / 'a.csv'), str(tmp_path / 'b.csv')]
  assert files.matches('c[1].csv') == [str(tmp_path / 'c[1].csv')]
  assert len(files.matches(f'{tmp_path}/*.csv')) == 3
  assert files.matches('*.parquet') == []


def test_folder_refused(tmp_path):
  with pytest.raises(UserError, match=r'is a folder: name the files in it, as in .*/\*$'):
    files.matches(f'{tmp_path}/')


def test_files_of_a_store():
  fsspec.filesystem('memory').pipe('/lmjax/a.txt', CONTENT)
  (path,) = files.matches('memory://lmjax/*.txt')
  assert path == 'memory:///lmjax/a.txt'
  assert read(path) == {path: CONTENT}
  assert files.sha256(path) == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize(
  ('url', 'module', 'extra'), [('s3://a/b', 's3fs', 's3'), ('gs://a/b', 'gcsfs', 'gcs')]
)
def test_store_without_its_extra(monkeypatch, url, module, extra):
  monkeypatch.setitem(sys.modules, module, None)
  # Where what another test has imported stays.
  monkeypatch.delitem(_registry, url.partition('://')[0], raising=False)
  with pytest.raises(UserError, match=rf"pip install 'lmjax\[{extra}\]'"):
    files.matches(url)


def test_other_protocol_without_its_package(monkeypatch):
  monkeypatch.setitem(sys.modules, 'aiohttp', None)
  with pytest.raises(UserError, match='reading https:// needs a package that is missing: install'):
    files.matches('https://example.org/posts.csv')


def test_unknown_protocol():
  with pytest.raises(UserError, match='pass a local path, s3:// or gs://'):
    files.matches('nowhere://a/b')


def test_place_that_cannot_be_listed():
  with pytest.raises(UserError, match=r'cannot be listed .*: check the address and your rights'):
    files.matches('zip://*.csv::/no/such.zip')


def test_file_that_cannot_be_opened(tmp_path):
  with pytest.raises(UserError, match=r'cannot be opened .*No such file.*: check the address'):
    read(tmp_path / 'gone.csv')
