"Numbers about answers, with intervals, and what an answer is; no images"
from ..core.doors import open_door

if not open_door(__name__):   # each is imported when it is first used: scores and intervals need no PyTorch
    from .intervals import Interval, accuracy_interval, bootstrap_interval, effective_size, macro_f1, wilson_interval
    from .calibration import apply_temperature, brier_scores, calibration_error, fit_temperature, reliability_table
    from .calibration import shift_prior
    from .label_calibration import apply_label_temperature, fit_label_temperature, label_reliability
    from .evaluation import Evaluation, evaluate_probs, mean_probs
    from .scores import Score, class_order, metric_value
    from .losses import SoftmaxLoss, resolve_loss
    from .task import SINGLE_LABEL, Task, score_metric
    from .several import SEVERAL_LABELS, labels_task
    from .selective import PrecisionThreshold, needed_images, risk_coverage_area, risk_coverage_interval
    from .selective import selective_curve, threshold_for_precision
    from .conformal import coverage_range, prediction_sets, set_threshold
    from .unlike import FeatureGaussian, distance_limit, fit_feature_gaussian, p_values
    from .multilabel import LabelsEvaluation, choose_thresholds, decode_labels, evaluate_labels
    from .asymmetric import AsymmetricLoss, BinaryLoss
    from .stratify import iterative_folds, iterative_parts
    from .numbers import NumberScale, NumbersEvaluation, conformal_interval, evaluate_numbers
    from .number_loss import NumberLoss
    from .answers import HeldOutAnswers, SelectiveEvaluation, evaluate_selective, held_out_answers

__all__ = [
    'accuracy_interval', 'apply_label_temperature', 'apply_temperature', 'AsymmetricLoss', 'BinaryLoss',
    'bootstrap_interval', 'brier_scores', 'calibration_error', 'choose_thresholds', 'class_order',
    'conformal_interval', 'coverage_range', 'decode_labels', 'distance_limit', 'effective_size', 'evaluate_labels',
    'evaluate_numbers', 'evaluate_probs', 'evaluate_selective', 'Evaluation', 'FeatureGaussian',
    'fit_feature_gaussian', 'fit_label_temperature', 'fit_temperature', 'held_out_answers', 'HeldOutAnswers',
    'Interval', 'iterative_folds', 'iterative_parts', 'label_reliability', 'labels_task', 'LabelsEvaluation',
    'macro_f1', 'mean_probs', 'metric_value', 'needed_images', 'NumberLoss', 'NumberScale', 'NumbersEvaluation',
    'p_values', 'PrecisionThreshold', 'prediction_sets', 'reliability_table', 'resolve_loss', 'risk_coverage_area',
    'risk_coverage_interval', 'Score', 'score_metric', 'selective_curve', 'SelectiveEvaluation', 'set_threshold',
    'SEVERAL_LABELS', 'shift_prior', 'SINGLE_LABEL', 'SoftmaxLoss', 'Task', 'threshold_for_precision',
    'wilson_interval',
]
