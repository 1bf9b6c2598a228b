"Bodies with several classifiers, with one that is hidden behind a norm, and with weights under two names"
import json

import pytest, timm, torch
from fastai.callback.core import Callback

from conftest import write_folder
from fastbit.bodies import TransferModel, build_body, timm_name
from fastbit.bodies.build import create_net
from fastbit.bodies.heads import LinearHead, headless
from fastbit.bodies.load import classifier_names
from fastbit.bodies.preprocess import body_preprocess
from fastbit.data import image_dataloaders
from fastbit.export.artifact import load_artifact, save_artifact
from fastbit.export.record import Artifact
from fastbit.report.cam import class_activation
from fastbit.training import transfer_learner

SEVERAL = {   # the mean of several -> size
    'deit_tiny_distilled_patch16_224': 32, 'pit_ti_distilled_224': 32, 'levit_128s': 64, 'levit_conv_128s': 64,
    'efficientformerv2_s0': 64, 'swiftformer_xs': 64, 'repvit_m0_9': 64}


def drawn(net):
    torch.manual_seed(0)
    for p in LinearHead(net).parameters(): torch.nn.init.normal_(p)
    return net.eval()


@pytest.mark.parametrize('arch, size', SEVERAL.items())
def test_several_classifiers_are_one_on_the_features_of_all(arch, size):
    net = drawn(build_body(arch, 5, 'random', size=size))
    assert len(classifier_names(net)) == 2 and net.num_classes == 5
    x = torch.randn(3, 3, size, size)
    with torch.no_grad():
        features, own, head = headless(net)(x), net(x), LinearHead(net)
        assert torch.equal(head(features), own) and features.shape == (3, head.n_features)
        torch.testing.assert_close(features@head.weight.T + head.bias, own, rtol=1e-4, atol=1e-4)
        head.set(torch.ones(5, head.n_features), torch.arange(5.))
        torch.testing.assert_close(net(x), features.sum(1, keepdim=True) + torch.arange(5.), rtol=1e-4, atol=1e-3)


def test_a_new_classifier_is_zero_in_all_its_parts():
    net = build_body('repvit_m0_9', 5, 'random', size=64)
    assert len(LinearHead(net).layers) == 2 and not any(p.any() for p in LinearHead(net).parameters())


@pytest.mark.parametrize('arch', ['efficientvit_m0', 'shvit_s1', 'levit_128s', 'repvit_m0_9'])
def test_weights_go_into_a_body_with_a_norm_before_its_classifier(arch, tmp_path):
    net = drawn(timm.create_model(arch, num_classes=10))
    torch.save(net.state_dict(), tmp_path/'weights.pth')
    new, x = build_body(arch, 3, tmp_path/'weights.pth'), torch.randn(1, 3, 224, 224)
    with torch.no_grad(): assert torch.equal(headless(new)(x), headless(net)(x))
    assert build_body(arch, 0, tmp_path/'weights.pth').num_classes == 0   # for features


def test_an_auxiliary_classifier_belongs_to_the_pretrained_one():
    with torch.device('meta'):
        assert create_net('volo_d1_224', 3).aux_head is None
        assert create_net('volo_d1_224', 1000, keeps_head=True).aux_head is not None


def test_classifiers_with_weights_of_their_own_are_refused_by_name():
    with pytest.raises(ValueError, match='efficientvim_m1_dist weights the outputs of its 8 classifiers'):
        timm_name('efficientvim_m1_dist')


@torch.no_grad()
def test_two_classifiers_on_one_map_have_exact_activation_maps():
    model = TransferModel(drawn(build_body('swiftformer_xs', 5, 'random', size=64)))
    maps, logits = class_activation(model, torch.rand(2, 3, 64, 64), [0, 1])
    bias = LinearHead(model.net).bias[:2]
    torch.testing.assert_close(maps.mean((1, 2)) + bias, logits[[0, 1], [0, 1]], rtol=1e-3, atol=1e-4)


class Stop(Callback):
    "Interrupts the third step"
    order = 90
    def after_batch(self):
        if self.training and self.learn.train_iter == 3: raise KeyboardInterrupt


def test_weights_with_two_names_are_saved_and_resumed(tmp_path):
    arch, size = 'coat_tiny', 32
    data = write_folder(tmp_path/'data', dict(blue=10, red=10))
    def fit(**how):
        torch.manual_seed(0)
        dls = image_dataloaders(data, arch, size=size, bs=4, num_workers=0)
        learn = transfer_learner(dls, arch, 'random')
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, **how)
        return learn.model.net.eval()
    saved = dict(checkpoint=tmp_path/'at.safetensors', checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt): fit(cbs=Stop(), **saved)
    assert saved['checkpoint'].exists()
    net, straight = fit(**saved), fit()
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), straight.state_dict().values()))
    assert len(net.state_dict()) > len([*net.parameters(), *net.buffers()])   # each of these once
    save_artifact(tmp_path/'model', net, Artifact(arch=arch, classes=('blue', 'red'), preprocess=body_preprocess(arch, size)))
    loaded, x = load_artifact(tmp_path/'model').net, torch.randn(2, 3, size, size)
    plain = timm.create_model(f'local-dir:{tmp_path/"model"}', pretrained=True).eval()
    with torch.no_grad(): assert torch.equal(loaded(x), net(x)) and torch.equal(plain(x), net(x))


def test_several_classifiers_are_described_to_timm(tmp_path):
    arch = 'deit_tiny_distilled_patch16_224'
    net = drawn(build_body(arch, 2, 'random', size=32))
    pp = body_preprocess(arch, 32)
    save_artifact(tmp_path/'model', net, Artifact(arch=arch, classes=('a', 'b'), preprocess=pp))
    about = json.loads((tmp_path/'model'/'config.json').read_text())
    assert about['pretrained_cfg']['classifier'] == ['head', 'head_dist'] and about['model_args'] == dict(img_size=32)
