"Bodies without a published recipe, a convolutional one and a transformer: the workflow, the recipes, the errors"
import json, warnings
from pathlib import Path

import pytest, timm, torch

from conftest import write_folder
from fastbit.baseline import baseline
from fastbit.bodies import TransferModel, build_body, check_size
from fastbit.bodies.build import create_net
from fastbit.bodies.heads import LinearHead
from fastbit.data import image_dataloaders
from fastbit.export import load_predictor
from fastbit.report.cam import class_activation
from fastbit.training import transfer_learner

ARCHS = ('test_resnet', 'test_vit')
DISTILLED = 'deit_tiny_distilled_patch16_224'   # the mean of two classifiers, on two tokens
SMALL = dict(size=32, num_workers=0)


@pytest.fixture(scope='module')
def data(tmp_path_factory): return write_folder(tmp_path_factory.mktemp('any')/'data', dict(blue=10, green=10, red=8))


@pytest.fixture(scope='module', params=[*ARCHS, DISTILLED])
def learn(request, data):
    dls = image_dataloaders(data, request.param, bs=8, **SMALL)
    return transfer_learner(dls, request.param, 'random')


def test_the_seven_lines(learn, tmp_path):
    with learn.no_bar(), learn.no_logging():
        learn.fit_head(2, 1e-2)
        before = {k: v.clone() for k, v in learn.model.net.state_dict().items()}
        learn.fit_head(1, 1e-2)
        moved = {k for k, v in learn.model.net.state_dict().items() if not torch.equal(v, before[k])}
        assert moved == set(learn.model.stages[-1].params)
        learn.fine_tune(1)
    found = learn.evaluate(show=False)
    learn.export(tmp_path/'model', found)
    x = torch.rand(2, 3, 32, 32)
    plain = timm.create_model(f'local-dir:{tmp_path/"model"}', pretrained=True).eval()
    with torch.no_grad():
        ours = learn.model.eval()(x)
        torch.testing.assert_close(plain(learn.model.normalized(x)), ours, rtol=1e-4, atol=1e-5)
    predictor = load_predictor(tmp_path/'model', 'cpu')
    probs, _ = learn.get_preds(ds_idx=1)
    files = [str(f) for f in learn.dls.valid.items]
    found = torch.tensor(predictor.predict(files).probability.to_numpy(), dtype=torch.float32)
    torch.testing.assert_close(found, probs.max(1).values, rtol=1e-3, atol=1e-4)
    by_features = predictor.head_probs(predictor.embed(files).features)
    torch.testing.assert_close(by_features.max(1).values, probs.max(1).values, rtol=1e-3, atol=1e-4)


def test_cached_features_train_as_images_do(learn):
    "Logistic regression on the cached features is the model's own answer"
    with learn.no_bar(), learn.no_logging():
        learn.freeze()
        learn.fit_head(solver='lbfgs')
    live, _ = learn.get_preds(ds_idx=0)
    f = learn.head_features[0]
    x = torch.from_numpy(f.rows[f.index[:, 0]]).flatten(1)
    head = LinearHead(learn.model.net)
    torch.testing.assert_close((x@head.weight.T + head.bias).softmax(1).sum(0), live.sum(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize('recipe, more', [
    ('head', {}), ('onecycle', dict(epochs=2)), ('auto', dict(n_steps=6)), ('hyperrule', dict(n_steps=5, batch_size=8))])
def test_every_recipe(arch, recipe, more, data, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # a rule made for BiT, few images
        res = baseline(data, arch=arch, weights='random', recipe=recipe, out=tmp_path/'out', verbose=False, **SMALL, **more)
    assert 0 <= res.evaluation.accuracy <= 1
    page = (tmp_path/'out'/'report.html').read_text()
    assert ('These maps are gradient-based' in page) == (arch == 'test_vit') and ('to one position' in page) == (arch == 'test_resnet')
    assert json.loads((tmp_path/'out'/'model'/'config.json').read_text()).get('model_args') == (dict(img_size=32) if arch == 'test_vit' else None)


def test_a_transformer_with_rotary_positions_trains_its_head_and_says_why_not_more(data):
    arch = 'eva02_tiny_patch14_224'
    dls = image_dataloaders(data, arch, size=56, bs=8, num_workers=0)
    learn = transfer_learner(dls, arch, 'random')
    with learn.no_bar(), learn.no_logging():
        learn.fit_head(1, 1e-2)
        with pytest.raises(ValueError, match=r'eva02_tiny_patch14_224 cannot begin at .*fit_one_cycle'): learn.fit_upper(4)
    with pytest.raises(ValueError, match='no exact class activation map'): class_activation(learn.model, torch.rand(1, 3, 56, 56))


@pytest.mark.parametrize('arch, size, words', [
    ('test_vit', 50, 'size=48 or size=56|size=48 or size=64'), ('vit_small_patch14_dinov2', 64, 'size=56 or size=70'),
    ('inception_v3', 64, 'size=')])
def test_a_size_that_a_body_does_not_take(arch, size, words, data):
    with pytest.raises(ValueError, match=words): image_dataloaders(data, arch, size=size, num_workers=0)


def test_loaders_of_another_size_are_refused_by_the_learner(data):
    dls = image_dataloaders(data, 'test_resnet', size=50, num_workers=0)
    with pytest.raises(ValueError, match='does not take images of 50 pixels'): transfer_learner(dls, 'test_vit', 'random')


def test_rates_that_an_architecture_does_not_have():
    with pytest.raises(ValueError, match='densenet121.* has no stochastic depth: omit drop_path_rate=0.1'):
        build_body('densenet121', 3, 'random', drop_path_rate=.1)
    assert build_body('test_vit', 3, 'random', drop_path_rate=.1).blocks[-1].drop_path1.drop_prob == pytest.approx(.1)


@pytest.mark.parametrize('arch', ['test_resnet', 'test_vit', 'mobilenetv3_small_050', 'densenet121'])
def test_dropout_comes_before_the_classifier_on_cached_features(arch):
    "As in the whole model: features are computed without it, and it is applied to them"
    from fastbit.bodies.steps import classify
    net = create_net(arch, 3, drop_rate=.5).train()
    torch.nn.init.normal_(net.get_classifier().weight)
    x = torch.rand(64, net.get_classifier().in_features)
    dropped = (classify(net, x) != classify(net, x)).any(1).float().mean()
    assert dropped > .9
    net.eval()
    assert torch.equal(classify(net, x), classify(net, x))
