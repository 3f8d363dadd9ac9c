"""Workdirs on s3://, against a local server: held by one, fetched, copied up."""

import threading
import time

import fsspec
import pytest
from object_store import in_bucket, s3_server, write

from lmjax.core import storage
from lmjax.core.errors import UserError


@pytest.fixture(scope='module', autouse=True)
def server():
  with s3_server():
    yield


def test_a_workdir_on_s3_that_another_holds_is_refused(tmp_path, monkeypatch):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path))
  mirror = storage.mirror('s3://bucket/held')
  owner = lambda host, process, age: (
    f'{{"host": "{host}", "process": {process}, "renewed": {storage.time.time() - age}}}'.encode()
  )
  monkeypatch.setattr(storage, '_WATCH_SECONDS', 4.0)
  write('held/owner.json', owner('other', 7, 5))
  renewal = threading.Timer(1.0, lambda: write('held/owner.json', owner('other', 7, 0)))
  renewal.start()
  told = 'in use by process 7 of other: stop it or pass another --workdir'
  with pytest.raises(UserError, match=told), storage.mirrored(mirror):
    raise AssertionError('never entered')
  renewal.join()
  assert in_bucket('held') == ['owner.json']
  with storage.mirrored(mirror):  # it renews no more
    assert in_bucket('held') == ['owner.json']
  write('held/owner.json', owner('other', 7, 500))
  with storage.mirrored(mirror):
    assert in_bucket('held') == ['owner.json']
  gone = owner(storage.platform.node(), 1 << 22, 5)  # above every process number
  write('held/owner.json', gone)
  with storage.mirrored(mirror):
    (mirror / 'a').mkdir()
    (mirror / 'a/b').write_text('text')
  assert in_bucket('held') == ['a/b']


def test_a_mirror_becomes_what_the_bucket_holds_and_sends_what_has_changed(tmp_path, monkeypatch):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path))
  mirror = storage.mirror('s3://bucket/sent')
  write('sent/kept.json', b'kept')
  write('sent/below/changed', b'old')
  write('sent/checkpoints/1/large', b'large')
  (mirror / 'stale').write_text('stale')
  with storage.mirrored(mirror):
    files = sorted(path.relative_to(mirror).as_posix() for path in mirror.rglob('[!.]*'))
    assert files == ['below', 'below/changed', 'kept.json']
    (mirror / 'below/changed').write_text('new')
    storage.sync(mirror)
    system = fsspec.filesystem('s3')
    assert system.cat_file('bucket/sent/below/changed') == b'new'
    written = system.info('bucket/sent/kept.json')['LastModified']
  assert system.info('bucket/sent/kept.json')['LastModified'] == written
  assert in_bucket('sent') == ['below/changed', 'checkpoints/1/large', 'kept.json']


def test_what_has_changed_is_sent_whatever_the_clock_of_the_file_system(tmp_path, monkeypatch):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path))
  mirror = storage.mirror('s3://bucket/clocks')
  with storage.mirrored(mirror):
    with monkeypatch.context() as ahead:
      now = time.time_ns
      ahead.setattr(time, 'time_ns', lambda: now() + 60 * 10**9)
      storage.sync(mirror)
    (mirror / 'report.json').write_text('{}')
  assert in_bucket('clocks') == ['report.json']


@pytest.mark.parametrize(
  ('address', 'environment', 'message'),
  [
    ('s3://nobucket/run', {}, r's3://nobucket/run cannot be used \(.*\): make the bucket'),
    (
      's3://bucket/run',
      {'AWS_ENDPOINT_URL': 'http://127.0.0.1:9', 'AWS_MAX_ATTEMPTS': '1'},
      'check the network, and AWS_ENDPOINT_URL',
    ),
    (
      's3://bucket/run',
      {'AWS_ACCESS_KEY_ID': '', 'AWS_SECRET_ACCESS_KEY': '', 'AWS_EC2_METADATA_DISABLED': 'true'},
      'log in',
    ),
  ],
  ids=['bucket', 'network', 'credentials'],
)
def test_what_is_wrong_with_a_store_is_said_in_one_sentence(
  tmp_path, monkeypatch, address, environment, message
):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path))
  for name, value in environment.items():
    if value:
      monkeypatch.setenv(name, value)
    else:
      monkeypatch.delenv(name)
  system = fsspec.filesystem('s3')
  system.clear_instance_cache()
  try:
    with pytest.raises(UserError, match=message), storage.mirrored(storage.mirror(address)):
      pass
  finally:
    system.clear_instance_cache()
