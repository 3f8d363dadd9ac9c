"""A local S3 server, for tests that keep things on s3://."""

import atexit
import contextlib
import functools
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import fsspec
import pytest
from ports import free_port

TIMEOUT = 300.0


@contextlib.contextmanager
def s3_server() -> Iterator[None]:
  """Has the environment name a server of its own process for the block; it holds `bucket`."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('AWS_ENDPOINT_URL', _start())
    patch.setenv('AWS_ACCESS_KEY_ID', 'test')
    patch.setenv('AWS_SECRET_ACCESS_KEY', 'test')
    patch.setenv('AWS_REGION', 'us-east-1')
    system = fsspec.filesystem('s3')
    system.clear_instance_cache()
    fsspec.filesystem('s3').makedirs('bucket', exist_ok=True)
    yield
    system.clear_instance_cache()


@functools.cache  # epath keeps its connection to a server for as long as the process lives
def _start() -> str:
  port = free_port()
  command = [sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p', str(port)]
  server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  atexit.register(server.wait)
  atexit.register(server.kill)  # before it is waited for
  _wait(server, f'http://127.0.0.1:{port}')
  return f'http://127.0.0.1:{port}'


def in_bucket(folder: str) -> list[str]:
  """The names of the files below a folder of the bucket, relative to it."""
  system = fsspec.filesystem('s3')
  return sorted(name.removeprefix(f'bucket/{folder}/') for name in system.find(f'bucket/{folder}'))


def write(name: str, content: bytes) -> None:
  """Puts a file into the bucket."""
  fsspec.filesystem('s3').pipe_file(f'bucket/{name}', content)


def _wait(server: subprocess.Popen, url: str) -> None:
  deadline = time.monotonic() + TIMEOUT
  while True:
    assert server.poll() is None
    with contextlib.suppress(OSError), urllib.request.urlopen(f'{url}/moto-api/', timeout=5):
      return
    assert time.monotonic() < deadline
    time.sleep(0.05)
