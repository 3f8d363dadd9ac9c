"""Advertising: creatives of a brief; which briefs are refused and why, and which texts are harmful."""

from lmjax.ads.allocate import Allocate, Simulate
from lmjax.ads.evaluate import BriefEval
from lmjax.ads.record import Decide
from lmjax.ads.response import ResponseTrain
from lmjax.ads.review import ReviewEval, ReviewTrain
from lmjax.ads.studio import Studio
from lmjax.bench.ads_eval import AdsEval
from lmjax.core.registry import experiment


@experiment
def ads_studio() -> Studio:
  """Make ranked, checked creatives with banners: --brief=FILE --output=DIR."""
  return Studio()


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
