"ONNX files of bodies without a published recipe: the same probabilities in onnxruntime"
from dataclasses import replace

import pytest, torch

from fastbit.bodies import body_preprocess
from fastbit.bodies.audit import audit_model, audit_size
from fastbit.export import export_onnx, load_predictor
from fastbit.export.artifact import save_artifact
from fastbit.export.onnx import ONNX_TOLERANCE
from fastbit.export.record import Artifact

FAST = ('test_resnet', 'test_vit')
SLOW = (
    'regnetx_002', 'test_convnext', 'densenet121', 'mobilenetv3_small_050', 'ghostnet_050', 'repvgg_a0', 'hgnetv2_b0',
    'poolformerv2_s12', 'deit_tiny_distilled_patch16_224', 'levit_128s', 'repvit_m0_9', 'efficientformerv2_s0',
    'swin_tiny_patch4_window7_224', 'fastvit_t8', 'edgenext_xx_small')


def predictor(arch, folder):
    size = audit_size(arch)
    pp = replace(body_preprocess(arch), size=size, train_size=None)
    save_artifact(folder, audit_model(arch, size).net, Artifact(arch=arch, classes=('a', 'b', 'c'), preprocess=pp))
    return load_predictor(folder, 'cpu')


@pytest.mark.parametrize('arch', [*FAST, *(pytest.param(a, marks=pytest.mark.slow) for a in SLOW)])
def test_probabilities_are_equal(arch, tmp_path):
    assert export_onnx(predictor(arch, tmp_path/'model'), tmp_path/'net.onnx') <= ONNX_TOLERANCE


def test_a_body_without_an_onnx_form_is_told_in_one_sentence(tmp_path, monkeypatch):
    found = predictor('test_resnet', tmp_path/'model')
    def fails(*args, **kwargs): raise NotImplementedError('Failed to convert.\nNo ONNX function found for aten.bernoulli')
    monkeypatch.setattr(torch.onnx, 'export', fails)
    with pytest.raises(ValueError, match=r'cannot export test_resnet.* \(NotImplementedError: No ONNX function.*unchanged') as e:
        export_onnx(found, tmp_path/'net.onnx')
    assert '\n' not in str(e.value) and (tmp_path/'model'/'model.safetensors').exists() and not (tmp_path/'net.onnx').exists()
