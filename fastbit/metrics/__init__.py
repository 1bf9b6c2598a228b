"Numbers about answers, with intervals; no images"
from .intervals import bootstrap_interval, macro_f1, wilson_interval
from .calibration import apply_temperature, brier_scores, calibration_error, fit_temperature, reliability_table
from .evaluation import Evaluation, evaluate_probs, mean_probs
from .task import SoftmaxLoss, resolve_loss

__all__ = [
    'apply_temperature', 'bootstrap_interval', 'brier_scores', 'calibration_error', 'evaluate_probs',
    'Evaluation', 'fit_temperature', 'macro_f1', 'mean_probs', 'reliability_table', 'resolve_loss',
    'SoftmaxLoss', 'wilson_interval',
]
