"""Accelerators that are not here: descriptions of them that XLA compiles whole programs for.

What comes out is an optimised and scheduled program with its memory, but without measured tile
sizes; none has been compared with a program that a GPU itself compiled.
"""

import importlib.util
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax.experimental import topologies

from lmjax.core.errors import UserError, nearest


class Gpu(NamedTuple):
  """What XLA's compiler is told of one GPU."""

  name: str
  capability: int  # the first number of CUDA's compute capability
  cores: int
  float_units: int  # a core, f32
  core_shared_bytes: int
  block_shared_bytes: int  # that one block may ask for
  cache_bytes: int
  memory_bytes: int
  memory_bytes_per_second: int
  clock_ghz: float
  links: int | None = None  # of NVLink; none: the source does not say


# From xla/backends/gpu/target_config/specs of github.com/openxla/xla: a100_sxm_80, h100_sxm, h200,
# b200 and gb200.
GPUS = {
  'a100': Gpu(
    name='NVIDIA A100-SXM4-80GB',
    capability=8,
    cores=108,
    float_units=64,
    core_shared_bytes=167_936,
    block_shared_bytes=166_912,
    cache_bytes=41_943_040,
    memory_bytes=85_100_068_864,
    memory_bytes_per_second=2_039_040_000_000,
    clock_ghz=1.41,
  ),
  'h100': Gpu(
    name='NVIDIA H100 80GB HBM3',
    capability=9,
    cores=132,
    float_units=128,
    core_shared_bytes=233_472,
    block_shared_bytes=232_448,
    cache_bytes=52_428_800,
    memory_bytes=84_942_979_072,
    memory_bytes_per_second=3_352_320_000_000,
    clock_ghz=1.98,
    links=18,
  ),
  'b200': Gpu(
    name='NVIDIA B200',
    capability=10,
    cores=148,
    float_units=128,
    core_shared_bytes=233_472,
    block_shared_bytes=232_448,
    cache_bytes=132_644_864,
    memory_bytes=191_514_411_008,
    memory_bytes_per_second=7_672_320_000_000,
    clock_ghz=1.965,
    links=18,
  ),
}
GPUS['h200'] = GPUS['h100']._replace(
  name='NVIDIA H200 141GB HBM3e',
  memory_bytes=151_397_597_184,
  memory_bytes_per_second=4_800_000_000_000,
)
# Threads, registers, shared memory and links of a core are the B200's in XLA's file too.
GPUS['gb200'] = GPUS['b200']._replace(
  name='NVIDIA GB200',
  cores=152,
  cache_bytes=135_528_448,
  memory_bytes=197_897_748_480,
  memory_bytes_per_second=7_928_064_000_000,
  clock_ghz=2.062,
)

_TARGET = """
gpu_device_info {{
  name: "{gpu.name}" device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: {gpu.capability} feature_extension: {features} }}
  platform_version: "Compute Capability {gpu.capability}.0" device_address_bits: 64
  core_count: {gpu.cores} fpus_per_core: {gpu.float_units} clock_rate_ghz: {gpu.clock_ghz}
  shared_memory_per_block: 49152 shared_memory_per_core: {gpu.core_shared_bytes}
  shared_memory_per_block_optin: {gpu.block_shared_bytes} l2_cache_size: {gpu.cache_bytes}
  device_memory_size: {gpu.memory_bytes} memory_bandwidth: {gpu.memory_bytes_per_second}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  ecc_enabled: true {links}
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{gpu.name}"
"""


def describe(
  accelerator: str | Gpu, hosts: int = 1, per_host: int = 8
) -> topologies.TopologyDescription:
  """`hosts` machines with `per_host` of an accelerator each; programs are compiled for its devices.

  Args:
    accelerator: a key of `GPUS`, or a GPU that is not among them.

  Returns:
    a topology; its `devices`, in order of hosts, go into `Mesh.over`.

  Raises:
    UserError: for another name, or where this machine cannot describe any.
  """
  gpu = accelerator if isinstance(accelerator, Gpu) else _known(accelerator)
  _check_packages()
  try:
    return topologies.get_topology_desc(
      platform='cuda', target_config=_target(gpu), topology=f'1x{hosts}x{per_host}'
    )
  except NotImplementedError as error:
    raise UserError(
      f'JAX_PLATFORMS={jax.config.jax_platforms or ""} has JAX look for an NVIDIA driver, which '  # type: ignore[attr-defined]
      'this machine lacks: set JAX_PLATFORMS=cpu to compile for accelerators that are not here'
    ) from error


def compile_there(
  lowered: jax.stages.Lowered, options: Mapping[str, bool | str] | None = None
) -> jax.stages.Compiled:
  """Compiles a program for devices that are not here.

  Never kept in the cache of compiled programs: JAX cannot read one back without its devices.
  """
  name = 'jax_persistent_cache_min_compile_time_secs'
  least = getattr(jax.config, name)
  jax.config.update(name, math.inf)
  try:
    return lowered.compile(compiler_options=dict(options or {}))
  finally:
    jax.config.update(name, least)


def _known(name: str) -> Gpu:
  if name not in GPUS:
    raise UserError(f'cannot describe accelerator {name!r}: {nearest(name, GPUS)}')
  return GPUS[name]


def _check_packages() -> None:
  plugins = ('jax_plugins.xla_cuda12', 'jax_plugins.xla_cuda13')
  if not any(is_installed(name) for name in plugins):
    raise UserError(
      'compiling for a GPU that is not here needs its compiler, the package jax-cuda12-plugin: '
      "run pip install 'lmjax[plan]'"
    )


def is_installed(module: str) -> bool:
  """Whether a module could be imported; nothing is."""
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # its parent package is not there
    return False


def _target(gpu: Gpu) -> str:
  """The text of XLA's GpuTargetConfigProto."""
  features = 'ACCELERATED_FEATURES' if gpu.capability >= 9 else 'NONE'
  links = f'device_interconnect_info {{ active_links: {gpu.links} }}' if gpu.links else ''
  return _TARGET.format(gpu=gpu, features=features, links=links)
