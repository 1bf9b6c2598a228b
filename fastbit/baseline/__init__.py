"One call: from images to a measured baseline"
from ..config import Auto, BiTRule, HeadOnly, OneCycle
from .advice import Advice, Commands, RunFigures, what_helps
from .auto import Decision, Situation, decide
from .budget import TimeLimit, parse_budget
from .phases import HeadPhase, OneCyclePhase, RulePhase, UpperPhase
from .plan import Plan
from .recipes import folder_rule, head_phases, onecycle_phases
from .result import BaselineResult, Measured
from .run import Run, baseline

__all__ = [
    'Advice', 'Auto', 'baseline', 'BaselineResult', 'BiTRule', 'Commands', 'decide', 'Decision', 'folder_rule',
    'head_phases', 'HeadOnly', 'HeadPhase', 'Measured', 'OneCycle', 'onecycle_phases', 'OneCyclePhase',
    'parse_budget', 'Plan', 'RulePhase', 'Run', 'RunFigures', 'Situation', 'TimeLimit', 'UpperPhase', 'what_helps',
]
