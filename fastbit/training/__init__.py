"The learner and its fits"
from .learner import TransferLearner, transfer_learner
from .tta import TTAResult, tta_probs, view_logits
from .accumulate import accumulate_step, check_accumulation
from .callbacks import History, JsonLog, KeepBest, PlainLog
from .checkpoint import Checkpoint, read_checkpoint
from .guards import FitStopped, LossNotFinite
from .head import logistic_head
from .optim import ForeachSGD, FusedAdam
from .rule import rule_differences, rule_text

__all__ = [
    'accumulate_step', 'check_accumulation', 'Checkpoint', 'FitStopped', 'ForeachSGD', 'FusedAdam', 'History',
    'JsonLog', 'KeepBest', 'logistic_head', 'LossNotFinite', 'PlainLog', 'read_checkpoint',
    'rule_differences', 'rule_text', 'transfer_learner', 'TransferLearner', 'tta_probs', 'TTAResult',
    'view_logits',
]
