"""Settings for each kind of accelerator: flags of XLA's compiler, attention, and product dtypes.

They go into the compile of one program (`compiler_options`), so that nothing has to be set before
JAX starts. Those of GPUs are what others report to use, and not measured here.
"""

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from lmjax.core import processor
from lmjax.core.errors import UserError

_MIB = 1 << 20


class Flag(NamedTuple):
  """A value for XLA, and who sets it so."""

  value: bool | str
  source: str
  measured: bool = False


# "Tips for High-Performance LLMs with JAX and XLA", docs.nvidia.com/jax-toolbox; the first flag is
# also what NVIDIA's JAX images come with.
_NVIDIA = 'NVIDIA JAX-Toolbox, GPU performance'
# Llama 3.1 405B on 128 hosts with 8 H100 each, github.com/AI-Hypercomputer/maxtext. Its
# xla_disable_hlo_passes=rematerialization is left out: the pass saves programs that do not fit.
_MAXTEXT = 'MaxText, configs/gpu/a3/llama_3.1_405b/128vm.sh'

# Weights of a layer gathered at once are gathered beside the layer before. In pieces of 128 MiB, as
# MaxText sets, the last ones are waited for: of Llama3-70B over 2,048 H100s 14% of a step in the
# time model of plans, against 3%.
_MODELLED = 'lmjax, --experiment=plan_backtest (modelled)'

_FLAGS = {
  # Communication while computing: reorder, start the next layer's early, two layers an iteration.
  'xla_gpu_enable_latency_hiding_scheduler': Flag(True, _NVIDIA),
  'xla_gpu_enable_pipelined_all_gather': Flag(True, _NVIDIA),
  'xla_gpu_enable_pipelined_reduce_scatter': Flag(True, _NVIDIA),
  'xla_gpu_enable_pipelined_all_reduce': Flag(True, _NVIDIA),
  'xla_gpu_enable_while_loop_double_buffering': Flag(True, _NVIDIA),
  # Few large collectives: all of a layer's, whichever dimension they are split along.
  'xla_gpu_enable_all_gather_combine_by_dim': Flag(False, _NVIDIA),
  'xla_gpu_enable_reduce_scatter_combine_by_dim': Flag(False, _NVIDIA),
  'xla_gpu_all_gather_combine_threshold_bytes': Flag(str(8192 * _MIB), _MODELLED),
  'xla_gpu_reduce_scatter_combine_threshold_bytes': Flag(str(128 * _MIB), _MAXTEXT),
  'xla_gpu_all_reduce_combine_threshold_bytes': Flag(str(1024 * _MIB), _MAXTEXT),
  # Products by cuBLAS, and launches without CUDA graphs.
  'xla_gpu_enable_triton_gemm': Flag(False, _MAXTEXT),
  'xla_gpu_enable_command_buffer': Flag('', _MAXTEXT),
}
# Moments that an update replaces are not copied first: 4 to 7% of a step of 1,024 tokens.
_CPU = {
  'xla_cpu_copy_insertion_use_region_analysis': Flag(True, 'lmjax, docs/speed.md', measured=True)
}
_BLACKWELL = _FLAGS | {'xla_gpu_enable_command_buffer': Flag('FUSION,CUSTOM_CALL', _NVIDIA)}


class Preset(NamedTuple):
  """What fits one kind of accelerator."""

  name: str
  flags: Mapping[str, Flag]
  attention: Literal['blocked', 'pallas']
  dtypes: tuple[str, ...]  # of products that the hardware has units for

  def compute_dtype(self, dtype: str) -> str:
    """What a model that asks for `dtype` computes in here: f32 on a CPU that has no products in bf16.

    There every bf16 product converts its operands first: on an AVX2 machine a training step took
    1.6 times as long as in f32 (2 cores of an AMD EPYC, 2026-11-25).
    """
    slow = self.name == 'cpu' and dtype == 'bfloat16' and not processor.multiplies_bf16()
    return 'float32' if slow else dtype

  @property
  def compiler_options(self) -> dict[str, bool | str]:
    """What `lowered.compile(compiler_options=...)` takes."""
    return {name: flag.value for name, flag in self.flags.items()}

  @property
  def line(self) -> str:
    """One line for the header of a run."""
    measured = all(flag.measured for flag in self.flags.values())
    flags = f'XLA flags: {len(self.flags)}{"" if measured else " (not measured)"}'
    kernel = {'blocked': 'blocked', 'pallas': 'by a kernel where it can be'}[self.attention]
    return (
      f'preset {self.name}: {flags}, attention {kernel}, products in {" or ".join(self.dtypes)}'
    )

  def check(self, attention: str, dtype: str) -> None:
    """UserError where this accelerator cannot run a kernel of `attention`, or products in `dtype`."""
    if self.attention == 'blocked' and attention == 'pallas':
      raise UserError(
        f'attention=pallas is a kernel for NVIDIA GPUs, this is {self.name}: pass attention=auto'
      )
    if self.name != 'cpu' and dtype not in self.dtypes:
      raise UserError(
        f'{self.name} has no products in {dtype}: pass {" or ".join(self.dtypes)} (8 bits need an '
        'H100 or later)'
      )


_WIDE = ('float32', 'bfloat16')
_NARROW = (*_WIDE, 'float8')
_OTHER = Preset('other', {}, 'blocked', _WIDE)
PRESETS = {
  preset.name: preset
  for preset in (
    Preset('cpu', _CPU, 'blocked', _WIDE),
    Preset('a100', _FLAGS, 'pallas', _WIDE),
    Preset('h100', _FLAGS, 'pallas', _NARROW),
    Preset('h200', _FLAGS, 'pallas', _NARROW),
    Preset('b200', _BLACKWELL, 'pallas', _NARROW),
    Preset('gb200', _BLACKWELL, 'pallas', _NARROW),
  )
}


def preset(device_kind: str) -> Preset:
  """The preset of a device by what JAX calls its kind; `other`, which sets nothing, of unknown ones."""
  words = re.split(r'[^a-z0-9]+', device_kind.lower())
  return next((PRESETS[word] for word in words if word in PRESETS), _OTHER)
