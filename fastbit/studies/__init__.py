"Several runs side by side, checks of the data, and a page to try a model"
from .compare import Comparison, compare_runs, read_predictions
from .detect import label_table, multilabel_issues
from .doctor import DataCheck, check_data
from .few_shot import few_shot_curve
from .int8_cost import Int8Cost, measure_int8
from .label_next import rank_to_label
from .paired import mcnemar_p, paired_difference
from .probe import probe
from .serve import ModelServer, serve
from .board import Leaderboard
from .leaderboard import leaderboard
from .task_comparison import TaskComparison

__all__ = [
    'check_data', 'compare_runs', 'Comparison', 'DataCheck', 'few_shot_curve', 'Int8Cost', 'label_table',
    'Leaderboard', 'leaderboard', 'mcnemar_p', 'measure_int8', 'ModelServer', 'multilabel_issues',
    'paired_difference', 'probe', 'rank_to_label', 'read_predictions', 'serve', 'TaskComparison',
]
