"ONNX files of bodies without a published recipe: the same probabilities in onnxruntime"
from dataclasses import replace

import pytest, timm, torch
from torch import nn

from fastbit.bodies import TransferModel, body_preprocess
from fastbit.bodies.audit import _as_trained, audit_size
from fastbit.bodies.build import model_arguments
from fastbit.export import export_onnx
from fastbit.export.onnx import ONNX_TOLERANCE
from fastbit.export.predict import Predictor
from fastbit.export.record import Artifact

FAST = ('test_resnet', 'test_vit')
# blocks of each kind, and as few as that takes: the exporter needs a second for one or two
SLOW = dict(
    regnetx_002={}, test_convnext={}, densenet121=dict(block_config=(2, 2, 2, 2)), mobilenetv3_small_050={},
    ghostnet_050={}, repvgg_a0={}, hgnetv2_b0={}, poolformerv2_s12={}, deit_tiny_distilled_patch16_224={},
    levit_128s=dict(depth=(1, 1, 1)), repvit_m0_9=dict(depth=(2, 1, 1, 1)), efficientformerv2_s0={},
    swin_tiny_patch4_window7_224=dict(depths=(2, 1, 1, 1)), fastvit_t8={}, edgenext_xx_small={})


def like(m) -> tuple:
    "What a module computes: its class, settings, shapes of weights, and parts"
    settings = {k: v for k, v in vars(m).items() if isinstance(v, (int, float, str, tuple, type(None)))}
    own = (*m.named_parameters(recurse=False), *m.named_buffers(recurse=False))
    weights = [(n, p.shape) for n, p in own]
    return type(m), sorted(settings.items()), weights, [(n, like(c)) for n, c in m.named_children()]


def without_repeats(net):
    "A block that follows one of the same kind computes in the same way: it is taken out"
    for row in [m for m in net.modules() if isinstance(m, nn.Sequential)]:
        blocks = list(row.named_children())
        for (_, first), (name, second) in zip(blocks, blocks[1:]):
            if like(first) == like(second): delattr(row, name)
    return net


def predictor(arch, **small):
    size = audit_size(arch)
    pp = replace(body_preprocess(arch), size=size, train_size=None)
    given = dict(pretrained_cfg_overlay=dict(input_size=(3, size, size)), **model_arguments(arch, size), **small)
    net = without_repeats(timm.create_model(arch, num_classes=3, **given))
    about = Artifact(arch=arch, classes=('a', 'b', 'c'), preprocess=pp)
    return Predictor(TransferModel(_as_trained(net, size)), about)


@pytest.mark.parametrize('arch', [*FAST, *(pytest.param(a, marks=pytest.mark.slow) for a in SLOW)])
def test_probabilities_are_equal(arch, tmp_path):
    assert export_onnx(predictor(arch, **SLOW.get(arch, {})), tmp_path/'net.onnx') <= ONNX_TOLERANCE


def test_repeats_are_whole_blocks_of_the_same_kind():
    net = timm.create_model('repvgg_a0', num_classes=3)
    kinds = {repr(like(b)) for stage in net.stages for b in stage}
    left = [repr(like(b)) for stage in without_repeats(net).stages for b in stage]
    assert set(left) == kinds and len(left) == len(kinds)


def test_a_body_without_an_onnx_form_is_told_in_one_sentence(tmp_path, monkeypatch):
    found = predictor('test_resnet')
    def fails(*args, **kwargs): raise NotImplementedError('Failed to convert.\nNo ONNX function found for aten.bernoulli')
    monkeypatch.setattr(torch.onnx, 'export', fails)
    with pytest.raises(ValueError, match=r'cannot export test_resnet.* \(NotImplementedError: No ONNX function.*unchanged') as e:
        export_onnx(found, tmp_path/'net.onnx')
    assert '\n' not in str(e.value) and not (tmp_path/'net.onnx').exists()
