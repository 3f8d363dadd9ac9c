"""A CUDA folder whose assembler does nothing, for programs that are read and never run.

XLA starts NVIDIA's assembler for each of some hundred kernels of a step, and of what it makes a plan reads
nothing: the text of the program is the same to the byte without. The kernels of the same models are
assembled in test_compile.py (but for its `small`), test_golden.py and tests/parallel/test_gpu_compile.py.
"""

import contextlib
import functools
import importlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_NOTHING = """.version 8.0
.target sm_90a
.address_size 64
.visible .entry nothing()
{
ret;
}
"""
_ASSEMBLER = """#!/bin/sh
[ "$1" = --version ] && exec "{real}" --version
while [ $# -gt 1 ]; do
  [ "$1" = -o ] && exec cp "{nothing}" "$2"
  shift
done
exit 1
"""


@functools.cache
def cuda_root() -> str:
  """The folder; jax takes it from CUDA_ROOT when it is imported, XLA as xla_gpu_cuda_data_dir."""
  packages = importlib.import_module('nvidia.cuda_nvcc')
  real = Path(next(iter(packages.__path__)))
  root = Path(_FOLDER.name)
  (root / 'bin').mkdir()
  (root / 'nvvm').symlink_to(real / 'nvvm')
  source, nothing = root / 'nothing.ptx', root / 'nothing.cubin'
  source.write_text(_NOTHING)
  subprocess.run([real / 'bin' / 'ptxas', '-arch=sm_90a', source, '-o', nothing], check=True)
  script = root / 'bin' / 'ptxas'
  script.write_text(_ASSEMBLER.format(real=real / 'bin' / 'ptxas', nothing=nothing))
  script.chmod(0o755)
  return str(root)


@contextlib.contextmanager
def unassembled() -> Iterator[None]:
  """Has the processes that compile in the block use that folder."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('CUDA_ROOT', cuda_root())
    yield


_FOLDER = tempfile.TemporaryDirectory(prefix='lmjax-test-cuda-')
