"""Compiled programs kept between processes, so that only the first start of a run compiles."""

import hashlib
import logging
import platform
from pathlib import Path

from lmjax.core.assets import cache_folder

# Below this, reading a program back takes about as long as compiling it.
_WORTH_KEEPING_SECONDS = 0.1


def keep_compiled() -> None:
  """Has JAX keep what it compiles in the cache folder, unless it was told another folder."""
  import jax

  if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
    return
  folder = cache_folder() / 'xla' / _processor()
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    logging.getLogger(__name__).warning('compiled programs are not kept: %s', error)
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', _WORTH_KEEPING_SECONDS)


def _processor() -> str:
  """Hash of what the CPU can do: machines of several kinds may share a cache folder."""
  try:
    lines = Path('/proc/cpuinfo').read_text().split('\n')
  except OSError:
    lines = []
  flags = [line for line in lines if line.startswith(('model name', 'flags', 'Features'))]
  said = [platform.machine(), platform.processor(), *sorted(set(flags))]
  return hashlib.sha256('\n'.join(said).encode()).hexdigest()[:12]
