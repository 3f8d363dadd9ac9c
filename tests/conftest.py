"""Every test runs on 8 virtual CPU devices, with warnings as errors and no implicit rank promotion."""

import gc
import os
import tempfile
from pathlib import Path

os.environ['JAX_PLATFORMS'] = 'cpu'
# Of programs that run for milliseconds, what has XLA compile them in half the time costs nothing. The
# processes that tests start get the same, but for the number of devices.
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '')
  + ' --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
  + ' --xla_force_host_platform_device_count=8'
).strip()

import jax
import pytest

from lmjax.core.compilation import delete_unfinished

_PROGRAMS = Path(tempfile.gettempdir()) / 'lmjax-test-xla'
_PROGRAMS.mkdir(exist_ok=True)
delete_unfinished(_PROGRAMS)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Tracing makes many objects and few cycles: looking for these every 700 took 8% of it.
gc.set_threshold(50_000, 20, 20)
jax.config.update('jax_compilation_cache_dir', str(_PROGRAMS))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)

# Tests that may be skipped, and why. .ci/run sets LMJAX_STRICT_SKIPS: any other skip is a failure there.
_ALLOWED_SKIPS = Path(__file__).with_name('allowed_skips.txt')


def pytest_collection_modifyitems(items):
  """Long tests begin first: one that began last would leave the other worker waiting for it."""
  items.sort(key=lambda item: item.get_closest_marker('long') is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
  return refuse_unlisted_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
  return refuse_unlisted_skip((yield))


def refuse_unlisted_skip(report):
  """`report`, failed where it is a skip that no line of the list names (a test, or a whole file)."""
  if os.environ.get('LMJAX_STRICT_SKIPS') and report.skipped and not hasattr(report, 'wasxfail'):
    listed = {line.partition('#')[0].strip() for line in _ALLOWED_SKIPS.read_text().splitlines()}
    names = {report.nodeid, report.nodeid.partition('[')[0], report.nodeid.partition('::')[0]}
    if not names & listed:
      reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
      report.outcome = 'failed'
      report.longrepr = f'{reason}\nnot in tests/{_ALLOWED_SKIPS.name}: run it, or list it there'
  return report
