"""What is known of a CPU."""

import os
import platform
import subprocess
import sys

import pytest

from lmjax.core import processor


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    ('flags : fpu avx2 avx512_bf16 vnni', True),
    ('flags : fpu amx_bf16', True),
    ('Features : fp asimd bf16', True),
    ('flags : fpu avx2 fma avx512f', False),
  ],
)
def test_a_cpu_that_multiplies_bf16_is_known_by_its_flags(flags, expected):
  assert processor.has_bf16(flags) == expected


def test_the_kind_of_a_cpu_names_a_folder():
  assert processor.kind().isalnum()


STARTED = """
import os
from lmjax.core import processor
print(os.getpid(), flush=True)
processor.use_large_pages()
print(os.environ['GLIBC_TUNABLES'])
"""


def start(**more):
  environment = {name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}
  command = [sys.executable, '-c', STARTED]
  ended = subprocess.run(
    command, env=environment | more, capture_output=True, text=True, check=True, timeout=300
  )
  return ended.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc reads tunables')
def test_a_command_starts_again_with_large_pages_once_and_as_the_same_process():
  first, second, tunables = start()
  assert first == second
  assert tunables == 'glibc.malloc.hugetlb=1'


def test_what_a_user_tunes_stays():
  assert start(GLIBC_TUNABLES='glibc.malloc.check=0')[1:] == ['glibc.malloc.check=0']
