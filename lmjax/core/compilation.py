"""Compiled programs kept between processes, so that only the first start of a run compiles."""

import importlib.util
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zstandard

from lmjax.core import processor
from lmjax.core.assets import cache_folder

# Below this, reading a program back takes about as long as compiling it.
_WORTH_KEEPING_SECONDS = 0.1
_CLOCK_SECONDS = 60.0  # by how much the clocks of a file server and of its users may differ


def keep_compiled() -> None:
  """Has JAX keep what it compiles in the cache folder, unless it was told another folder."""
  import jax

  if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
    return
  folder = cache_folder() / 'xla' / processor.kind()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    delete_unfinished(folder)
  except OSError as error:
    logging.getLogger(__name__).warning('compiled programs are not kept: %s', error)
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', _WORTH_KEEPING_SECONDS)


def look_for_no_absent_gpu() -> None:
  """Has JAX use the CPU where its CUDA plugin is installed, as for compiling, but no NVIDIA driver.

  It would do so anyway, after the traceback of a library that is not there.
  """
  installed = any(importlib.util.find_spec(f'jax_cuda{n}_plugin') for n in (12, 13))
  drivers = ('/dev/nvidiactl', '/dev/dxg', '/dev/nvhost-gpu', '/dev/nvgpu')
  if installed and not any(map(os.path.exists, drivers)):
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')


def compile_lowered(lowered: Any, options: Mapping[str, bool | str]) -> Any:
  """`lowered.compile(compiler_options=options)` without those that this version of XLA does not know.

  Versions of XLA drop options, most often as what they turn on has become the default.
  """
  import jax

  options = dict(options)
  while True:
    try:
      return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
      unknown = re.search(r"No such compile option: '(\w+)'", str(error))
      if unknown is None or unknown[1] not in options:
        raise
      options.pop(unknown[1])
      logging.getLogger(__name__).warning(
        'this jaxlib has no compiler option %s: compiling without it', unknown[1]
      )


def delete_unfinished(folder: Path) -> None:
  """Deletes programs that a killed process had half written.

  JAX would not replace them, and so compile the same again at each start. Only what is younger than
  the last look is read. Of a program that another process is just writing a copy less is kept.
  """
  looked = folder / 'looked'
  now, before = time.time(), looked.stat().st_mtime if looked.exists() else 0.0
  for path in folder.glob('*-cache'):
    if path.stat().st_mtime >= before - _CLOCK_SECONDS and not _is_whole(path):
      path.unlink(missing_ok=True)
  looked.touch()
  os.utime(looked, (now, now))


def _is_whole(path: Path) -> bool:
  try:
    zstandard.ZstdDecompressor().decompress(path.read_bytes())
  except zstandard.ZstdError:
    return False
  return True
