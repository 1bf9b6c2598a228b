"One call: from images to a measured baseline"
from ..config import Auto, BiTRule, HeadOnly, OneCycle
from ..core.doors import open_door

if not open_door(__name__):   # each is imported when it is first used: the rule for a folder needs no PyTorch
    from .advice import Advice, Commands, RunFigures, what_helps
    from .auto import Decision, Situation, decide
    from .budget import TimeLimit
    from .phases import HeadPhase, OneCyclePhase, RulePhase, UpperPhase
    from .plan import Plan
    from .recipes import head_phases, onecycle_phases
    from .record import parse_budget
    from .result import BaselineResult, Measured
    from .rule import folder_rule
    from .run import Run, baseline
    from .saved import saved_options

__all__ = [
    'Advice', 'Auto', 'baseline', 'BaselineResult', 'BiTRule', 'Commands', 'decide', 'Decision', 'folder_rule',
    'head_phases', 'HeadOnly', 'HeadPhase', 'Measured', 'OneCycle', 'onecycle_phases', 'OneCyclePhase',
    'parse_budget', 'Plan', 'RulePhase', 'Run', 'RunFigures', 'saved_options', 'Situation', 'TimeLimit',
    'UpperPhase', 'what_helps',
]
