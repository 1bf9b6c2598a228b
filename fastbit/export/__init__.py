"Models that travel: artifacts, prediction, ONNX"
from .record import Artifact
from .artifact import load_artifact, read_config, save_artifact
from .card import CardFacts, model_card
from .predict import Predictor, confidence_table, load_predictor
from .docker import export_docker
from .hub import push_to_hub
from .int8 import export_int8
from .onnx import export_onnx
from .embed import Embeddings, save_embeddings
from .similar import load_index, save_index
from .answers import json_answer, json_answers

__all__ = [
    'Artifact', 'CardFacts', 'confidence_table', 'Embeddings', 'export_docker', 'export_int8', 'export_onnx',
    'json_answer', 'json_answers', 'load_artifact', 'load_index', 'load_predictor', 'model_card', 'Predictor',
    'push_to_hub', 'read_config', 'save_artifact', 'save_embeddings', 'save_index',
]
