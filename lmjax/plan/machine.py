"""What one process sees of its machine, as plain values that go through JSON.

Knows nothing of the other processes: `doctor` compares what each of them saw.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lmjax
from lmjax.core.task import device

GB = 10**9
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
_NCCL = {'12': 'nvidia-nccl-cu12', '13': 'nvidia-nccl-cu13'}  # by the CUDA that it is for


def look(folder: Path) -> dict[str, Any]:
  """What this process sees: its machine, devices, versions and room.

  Args:
    folder: the folder whose disk is measured; it need not exist.
  """
  import jax

  nccl = {cuda: found for cuda, name in _NCCL.items() for found in versions([name]).values()}
  return {
    'host': socket.gethostname(),
    'boot': _read('/proc/sys/kernel/random/boot_id').strip(),
    'platform': jax.local_devices()[0].platform,
    'kind': device().partition(' x ')[2],
    'devices': jax.device_count(),
    'local_devices': jax.local_device_count(),
    'versions': versions(_PACKAGES)
    | {'python': platform.python_version(), 'lmjax': lmjax.__version__},
    'driver': driver(_read('/proc/driver/nvidia/version')),
    'cuda': max(nccl, default=None),
    'nccl': nccl[max(nccl)] if nccl else None,
    'disk_free': _free(folder),
    'memory_free': memory_free(),
    'shm': _size(Path('/dev/shm')),
  }


def versions(packages: Iterable[str]) -> dict[str, str]:
  """The version of each of `packages` that is installed."""
  found = {}
  for package in packages:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def driver(text: str) -> str | None:
  """The version in what NVIDIA's kernel module says of itself; None where there is none."""
  found = re.search(r'Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)', text)
  return found and found[1]


def _free(folder: Path) -> int | None:
  """Bytes free on the disk of `folder`, or of the nearest folder above it that exists."""
  for place in (folder, *folder.absolute().parents):
    try:
      return shutil.disk_usage(place).free
    except OSError:
      continue
  return None


def _size(folder: Path) -> int | None:
  try:
    return shutil.disk_usage(folder).total
  except OSError:
    return None


def memory_free(proc: Path = Path('/proc'), group: Path = Path('/sys/fs/cgroup')) -> int | None:
  """Bytes of memory that are still to be had: of the machine, or of the container's share of it."""
  found = re.search(r'^MemAvailable:\s+(\d+) kB', _read(proc / 'meminfo'), re.MULTILINE)
  free = [int(found[1]) * 1024] if found else []
  limit, used = _read(group / 'memory.max').strip(), _read(group / 'memory.current').strip()
  if limit.isdecimal() and used.isdecimal():
    # Cached files count as used, and are given up when memory is asked for.
    cached = re.search(r'^inactive_file (\d+)', _read(group / 'memory.stat'), re.MULTILINE)
    free.append(int(limit) - int(used) + (int(cached[1]) if cached else 0))
  return min(free, default=None)


def _read(path: str | os.PathLike[str]) -> str:
  try:
    return Path(path).read_text()
  except OSError:
    return ''
