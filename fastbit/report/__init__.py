"What people look at: figures, class activation maps, pages"
from .cam import class_activation, overlay
from .gradient_map import activation_maps, find_map_method
from .figures import plot_confusion, plot_intervals, plot_losses, plot_lr_find, plot_rates, plot_reliability
from .examples import example_features
from .feature_map import plot_feature_map
from .findings import Findings, class_table, confused_pairs
from .page import Report
from .sections import make_report

__all__ = [
    'activation_maps', 'class_activation', 'class_table', 'confused_pairs', 'example_features', 'find_map_method',
    'Findings', 'make_report', 'overlay', 'plot_confusion', 'plot_feature_map', 'plot_intervals', 'plot_losses',
    'plot_lr_find', 'plot_rates', 'plot_reliability', 'Report',
]
