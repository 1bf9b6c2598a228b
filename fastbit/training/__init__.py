"The learner and its fits"
from .position import Position
from .accumulate import accumulate_step, check_accumulation
from .callbacks import History, JsonLog, KeepBest, PlainLog
from .checkpoint import Checkpoint, read_checkpoint
from .guards import FitStopped, LossNotFinite
from .optim import ForeachSGD, FusedAdam
from .learner import TransferLearner, transfer_learner
from . import results, one_cycle, upper   # these modules and those below add methods to the learner
from .tta import TTAResult, tta_probs, view_logits
from .rate_finder import RateCurve
from .head import logistic_head
from .curve import LearningCurve, head_curve, probe_curve
from .rule import rule_differences, rule_text
from .similar import SimilarityRisk, similarity_risk

__all__ = [
    'accumulate_step', 'check_accumulation', 'Checkpoint', 'FitStopped', 'ForeachSGD', 'FusedAdam', 'History',
    'head_curve', 'JsonLog', 'KeepBest', 'LearningCurve', 'logistic_head', 'LossNotFinite', 'PlainLog', 'Position',
    'probe_curve', 'RateCurve', 'read_checkpoint', 'rule_differences', 'rule_text', 'SimilarityRisk',
    'similarity_risk', 'transfer_learner', 'TransferLearner', 'tta_probs', 'TTAResult', 'view_logits',
]
