"Models that travel: artifacts, prediction, ONNX"
from .record import Artifact
from .artifact import load_artifact, read_config, save_artifact
from .predict import Predictor, confidence_table, load_predictor
from .onnx import export_onnx

__all__ = [
    'Artifact', 'confidence_table', 'export_onnx', 'load_artifact', 'load_predictor', 'Predictor', 'read_config',
    'save_artifact',
]
