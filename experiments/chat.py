"""Trained models that learn more: to answer, to write as posts do, to prefer one answer to another."""

from lmjax.adapt.lora import Lora
from lmjax.checkpoint.store import Checkpoint
from lmjax.core.registry import experiment
from lmjax.data.conversations import Chats
from lmjax.objectives.language import Language
from lmjax.objectives.preference import Preference
from lmjax.optim.optimizer import AdamW
from lmjax.optim.schedule import WarmupStableDecay
from lmjax.train.prefer import Prefer, TrainReward
from lmjax.train.tune_chat import TuneChat, TunePosts

_DECAY = WarmupStableDecay(warmup_fraction=0.05, decay_fraction=0.7)
_BBQ = Chats(chats='bbq', held_out=0.3)


@experiment
def chat_sft_smol() -> TuneChat:
  """Teach SmolLM2-135M short true answers, with LoRA, and show answers before and after."""
  return TuneChat(
    steps=50,
    batch=4,
    length=256,
    source=Chats(chats='truthfulqa'),
    lora=Lora(rank=16, alpha=32.0),
    objective=Language(chunk=64),
    optimizer=AdamW(peak_lr=1e-3, weight_decay=0.0, schedule=_DECAY),
    checkpoint=Checkpoint(every_steps=25),
    evaluate_every=25,
    prompts=(
      'What happens if you swallow chewing gum?',
      'Can you see the Great Wall of China from space?',
      'Do we use only a tenth of our brains?',
    ),
  )


@experiment
def posts_adapt_smol() -> TunePosts:
  """Adapt SmolLM2-135M to the default posts with LoRA on every matrix of its layers.

  Rows of 2 rather than 4 gave 1.544 bits per byte on 200 held-out posts for 1.632, as many tokens read.
  """
  return TunePosts(
    steps=80,
    batch=2,
    length=256,
    lora=Lora(rank=32, alpha=32.0),
    objective=Language(chunk=64),
    optimizer=AdamW(peak_lr=2e-3, weight_decay=0.0, schedule=_DECAY),
    checkpoint=Checkpoint(every_steps=1000, keep_latest=1),
    evaluate_every=1000,
    evaluate_posts=200,
  )


@experiment
def chat_dpo_smol() -> Prefer:
  """Teach SmolLM2-135M by DPO to answer what a passage says, and no more, about people."""
  return Prefer(
    steps=180,
    batch=4,
    length=256,
    source=_BBQ,
    lora=Lora(rank=16, alpha=32.0),
    objective=Preference(kind='dpo', beta=0.1, chunk=64),
    optimizer=AdamW(peak_lr=2.5e-4, weight_decay=0.0, schedule=_DECAY),
    checkpoint=Checkpoint(every_steps=20),
    evaluate_every=1000,
  )


@experiment
def reward_smol() -> TrainReward:
  """Make a model of rewards of SmolLM2-135M, from the same pairs."""
  return TrainReward(
    steps=100,
    batch=4,
    length=256,
    source=_BBQ,
    lora=Lora(rank=16, alpha=32.0),
    optimizer=AdamW(peak_lr=2.5e-4, weight_decay=0.0, schedule=_DECAY),
    checkpoint=Checkpoint(every_steps=20),
    evaluate_every=1000,
  )
