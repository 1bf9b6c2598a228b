"From a name to a model: names, weights, preprocessing, stages"
from ..core.doors import open_door

if not open_door(__name__):   # each is imported when it is first used: names and preprocessing are read without PyTorch
    from .names import timm_name
    from .preprocess import Preprocess, body_preprocess
    from .weights import hub_file, weights_source
    from .load import load_weights
    from .build import ResolvedBody, build_body, check_size, resolve_body, zero_classifier
    from .catalogue import list_bodies
    from .stages import Stage, body_stages
    from .fused import can_fuse, fused_steps
    from .model import BN_MODES, TransferModel, run_stages
    from .fold import FoldedModel, can_fold, fold_net

__all__ = [
    'BN_MODES', 'body_preprocess', 'body_stages', 'build_body', 'can_fold', 'can_fuse', 'check_size', 'fold_net',
    'FoldedModel', 'fused_steps', 'hub_file', 'list_bodies', 'load_weights', 'Preprocess', 'resolve_body',
    'ResolvedBody', 'run_stages', 'Stage', 'timm_name', 'TransferModel', 'weights_source', 'zero_classifier',
]
