"""Advertising: which briefs are refused and why, and which texts are harmful."""

from lmjax.ads.evaluate import BriefEval
from lmjax.ads.review import ReviewEval, ReviewTrain
from lmjax.core.registry import experiment


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
