"Numbers about answers, with intervals, and what an answer is; no images"
from .intervals import Interval, accuracy_interval, bootstrap_interval, effective_size, macro_f1, wilson_interval
from .calibration import apply_temperature, brier_scores, calibration_error, fit_temperature, reliability_table
from .calibration import shift_prior
from .evaluation import Evaluation, evaluate_probs, mean_probs
from .losses import SoftmaxLoss, resolve_loss
from .task import SINGLE_LABEL, Task

__all__ = [
    'accuracy_interval', 'apply_temperature', 'bootstrap_interval', 'brier_scores', 'calibration_error',
    'effective_size', 'evaluate_probs', 'Evaluation', 'fit_temperature', 'Interval', 'macro_f1', 'mean_probs',
    'reliability_table', 'resolve_loss', 'shift_prior', 'SINGLE_LABEL', 'SoftmaxLoss', 'Task',
    'wilson_interval',
]
