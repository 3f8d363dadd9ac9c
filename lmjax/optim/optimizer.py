"""Optimizers as parts that build an optax transformation: compositions of what optax has.

A model describes its parameters by a tree of dimension names, `('layers', 'embed', 'mlp')` a leaf.
Those names, not shapes, decide what is decayed and what Muon orthogonalises, so a model with
scanned layers and one with a list of them train alike. Knows neither meshes nor accumulation: the
train step hands over one mean gradient.
"""

import difflib
import fnmatch
import math
from collections.abc import Hashable
from typing import Any, Literal, NamedTuple

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from lmjax.core.config import Config, leaf, part
from lmjax.core.errors import UserError
from lmjax.optim.orthogonal import Preconditioning, fans, orthogonalize
from lmjax.optim.schedule import Cosine, WarmupStableDecay

Dims = tuple[str, ...]

# Every matrix by its dimensions behind the batches ('layers', then 'expert') in front of it.
HIDDEN_MATRICES: dict[Dims, int] = {  # -> how many of the dimensions, from the left, are its input
  ('embed', 'heads', 'head_dim'): 1,
  ('embed', 'kv_heads', 'head_dim'): 1,
  ('heads', 'head_dim', 'embed'): 2,
  ('embed', 'mlp'): 1,
  ('mlp', 'embed'): 1,
}
OUTER_MATRICES: set[Dims] = {
  ('vocab', 'embed'),
  ('position', 'embed'),
  ('embed', 'vocab'),
  ('embed', 'choice'),
  ('latent', 'embed'),
  ('embed', 'latent'),
}
HEAD_BIASES: set[Dims] = {('heads', 'head_dim'), ('kv_heads', 'head_dim')}


class Rule(NamedTuple):
  """How one group of parameters moves: along `direction`, at most `peak_lr` of it a step."""

  direction: optax.GradientTransformation
  peak_lr: float


class Optimizer(Config):
  """What all optimizers share: learning rate and its course, decay, clipping, freezing.

  Patterns of `decay_exclude` and `freeze` match whole paths, joined by `/`, which `*` crosses.
  Frozen parameters and router biases do not count in the clipped norm.
  """

  peak_lr: float = leaf(1e-3, 'Learning rate at the peak of the schedule.', above=0)
  schedule: Cosine | WarmupStableDecay = part(Cosine(), 'Course of the learning rate.')
  weight_decay: float = leaf(0.1, 'Decay of matrices a step, times the learning rate.', low=0)
  decay_exclude: tuple[str, ...] = leaf((), 'Path patterns of matrices that are not decayed.')
  clip_norm: float | None = leaf(1.0, 'Largest global norm of the gradient.', above=0)
  freeze: tuple[str, ...] = leaf((), 'Path patterns of parameters that never move.')
  router_bias_rate: float = leaf(1e-3, 'Step of the biases that balance experts.', low=0)
  moment_dtype: Literal['float32', 'bfloat16'] = leaf('float32', 'Type of the first moments.')
  memory: Literal['device', 'pinned_host'] = leaf(
    'device', "Where moments lie between updates: the device's memory or its host's.", run=True
  )

  def build(self, dims: Any, steps: int) -> optax.GradientTransformation:
    """The transformation for parameters of dimensions `dims` over a run of `steps` updates.

    Parameters named `router_bias` take a step of fixed size against the sign of their gradient,
    which their layer defines as load - mean load (DeepSeek-V3, arXiv:2412.19437 sec. 2.1.2).

    Args:
      dims: a tree like the parameters; each leaf the tuple of that parameter's dimension names.
      steps: updates of the whole run, which the schedule spans.

    Raises:
      UserError: a pattern matches no parameter, or the schedule does not fit into `steps`.
      ValueError: a matrix whose dimensions no table of this file knows.
    """
    groups = self._groups(dims)
    excluded = _matches('decay_exclude', self.decay_exclude, dims)
    decayed = jax.tree.map(lambda out, names: is_matrix(names) and not out, excluded, dims)
    scale = self.schedule.build(steps)
    rules = self._rules(dims, groups)
    moves: dict[Hashable, optax.GradientTransformation] = {
      'router_bias': optax.sign_sgd(self.router_bias_rate),
      'frozen': optax.set_to_zero(),
      **{group: self._descend(rule, decayed, scale) for group, rule in rules.items()},
    }
    clipped = jax.tree.map(lambda group: group in rules, groups)
    clip = optax.identity() if self.clip_norm is None else optax.clip_by_global_norm(self.clip_norm)
    return optax.chain(optax.masked(clip, clipped), optax.partition(moves, groups))

  def _descend(
    self, rule: Rule, decayed: Any, scale: optax.Schedule
  ) -> optax.GradientTransformation:
    return optax.chain(
      rule.direction,
      optax.add_decayed_weights(self.weight_decay, decayed),
      optax.scale_by_learning_rate(lambda step: rule.peak_lr * scale(step)),
    )

  def _groups(self, dims: Any) -> Any:
    """The group of each parameter: `frozen`, `router_bias` or one that `_rules` knows."""

    def group(path, frozen: bool, names: Dims) -> str:
      if frozen:
        return 'frozen'
      return 'router_bias' if _join(path[-1:]) == 'router_bias' else self._group(names)

    frozen = _matches('freeze', self.freeze, dims)
    return jax.tree.map_with_path(group, frozen, dims)

  def _group(self, names: Dims) -> str:
    """The group of a trained parameter of dimensions `names`."""
    return 'all'

  def _direction(self) -> optax.GradientTransformation:
    """The direction of descent, before decay and learning rate."""
    raise NotImplementedError

  def _rules(self, dims: Any, groups: Any) -> dict[str, Rule]:
    return {'all': Rule(self._direction(), self.peak_lr)}


class AdamW(Optimizer):
  """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

  b1: float = leaf(0.9, 'Decay of the first moment.', low=0, high=1)
  b2: float = leaf(0.95, 'Decay of the second moment.', low=0, high=1)
  eps: float = leaf(1e-8, 'Added to the root of the second moment.', above=0)

  def _direction(self) -> optax.GradientTransformation:
    return optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.moment_dtype)


class Lion(Optimizer):
  """The sign of an interpolated momentum: one moment (Chen et al. 2023, arXiv:2302.06675)."""

  peak_lr: float = leaf(1e-4, 'Learning rate at the peak: 3 to 10 times below AdamW.', above=0)
  weight_decay: float = leaf(1.0, 'Decay of matrices: 3 to 10 times above AdamW.', low=0)
  b1: float = leaf(0.9, 'Weight of the momentum in the direction.', low=0, high=1)
  b2: float = leaf(0.99, 'Decay of the momentum.', low=0, high=1)

  def _direction(self) -> optax.GradientTransformation:
    return optax.scale_by_lion(self.b1, self.b2, mu_dtype=self.moment_dtype)


class Adafactor(Optimizer):
  """Factored second moments, steps relative to the size of each parameter (Shazeer & Stern 2018,
  arXiv:1804.04235).

  Decay is decoupled and times the learning rate, as in the other optimizers. The size of a step is
  taken over a whole leaf, so scanned layers share one where listed layers have each their own.
  """

  peak_lr: float = leaf(1e-2, 'Step at the peak, relative to the RMS of a parameter.', above=0)
  weight_decay: float = leaf(0.0, 'Decay of matrices a step, times the learning rate.', low=0)
  decay_rate: float = leaf(0.8, 'c of the second moment: its decay is 1 - t^-c.', above=0, high=1)
  clip_update: float = leaf(1.0, 'Largest RMS of an update before scaling.', low=1)
  factor_from: int = leaf(128, 'Smallest side of a matrix whose moments are factored.', low=1)
  momentum: float | None = leaf(
    None, 'Decay of a first moment; none saves its memory.', low=0, high=1
  )

  def _direction(self) -> optax.GradientTransformation:
    steps = [
      optax.scale_by_factored_rms(
        decay_rate=self.decay_rate, min_dim_size_to_factor=self.factor_from
      ),
      optax.clip_by_block_rms(self.clip_update),
      optax.scale_by_param_block_rms(),
    ]
    if self.momentum is not None:
      steps += [optax.ema(self.momentum, debias=False, accumulator_dtype=self.moment_dtype)]
    return optax.chain(*steps)


class Muon(Optimizer):
  """Orthogonalised momentum for hidden matrices (Jordan et al. 2024, github.com/KellerJordan/Muon),
  AdamW for tables, heads, routers and vectors.

  Each matrix is taken alone, whether layers and experts are stacked in one leaf or not. Updates are
  scaled by sqrt(max(1, fan_out / fan_in)), or to a given RMS as by Moonlight (arXiv:2502.16982).
  """

  peak_lr: float = leaf(3e-3, 'Peak learning rate of what Adam moves.', above=0)
  matrix_lr: float = leaf(0.02, 'Peak learning rate of hidden matrices.', above=0)
  momentum: float = leaf(0.95, 'Decay of the momentum of hidden matrices.', low=0, high=1)
  ns_steps: int = leaf(5, 'Newton-Schulz iterations; with aol 4 are as good as 5 without.', low=1)
  preconditioning: Preconditioning = leaf(
    'frobenius', 'Scaling before the iteration (aol: arXiv:2512.04632, schatten: 2506.10935).'
  )
  consistent_rms: float | None = leaf(None, 'RMS of an update; 0.2 is like AdamW.', above=0)
  b1: float = leaf(0.9, "Decay of Adam's first moment.", low=0, high=1)
  b2: float = leaf(0.95, "Decay of Adam's second moment.", low=0, high=1)
  eps: float = leaf(1e-8, "Added to the root of Adam's second moment.", above=0)

  def _group(self, names: Dims) -> str:
    return 'adam' if muon_numbers(names) is None else 'muon'

  def _rules(self, dims: Any, groups: Any) -> dict[str, Rule]:
    trained = jax.tree.map(lambda group: group == 'muon', groups)
    numbers = jax.tree.map(
      lambda ours, names: muon_numbers(names) if ours else optax.MaskedNode(), trained, dims
    )
    momentum = optax.trace(self.momentum, nesterov=True, accumulator_dtype=self.moment_dtype)
    orthogonal = orthogonalize(numbers, self.ns_steps, self.preconditioning)
    adam = optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.moment_dtype)
    return {
      'muon': Rule(optax.chain(momentum, orthogonal, self._scale_by_fan(numbers)), self.matrix_lr),
      'adam': Rule(adam, self.peak_lr),
    }

  def _scale_by_fan(self, numbers: Any) -> optax.GradientTransformation:
    """What `optax.contrib.muon` does with fans; it cannot be used whole, since the labels that it
    derives from parameters fail under `optax.tree.map_params`."""

    def scale(axes: MuonDimensionNumbers, update: jax.Array) -> jax.Array:
      fan_in, fan_out = fans(axes, update.shape)
      if self.consistent_rms is None:
        return update * math.sqrt(max(1, fan_out / fan_in))
      return update * math.sqrt(max(fan_in, fan_out)) * self.consistent_rms

    is_numbers = lambda node: isinstance(node, MuonDimensionNumbers)
    return optax.stateless(
      lambda updates, params: jax.tree.map(scale, numbers, updates, is_leaf=is_numbers)
    )


def is_matrix(names: Dims) -> bool:
  """Whether a parameter is a matrix or a stack of them, and not a scale or a bias.

  Raises ValueError for dimensions that may be either: a new kind of matrix gets its row in a table.
  """
  names = _matrix_dims(names)
  if names in HIDDEN_MATRICES or names in OUTER_MATRICES or 'rank' in names:
    return True
  if len(names) < 2 or names in HEAD_BIASES:
    return False
  raise ValueError(f'unknown kind of matrix {names}: add it to a table of lmjax/optim/optimizer.py')


def muon_numbers(names: Dims) -> MuonDimensionNumbers | None:
  """Input and output axes of a hidden matrix, None for any other parameter."""
  matrix = _matrix_dims(names)
  if not is_matrix(names) or matrix not in HIDDEN_MATRICES:
    return None
  first = len(names) - len(matrix)
  middle = first + HIDDEN_MATRICES[matrix]
  return MuonDimensionNumbers(tuple(range(first, middle)), tuple(range(middle, len(names))))


def muon_partition(dims: Any) -> Any:
  """`dims` with each hidden matrix replaced by its Muon axes and every other leaf by None."""
  return jax.tree.map(muon_numbers, dims, is_leaf=_is_dims)


def _matrix_dims(names: Dims) -> Dims:
  """`names` without the batch dimensions in front."""
  for batch in ('layers', 'expert'):
    names = names[1:] if names[:1] == (batch,) else names
  return names


def _matches(option: str, patterns: tuple[str, ...], dims: Any) -> Any:
  """A tree of bools like `dims`: whether a leaf's path matches one of `patterns`."""
  paths = [_join(path) for path, _ in jax.tree.leaves_with_path(dims, is_leaf=_is_dims)]
  for pattern in patterns:
    if not fnmatch.filter(paths, pattern):
      near = difflib.get_close_matches(pattern, paths, n=1, cutoff=0)
      raise UserError(
        f'{option}={pattern!r} matches no parameter: the nearest is {near[0]!r}; '
        '* stands for any part of a path'
      )

  def matches(path: Any, _: Dims) -> bool:
    return any(fnmatch.fnmatchcase(_join(path), pattern) for pattern in patterns)

  return jax.tree.map_with_path(matches, dims, is_leaf=_is_dims)


def _join(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _is_dims(node: Any) -> bool:
  return isinstance(node, tuple)
