"""The tasks that learn from pairs of answers: a model that prefers, and a model of rewards."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.adapt.lora import Adapter, Lora
from lmjax.core import assets, tree
from lmjax.core.config import part
from lmjax.core.errors import UserError
from lmjax.core.metrics import progress
from lmjax.core.task import Report
from lmjax.core.types import Params
from lmjax.data.conversations import Chats, Conversations, sort_rows
from lmjax.data.loader import Rows
from lmjax.data.preference import Pair, PairBatch, encode_pair, lay_pairs
from lmjax.objectives.preference import BradleyTerry, Preference, answer_logprobs, rewards
from lmjax.parallel import hosts
from lmjax.parallel.accelerator import Preset
from lmjax.train.feed import place
from lmjax.train.state import TrainState, batch_sharding, make_state
from lmjax.train.tune import Tune, Tuning
from lmjax.train.tune_chat import counts_text


class Prefer(Tune):
  """Goes on from a model with pairs of answers, until it finds the preferred ones likelier."""

  source: Conversations = part(Chats(), 'Pairs to learn from.', inline=True)
  objective: Preference = part(Preference(), 'How it learns from them.')

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.accumulate > 1 and not self.objective.additive:
      raise UserError(
        f'accumulate={self.accumulate} contradicts objective.kind={self.objective.kind}, whose loss '
        'couples the rows of a batch: pass --accumulate=1'
      )

  def open(self, mesh: jax.sharding.Mesh, preset: Preset) -> 'Preferring':
    return Preferring(self, mesh, preset, self.objective)


class TrainReward(Tune):
  """Makes a model of rewards of a language model: LoRA and a vector, from pairs of answers."""

  source: Conversations = part(Chats(), 'Pairs to learn from.', inline=True)
  objective: BradleyTerry = part(BradleyTerry(), 'How it learns from them.')
  lora: Lora = part(Lora(), 'The terms of low rank that are trained beside its matrices.')

  def open(self, mesh: jax.sharding.Mesh, preset: Preset) -> 'Rewarding':
    return Rewarding(self, mesh, preset, self.objective)


class Preferring(Tuning):
  """Pairs, one a row, with what the model thought of them before."""

  def __init__(self, task: Any, mesh: jax.sharding.Mesh, preset: Preset, objective: Any) -> None:
    super().__init__(task, mesh, preset)
    template, length = self.template, task.length
    make = lambda values: encode_pair(values, template, self.tokenizer, length)
    self.rows = sort_rows(task.source.rows(), make, task.source.held_out)
    self._pairs: list[Pair] = [*self.rows.train, *self.rows.held_out]
    tokens = np.concatenate([side.tokens for pair in self._pairs for side in pair])
    self.data.append(tree.sha256({'tokens': tokens}))
    self._everywhere = NamedSharding(mesh, PartitionSpec())
    self.objective = objective
    self._reference_P2 = self._references()
    count = len(self.rows.train)
    self.source = Rows(self._read, count, batch=task.batch, length=length, seed=task.seed)

  def lines(self, job: Any) -> list[str]:
    return [*super().lines(job), f'pairs       {counts_text(self.rows.counts)}']

  def measure(self, state: TrainState) -> dict[str, float]:
    """Share of held-out pairs whose preferred answer gained more, ties half, and by how much.

    Before the first step the log-probabilities are the references'.
    """
    held_out = range(len(self.rows.train), len(self._pairs))
    reference_P2 = self._reference_P2[held_out.start :]
    if int(state.step) == 0:
      logprob_P2 = reference_P2
    else:
      logprob_P2 = self._each(self._logprobs, self.whole(state), held_out)
    sides = [[side.weights.sum() for side in self._pairs[number]] for number in held_out]
    counts = np.array(sides, np.float32)
    _, means = self.objective.compare(logprob_P2, counts, reference_P2)
    return {name: float(means[name].value) for name in ('accuracy', 'margin', 'loss')}

  def _logprobs(self, params: Params, batch: PairBatch) -> jax.Array:
    return answer_logprobs(self.model, params, batch, self.objective.chunk)[0]

  def _each(self, f: Callable, params: Params, numbers: range) -> np.ndarray:
    """`f(params, batch)`, [B, 2] on every device, of all pairs of these numbers: f32 [pairs, 2]."""
    run = jax.jit(f, out_shardings=self._everywhere)
    found, show = [], progress('pairs', hosts.say)
    with jax.set_mesh(self._mesh):
      for some in _groups(numbers, self.task.batch):
        batch = place(self._read(some), batch_sharding(self._mesh, ('batch',)), self.task.batch)
        found.append(np.asarray(run(params, batch)))
        show(sum(number >= 0 for number in some), len(numbers))
    return np.concatenate(found)[: len(numbers)]

  def conclude(self, job: Any, state: TrainState, step: int) -> Report:
    report = super().conclude(job, state, step)
    return report and report | {'rows': self.rows.counts}

  def _references(self) -> np.ndarray:
    """log p of both answers of every pair under the model that training begins from, f32 [pairs, 2].

    Computed once: they are kept in LMJAX_CACHE under the hash of model and pairs.
    """
    key = tree.sha256({'of': np.frombuffer(repr(self._reference_key()).encode(), np.uint8)})
    path = assets.cache_folder() / 'reference' / f'{key}.npy'
    if hosts.share('reference', 'there' if path.exists() else '')[0]:
      return np.load(path)
    hosts.say(f'computing what the model thinks of {len(self._pairs):,} pairs ...')
    self._reference_P2 = np.zeros((len(self._pairs), 2), np.float32)
    base = self._params if self.adapter is None else self.frozen
    references = self._each(self._logprobs, base, range(len(self._pairs)))
    if hosts.is_leader():
      path.parent.mkdir(parents=True, exist_ok=True)
      draft = path.with_suffix('.draft.npy')
      np.save(draft, references)
      draft.replace(path)
    return references

  def _reference_key(self) -> list[Any]:
    weights = self.task.base_weights if self.adapter is not None else 'float32'
    return [*self.data, weights, self.task.length, self.model.dtype]

  def _read(self, numbers: Sequence[int]) -> PairBatch:
    """The pairs of these numbers as rows; where one is negative, an empty row."""
    none: Any = ()
    pairs = [self._pairs[number] if number >= 0 else none for number in numbers]
    reference: Any = self._reference_P2[np.maximum(np.array(numbers), 0)]
    return PairBatch(lay_pairs(pairs, self.task.length), reference)


@dataclasses.dataclass(frozen=True)
class _Judge:
  """What is trained of a model of rewards: terms beside the matrices, and a vector."""

  adapter: Adapter

  def init(self, key: jax.Array) -> Params:
    start = jnp.zeros(self.adapter.model.width, jnp.float32)
    return {'terms': self.adapter.init(key), 'reward_D': start}

  def dims(self) -> dict[str, Any]:
    return {'terms': self.adapter.dims(), 'reward_D': ('norm',)}

  def shapes(self) -> Params:
    return jax.eval_shape(self.init, jax.random.key(0))


class Rewarding(Preferring):
  """Pairs, and a model of rewards to train from them."""

  rewards = True

  @property
  def trained(self) -> Any:
    assert self.adapter is not None
    return _Judge(self.adapter)

  def begin(
    self, tx: optax.GradientTransformation, seed: int, mesh: jax.sharding.Mesh
  ) -> TrainState:
    return dataclasses.replace(make_state(self.trained, tx, seed, mesh), frozen=self.frozen)

  def assemble(self, params: Params, frozen: Any) -> Any:
    assert self.adapter is not None
    attached = self.adapter.attach(frozen, params['terms'])
    return {'model': attached, 'reward_D': params['reward_D']}

  def measure(self, state: TrainState) -> dict[str, float]:
    """Share of held-out pairs whose preferred conversation has the larger reward, and by how much."""
    held_out = range(len(self.rows.train), len(self._pairs))
    judge = lambda params, batch: rewards(self.model, params, batch)
    c_P, r_P = self._each(judge, self.whole(state), held_out).T
    right = (np.sign(c_P - r_P) + 1) / 2
    return {'accuracy': float(right.mean()), 'margin': float((c_P - r_P).mean())}

  def answers(self, state: TrainState) -> list[str]:
    """A model of rewards says nothing."""
    del state
    return []

  def _references(self) -> np.ndarray:
    """Rewards are compared with each other alone."""
    return np.zeros((len(self._pairs), 2), np.float32)


def _groups(numbers: range, size: int) -> list[list[int]]:
  """`numbers` in lists of `size`, the last filled up with -1."""
  whole = [*numbers, *[-1] * (-len(numbers) % size)]
  return [whole[start : start + size] for start in range(0, len(whole), size)]
