"""Which address is what, and a workdir that mirrors nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lmjax.core import storage
from lmjax.core.errors import UserError


def test_a_folder_and_its_file_address_are_the_folder_itself(tmp_path):
  for address in (str(tmp_path), f'file://{tmp_path}'):
    assert storage.at(address) == storage.mirror(address) == storage.origin(tmp_path) == tmp_path
  assert not storage.is_remote(tmp_path)
  with storage.mirrored(tmp_path):
    storage.sync(tmp_path)
  assert list(tmp_path.iterdir()) == []


def test_an_address_on_a_store_has_a_mirror_of_its_own_and_is_its_origin(tmp_path, monkeypatch):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path))
  one, other = storage.mirror('s3://a/run'), storage.mirror('s3://b/run/')
  assert one != other
  assert storage.mirror('s3://a/run/') == one
  assert (str(storage.origin(one)), str(storage.origin(other))) == ('s3://a/run', 's3://b/run')
  assert storage.is_remote(storage.origin(one) / 'checkpoints')


def test_a_mirror_that_is_in_use_keeps_its_address_as_it_is(tmp_path, monkeypatch):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path))
  file = storage.mirror('s3://a/run') / '.remote'
  before = file.stat().st_mtime_ns
  assert storage.mirror('s3://a/run') == file.parent
  assert (file.stat().st_mtime_ns, file.read_text()) == (before, 's3://a/run')


def test_another_kind_of_address_is_refused():
  with pytest.raises(
    UserError, match='ftp:// is not known: pass a folder, s3://, gs:// or file://'
  ):
    storage.at('ftp://host/run')


@pytest.mark.parametrize(
  ('address', 'package', 'extra'), [('s3://b/run', 's3fs', 's3'), ('gs://b/run', 'gcsfs', 'gcs')]
)
def test_what_a_store_needs_to_be_installed_is_named(address, package, extra):
  source = f'import sys; sys.modules[{package!r}] = None; from lmjax.core import storage; '
  source += f'storage.at({address!r})'
  ended = subprocess.run(
    [sys.executable, '-c', source], capture_output=True, text=True, timeout=300
  )
  assert (
    f"UserError: {address} needs a package that is not installed: run pip install 'lmjax[{extra}]"
    in (ended.stderr)
  )


def test_a_task_runs_in_a_file_address(tmp_path):
  command = [sys.executable, '-m', 'lmjax.main', '--experiment=tiny_tasks:tiny']
  here = {**storage.os.environ, 'PYTHONPATH': str(Path(__file__).parent)}
  folder = tmp_path / 'run'
  subprocess.run([*command, f'--workdir=file://{folder}'], check=True, timeout=300, env=here)
  assert json.loads((folder / 'report.json').read_text())['experiment'] == 'tiny_tasks:tiny'
