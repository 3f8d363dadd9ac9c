"""Assets against real pip runs: an index that is a local folder, one that is down, and none."""

import hashlib
import io
import sys
import tarfile
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lmjax.core import assets
from lmjax.core.errors import UserError

CONTENT = b'source_id,text\n1,hello\n'
HELLO = assets.Asset(
  kind='posts',
  package='lmjax-test-hello',
  version='1.0',
  member='hello/data/hello.csv',
  sha256=hashlib.sha256(CONTENT).hexdigest(),
  licence='Apache-2.0',
  description='a post',
)


def write_wheel(folder: Path, content: bytes = CONTENT, member: str = HELLO.member) -> None:
  info = 'lmjax_test_hello-1.0.dist-info'
  folder.mkdir(exist_ok=True)
  with zipfile.ZipFile(folder / 'lmjax_test_hello-1.0-py3-none-any.whl', 'w') as wheel:
    wheel.writestr(member, content)
    # Assets are only read, so a package for other versions of Python is as good.
    metadata = 'Metadata-Version: 2.1\nName: lmjax-test-hello\nVersion: 1.0\nRequires-Python: <3\n'
    wheel.writestr(f'{info}/METADATA', metadata)
    wheel.writestr(
      f'{info}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n'
    )
    wheel.writestr(f'{info}/RECORD', '')


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
  """A folder that is the only index pip knows, an empty cache, and the asset `hello`."""
  for name in ('PIP_INDEX_URL', 'PIP_EXTRA_INDEX_URL'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('PIP_CONFIG_FILE', '/dev/null')
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path / 'index'))
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setitem(assets.ASSETS, 'hello', HELLO)
  folder = tmp_path / 'index'
  folder.mkdir()
  return folder


def test_fetched_once_then_used_without_pip(index, tmp_path, monkeypatch):
  write_wheel(index)
  path = assets.fetch('hello')
  assert path == tmp_path / 'cache/assets/lmjax-test-hello-1.0/hello.csv'
  assert path.read_bytes() == CONTENT
  assert list(path.parent.iterdir()) == [path]

  monkeypatch.setattr(sys, 'executable', '/no/python')
  assert assets.fetch('hello') == path


def test_wrong_download_refused(index):
  write_wheel(index, b'other')
  with pytest.raises(UserError, match=r'is refused: use another index, copy hello.csv'):
    assets.fetch('hello')
  assert not (assets.cache_folder() / 'assets/lmjax-test-hello-1.0/hello.csv').exists()


def test_corrupted_cache_downloaded_again_at_once_by_many(index):
  write_wheel(index)
  cached = assets.cache_folder() / 'assets/lmjax-test-hello-1.0/hello.csv'
  cached.parent.mkdir(parents=True)
  cached.write_bytes(CONTENT[:-1])
  with ThreadPoolExecutor(3) as pool:
    assert set(pool.map(assets.fetch, ['hello'] * 3)) == {cached}
  assert cached.read_bytes() == CONTENT


def test_corrupted_cache_and_wrong_download_refused(index):
  write_wheel(index, b'other')
  cached = assets.cache_folder() / 'assets/lmjax-test-hello-1.0/hello.csv'
  cached.parent.mkdir(parents=True)
  cached.write_bytes(b'corrupted')
  with pytest.raises(UserError, match='is refused'):
    assets.fetch('hello')


def test_package_without_the_member(index):
  write_wheel(index, member='hello/other.csv')
  with pytest.raises(UserError, match=r'holds no hello/data/hello.csv: copy hello.csv'):
    assets.fetch('hello')


def test_package_gone(index):
  with pytest.raises(UserError, match=r'No matching distribution .* check the index that pip uses'):
    assets.fetch('hello')


def test_unreachable_index_says_what_to_do(index, monkeypatch):
  monkeypatch.delenv('PIP_NO_INDEX')
  monkeypatch.setenv('PIP_INDEX_URL', 'http://127.0.0.1:9')
  with pytest.raises(UserError, match=r'does not answer: check the network .* set LMJAX_CACHE to'):
    assets.fetch('hello')


def test_python_without_pip(index, tmp_path, monkeypatch):
  venv.create(tmp_path / 'bare', symlinks=True)
  monkeypatch.setattr(sys, 'executable', str(tmp_path / 'bare/bin/python'))
  with pytest.raises(UserError, match=r'has no pip: run .* -m ensurepip'):
    assets.fetch('hello')


def test_cache_that_cannot_be_written(index, tmp_path, monkeypatch):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path / 'file'))
  with pytest.raises(UserError, match='set LMJAX_CACHE to a folder that you can read and write'):
    assets.fetch('hello')


def test_unknown_asset():
  with pytest.raises(UserError, match=r"unknown asset 'healthtweet': did you mean healthtweets\?"):
    assets.fetch('healthtweet')


def test_member_of_an_sdist(tmp_path):
  with tarfile.open(tmp_path / 'hello-1.0.tar.gz', 'w:gz') as sdist:
    entry = tarfile.TarInfo('hello-1.0/hello/data/hello.csv')
    entry.size = len(CONTENT)
    sdist.addfile(entry, io.BytesIO(CONTENT))
  package, target = tmp_path / 'hello-1.0.tar.gz', tmp_path / 'member'
  assert assets._extract(package, HELLO.member, target) == target
  assert target.read_bytes() == CONTENT
  assert assets._extract(package, 'hello/other.csv', target) is None


def test_cache_folder_is_the_users(monkeypatch, tmp_path):
  monkeypatch.delenv('LMJAX_CACHE', raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert assets.cache_folder() == tmp_path / 'lmjax'
  monkeypatch.delenv('XDG_CACHE_HOME')
  assert assets.cache_folder() == Path.home() / '.cache/lmjax'
  monkeypatch.setenv('LMJAX_CACHE', '~/elsewhere')
  assert assets.cache_folder() == Path.home() / 'elsewhere'


def test_a_folder_is_the_same_wherever_it_is_packed(tmp_path):
  packed = []
  for name, files in (('a', ('one', 'two')), ('b', ('two', 'one'))):
    package = tmp_path / f'{name}.whl'
    with zipfile.ZipFile(package, 'w', zipfile.ZIP_DEFLATED) as wheel:
      for file in files:
        wheel.writestr(
          zipfile.ZipInfo(f'hello/data/{file}', (2000 + len(packed), 1, 1, 0, 0, 0)), file
        )
      wheel.writestr('hello/other', 'other')
    packed.append(assets._extract(package, 'hello/data/', tmp_path / name))
    assert assets._extract(package, 'hello/none/', tmp_path / 'none') is None
  assert packed[0].read_bytes() == packed[1].read_bytes()
  with zipfile.ZipFile(packed[0]) as zipped:
    assert zipped.namelist() == ['one', 'two']
    assert zipped.read('two') == b'two'
