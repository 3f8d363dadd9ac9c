import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from lmjax.core.compilation import compile_lowered

# Compiles something that takes long enough to be kept on a fast machine too; says where it is kept.
_SCRIPT = """
import jax, jax.numpy as jnp
from lmjax.core.compilation import keep_compiled

def long(x):
  for i in range(200):
    x = jnp.sin(x) @ x + i
  return x

keep_compiled()
jax.jit(long).lower(jnp.eye(8)).compile()
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.fixture
def compile_there(tmp_path):
  def run(**environment):
    known = {k: v for k, v in os.environ.items() if not k.startswith('JAX_COMPILATION')}
    known |= {'LMJAX_CACHE': str(tmp_path / 'cache'), **environment}
    command = [sys.executable, '-W', 'error', '-c', _SCRIPT]
    done = subprocess.run(command, env=known, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr

  return run


def test_what_was_compiled_is_kept_in_the_cache_folder(compile_there, tmp_path):
  folder, _ = compile_there()
  assert Path(folder).parent == tmp_path / 'cache' / 'xla'
  kept = list(Path(folder).glob('*-cache'))
  assert kept
  times = [path.stat().st_mtime_ns for path in kept]
  compile_there()
  assert [path.stat().st_mtime_ns for path in Path(folder).glob('*-cache')] == times


def test_a_half_written_program_is_replaced(compile_there):
  folder, _ = compile_there()
  (kept,) = Path(folder).glob('jit_long-*-cache')
  whole = kept.read_bytes()
  kept.write_bytes(whole[: len(whole) // 2])
  compile_there()  # with warnings as errors, such as the one about a file that cannot be read
  assert kept.stat().st_size > 0.9 * len(whole)


def test_every_task_keeps_what_it_compiles(tmp_path):
  known = {k: v for k, v in os.environ.items() if not k.startswith('JAX_COMPILATION')}
  known |= {'LMJAX_CACHE': str(tmp_path / 'cache'), 'PYTHONPATH': str(Path(__file__).parent)}
  command = [sys.executable, '-m', 'lmjax.main', '--experiment=tiny_tasks:tiny']
  subprocess.run([*command, f'--workdir={tmp_path}'], env=known, check=True, capture_output=True)
  assert (tmp_path / 'cache' / 'xla').is_dir()


def test_a_folder_that_the_user_gave_is_left(compile_there, tmp_path):
  mine = str(tmp_path / 'mine')
  assert compile_there(JAX_COMPILATION_CACHE_DIR=mine)[0] == mine
  assert not (tmp_path / 'cache').exists()


def test_a_cache_that_cannot_be_written_is_done_without(compile_there, tmp_path):
  (tmp_path / 'cache').write_text('a file')
  folder, said = compile_there()
  assert folder == 'None'
  assert 'compiled programs are not kept: ' in said


def test_an_option_that_xla_does_not_know_is_left_out_and_said(caplog):
  lowered = jax.jit(lambda x: x + 1).lower(1.0)
  options = {'xla_gpu_no_such_flag': True, 'xla_cpu_enable_fast_math': False}
  assert compile_lowered(lowered, options)(1.0) == 2
  (record,) = caplog.records
  assert 'no compiler option xla_gpu_no_such_flag' in record.getMessage()
  with pytest.raises(Exception, match='xla_cpu_enable_fast_math'):
    compile_lowered(lowered, {'xla_cpu_enable_fast_math': 'perhaps'})
