"Numbers about answers, with intervals, and what an answer is; no images"
from .intervals import Interval, accuracy_interval, bootstrap_interval, effective_size, macro_f1, wilson_interval
from .calibration import apply_temperature, brier_scores, calibration_error, fit_temperature, reliability_table
from .calibration import shift_prior
from .evaluation import Evaluation, evaluate_probs, mean_probs
from .scores import Score, class_order, metric_value
from .losses import SoftmaxLoss, resolve_loss
from .task import SINGLE_LABEL, Task, score_metric

__all__ = [
    'accuracy_interval', 'apply_temperature', 'bootstrap_interval', 'brier_scores', 'calibration_error',
    'class_order', 'effective_size', 'evaluate_probs', 'Evaluation', 'fit_temperature', 'Interval', 'macro_f1',
    'mean_probs', 'metric_value', 'reliability_table', 'resolve_loss', 'Score', 'score_metric', 'shift_prior',
    'SINGLE_LABEL', 'SoftmaxLoss', 'Task', 'wilson_interval',
]
