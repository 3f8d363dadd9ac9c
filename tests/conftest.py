"""Every test runs on 8 virtual CPU devices, with warnings as errors and no implicit rank promotion."""

import os
import tempfile
from pathlib import Path

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
).strip()

import jax

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_compilation_cache_dir', str(Path(tempfile.gettempdir()) / 'lmjax-test-xla'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
