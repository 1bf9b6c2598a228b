"What a head costs besides its features: each is as before, and not computed more often than needed"
from copy import deepcopy

import pytest, torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from conftest import TINY, small_bit, write_folder
from fastbit.bodies import FoldedModel, TransferModel, build_body, inference, model as bodies_model
from fastbit.bodies.inference import PackedConv2d
from fastbit.data import features, frozen_features, image_dataloaders
from fastbit.data.batches import LabelTargets
from fastbit.data.features import FrozenBody
from fastbit.training import head, transfer_learner

LAST = dict(memory_format=torch.channels_last)


@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp('head')/'data', dict(blue=9, green=8, red=7))
    return image_dataloaders(folder, 'test_efficientnet', size=32, bs=4, num_workers=0, check=False)


def learner(dls, **kwargs):
    torch.manual_seed(0)
    return transfer_learner(dls, **TINY, **kwargs)


@pytest.fixture
def learn(dls):
    learn = learner(dls)
    with learn.no_logging(), learn.no_bar(): yield learn


def counted(monkeypatch, place, name):
    "Count the calls of a function"
    calls, own = [], getattr(place, name)
    monkeypatch.setattr(place, name, lambda *args, **kwargs: calls.append(args) or own(*args, **kwargs))
    return calls


# the padding of TensorFlow

@pytest.mark.parametrize('size', [(32, 32), (31, 32), (33, 18), (7, 5), (3, 4)])
@pytest.mark.parametrize('kernel, stride, dilation', [(3, 2, 1), (5, 2, 1), (7, 3, 1), (3, 1, 1), (4, 2, 1), (1, 2, 1), (3, 2, 2)])
def test_depthwise_convolutions_need_no_padded_copy(size, kernel, stride, dilation, monkeypatch):
    padded, torch_draw = counted(monkeypatch, inference, 'pad_same'), torch.Generator().manual_seed(0)
    conv = Conv2dSame(16, 16, kernel, stride=stride, dilation=dilation, groups=16).to(**LAST)
    packed, x = PackedConv2d(conv, nn.ReLU6()), torch.randn(3, 16, *size, generator=torch_draw).contiguous(**LAST)
    with torch.inference_mode():
        ours = packed(x)
        plain = packed._run(inference.pad_same(x, conv.kernel_size, conv.stride, conv.dilation), (0, 0))
    assert len(padded) == 1   # the line above
    assert torch.equal(ours, plain) and ours.is_contiguous(**LAST)
    torch.testing.assert_close(ours, conv(x).clamp(0, 6), rtol=1e-5, atol=1e-5)


def test_images_of_another_size_go_through_the_same_packed_weights():
    conv = Conv2dSame(8, 8, 3, stride=2, groups=8).to(**LAST)
    packed = PackedConv2d(conv)
    with torch.inference_mode():
        for side in (16, 15, 9, 40):   # padding above or not, below or not
            x = torch.rand(2, 8, side, side).contiguous(**LAST)
            torch.testing.assert_close(packed(x), conv(x), rtol=1e-5, atol=1e-6)


def test_a_body_has_the_same_features_as_with_padded_copies(monkeypatch):
    torch.manual_seed(0)
    model, x = TransferModel(build_body('tf_efficientnet_lite0', 3, weights='random')).eval(), torch.rand(3, 3, 64, 64)
    padded = counted(monkeypatch, inference, 'pad_same')
    ours = FoldedModel(model)(x)
    assert len(padded) == 2   # of the stem, which is no depthwise convolution: in the check, and for the batch
    monkeypatch.setattr(PackedConv2d, '_run_even', lambda self, x, even: self._run(
        inference.pad_same(x, self.conv.kernel_size, self.conv.stride, self.conv.dilation), (0, 0)))
    assert torch.equal(FoldedModel(model)(x), ours) and len(padded) == 2+2*5


# labels, digests, modes

def test_labels_are_looked_up_by_class(learn, monkeypatch):
    for dl in learn.dls.loaders:
        plain = torch.tensor([int(dl.dataset.tls[1][i]) for i in range(dl.n)])
        made = counted(monkeypatch, LabelTargets, '_make')
        assert torch.equal(head._labels(dl), plain) and head._labels(dl).dtype == plain.dtype
        assert type(head._labels(dl)) is torch.Tensor and len(made) <= 3*3   # three calls, three classes
        monkeypatch.setattr(LabelTargets, 'knows', lambda labels: False)   # other transforms: image by image
        assert torch.equal(head._labels(dl), plain)
        monkeypatch.undo()


def test_a_body_is_digested_and_folded_once_in_a_fit(learn, monkeypatch):
    digests, folds = counted(monkeypatch, features, 'body_digest'), counted(monkeypatch, features, 'FoldedModel')
    learn.fit_head(1)
    assert len(digests) == len(folds) == 1
    learn.fit_head(1)
    assert len(digests) == 2 and len(folds) == 1   # the weights may have changed; all features are cached
    with torch.no_grad(): learn.model.net.conv_stem.weight.data.add_(.1)   # a change that torch does not count
    learn.fit_head(1)
    assert len(digests) == 3 and len(folds) == 2 and learn.head_features[0].computed == len(learn.dls.train.items)


def test_features_by_a_frozen_body_are_those_by_its_model(learn):
    paths, pp, body = learn.dls.valid.items, learn.dls.preprocess, FrozenBody(learn.model, 3)
    a, b = frozen_features(learn.model, paths, pp, last=3, cache=False), frozen_features(body, paths, pp, cache=False)
    assert (a.rows == b.rows).all() and a.difference == b.difference and a.rows.shape[1:] == body.shape(pp.size)
    with pytest.raises(ValueError, match='ends before stage 3'): frozen_features(body, paths, pp, last=2)


@pytest.mark.parametrize('bn', ['frozen', 'affine', 'train'])
@pytest.mark.parametrize('n', [0, 2, 5])
def test_modes_of_modules(bn, n):
    model = TransferModel(build_body('test_efficientnet', 3, weights='random'), bn)
    model.freeze_to(n)
    frozen = {m for s in model.stages[:n] for m in s.modules}
    for mode in (True, True, False, True):
        model.train(mode)
        for name, m in model.net.named_modules():
            fixed = name in frozen or bn != 'train' and isinstance(m, nn.BatchNorm2d)
            assert m.training == (mode and not fixed), name


# the classifier alone

def test_a_classifier_alone_looks_at_no_layer_of_the_body(learn, monkeypatch):
    replaced = counted(monkeypatch, bodies_model, 'can_fuse')
    learn.fit_head(2)
    assert not replaced
    learn.freeze_to(3)
    learn.fit_head(1)
    assert replaced


@pytest.mark.parametrize('arch', ['test_efficientnet', 'small_bit'])
def test_a_classifier_alone_is_the_last_stage(arch):
    model = TransferModel(small_bit() if arch == 'small_bit' else build_body(arch, 3, weights='random')).train()
    nn.init.normal_(model.net.get_classifier().weight)
    n = len(model.stages)-1
    x = torch.rand(2, 3, 64, 64)
    whole = deepcopy(model).eval()
    with torch.no_grad(): rows = bodies_model.run_stages(whole.net, whole.stages, whole.normalized(x), last=n)
    with model.starting_at(n): ours = model.eval()(rows)
    assert torch.equal(ours, whole(x)) and ours.requires_grad
