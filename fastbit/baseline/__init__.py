"One call: from images to a measured baseline"
from .budget import TimeLimit, parse_budget
from .phases import HeadPhase, OneCyclePhase, RulePhase, head_phases, onecycle_phases
from .plan import Plan
from .result import BaselineResult
from .run import baseline, folder_rule

__all__ = [
    'baseline', 'BaselineResult', 'folder_rule', 'head_phases', 'HeadPhase', 'onecycle_phases',
    'OneCyclePhase', 'parse_budget', 'Plan', 'RulePhase', 'TimeLimit',
]
