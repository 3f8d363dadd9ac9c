"""Advertising: creatives of a brief, and models of its copy; which briefs are refused, which texts are harmful."""

from lmjax.adapt.lora import Lora
from lmjax.ads.allocate import Allocate, Simulate
from lmjax.ads.copies import Copies, CopyPairs
from lmjax.ads.evaluate import BriefEval
from lmjax.ads.record import Decide
from lmjax.ads.response import ResponseTrain
from lmjax.ads.review import ReviewEval, ReviewTrain
from lmjax.ads.studio import Studio
from lmjax.bench.ads_eval import AdsEval
from lmjax.checkpoint.store import Checkpoint
from lmjax.core.registry import experiment
from lmjax.objectives.language import Language
from lmjax.objectives.preference import Preference
from lmjax.optim.optimizer import AdamW
from lmjax.optim.schedule import WarmupStableDecay
from lmjax.train.prefer import Prefer
from lmjax.train.tune import Base
from lmjax.train.tune_chat import TuneChat

_DECAY = WarmupStableDecay(warmup_fraction=0.05, decay_fraction=0.7)


@experiment
def ads_studio() -> Studio:
  """Make ranked, checked creatives with banners: --brief=FILE --output=DIR."""
  return Studio()


@experiment
def ads_copy_sft() -> TuneChat:
  """Teach SmolLM2-135M, with LoRA, to write the copy of a brief for its audience: [--source=FILE]."""
  return TuneChat(
    steps=96,
    batch=1,
    length=544,
    source=Copies(made=360, held_out=0.08),
    lora=Lora(rank=16, alpha=32.0),
    objective=Language(chunk=64),
    optimizer=AdamW(peak_lr=1e-3, weight_decay=0.0, schedule=_DECAY),
    checkpoint=Checkpoint(every_steps=48, keep_latest=1),
    evaluate_every=1000,
  )


@experiment
def ads_copy_dpo() -> Prefer:
  """Teach such a model by DPO to prefer copy without wrong facts, for its audience: [--source=FILE]."""
  return Prefer(
    steps=28,
    batch=4,
    length=368,
    base=Base(checkpoint='ads_copy_sft'),
    source=CopyPairs(made=132, made_seed=1, held_out=0.15),
    lora=Lora(rank=16, alpha=32.0),
    objective=Preference(kind='dpo', beta=0.1, chunk=64),
    optimizer=AdamW(peak_lr=5e-4, weight_decay=0.0, schedule=_DECAY),
    checkpoint=Checkpoint(every_steps=14, keep_latest=1),
    evaluate_every=1000,
  )


@experiment
def ads_decide() -> Decide:
  """Approve or reject a creative: --review=FOLDER --state=approved --by=NAME."""
  return Decide()


@experiment
def response_train() -> ResponseTrain:
  """Learn what audiences prefer, from pairs of copies: --pairs=FILE."""
  return ResponseTrain()


@experiment
def ads_simulate() -> Simulate:
  """Show creatives to a simulated audience by Thompson sampling, and plot the regret."""
  return Simulate()


@experiment
def ads_allocate() -> Allocate:
  """How often to show each creative, by a click log: --clicks=FILE."""
  return Allocate()


@experiment
def brief_eval() -> BriefEval:
  """Measure which briefs are refused, on a judged list: --briefs=FILE."""
  return BriefEval()


@experiment
def review_train() -> ReviewTrain:
  """Learn to tell harmful texts from labels: --texts=FILE[,FILE] --positive=label,label."""
  return ReviewTrain()


@experiment
def review_eval() -> ReviewEval:
  """Measure how harmful texts are told: --texts=FILE --positive=label,label [--checkpoint=RUN]."""
  return ReviewEval()


@experiment
def ads_eval() -> AdsEval:
  """Measure copy, pictures and review, on what ships: [--checkpoint=RUN] [--pictures=RUN]."""
  return AdsEval()
