"Several runs side by side, and checks of the data"
from .compare import Comparison, compare_runs, mcnemar_p, paired_difference, read_predictions
from .detect import duplicate_groups, label_table, near_duplicates
from .doctor import DataCheck, check_data
from .few_shot import few_shot_curve
from .probe import probe
from .leaderboard import Leaderboard, leaderboard

__all__ = [
    'check_data', 'compare_runs', 'Comparison', 'duplicate_groups', 'DataCheck', 'few_shot_curve', 'label_table',
    'Leaderboard', 'leaderboard', 'mcnemar_p', 'near_duplicates', 'paired_difference', 'probe',
    'read_predictions',
]
