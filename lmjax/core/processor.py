"""What the CPU at hand is and can do, as Linux tells it in /proc/cpuinfo; elsewhere little is known."""

import functools
import hashlib
import os
import platform
import sys
from pathlib import Path

_TUNABLES = 'GLIBC_TUNABLES'


def cores() -> int:
  """CPU cores that this process may use; where the system cannot say, those there are."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def name() -> str:
  """The model in words: `AMD EPYC`."""
  names = [line.partition(':')[2].strip() for line in _lines('model name')]
  return names[0] if names else platform.processor() or platform.machine()


def kind() -> str:
  """Hash of what the CPU can do: machines of several kinds may share a cache folder."""
  said = [*_lines('model name'), *_lines('flags'), *_lines('Features')]
  text = '\n'.join([platform.machine(), platform.processor(), *sorted(set(said))])
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def multiplies_bf16() -> bool:
  """Whether it has instructions for products in bf16; where nothing is known, it has."""
  flags = [*_lines('flags'), *_lines('Features')]
  return not flags or has_bf16('\n'.join(flags))


def has_bf16(flags: str) -> bool:
  """Whether `flags` name AVX-512 BF16 or AMX of x86, or BF16 of Arm."""
  return not {'avx512_bf16', 'amx_bf16', 'bf16'}.isdisjoint(flags.split())


def use_large_pages() -> None:
  """Starts this command again with memory in pages of 2 MiB, where glibc can and nothing says else.

  XLA's buffers are glibc's, and most Linux give large pages to those who ask. Steps of posts_tiny took
  0.89 to 0.93 of the time (2 cores of an AMD EPYC, virtual, 2026-11-26). glibc reads it at the start only.
  """
  if platform.libc_ver()[0] == 'glibc' and _TUNABLES not in os.environ:
    environment = {**os.environ, _TUNABLES: 'glibc.malloc.hugetlb=1'}
    os.execve(sys.executable, sys.orig_argv, environment)


def _lines(start: str) -> list[str]:
  return [line for line in _cpuinfo() if line.startswith(start)]


@functools.cache
def _cpuinfo() -> tuple[str, ...]:
  try:
    return tuple(Path('/proc/cpuinfo').read_text().split('\n'))
  except OSError:
    return ()
