"Activation maps: exact, gradient-based or absent, in place, and in the reports of all tasks"
import sys
from base64 import b64decode
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import numpy as np, pytest, timm, torch
from PIL import Image
from torch import nn

from conftest import picture
from fastbit.bodies import TransferModel, body_preprocess
from fastbit.bodies.build import create_net
from fastbit.data.features import view_pixels
from fastbit.metrics.numbers import NumberScale
from fastbit.metrics.quantity import number_task
from fastbit.metrics.several import labels_task
from fastbit.metrics.task import SINGLE_LABEL
from fastbit.report import Findings, activation_maps, class_activation, find_map_method, overlay
from fastbit.report.gradient_map import MapLayer, gradient_activation
from fastbit.report.map_pictures import map_section
from fastbit.report.page import render_page

SIZE = 64


def model_of(arch, n=3, size=SIZE, **kwargs):
    "With a random classifier, and BatchNorm's statistics as after training"
    torch.manual_seed(0)
    if kwargs: net = timm.create_model(arch, num_classes=n, img_size=size, pretrained_cfg_overlay=dict(input_size=(3, size, size)), **kwargs)
    else: net = create_net(arch, n, size=size)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): nn.init.uniform_(m.running_var, .5, 2)
    for p in net.get_classifier().parameters(): nn.init.normal_(p)
    return TransferModel(net).eval()


def images(n, size=SIZE): return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))


KINDS = {   # what a body ends in -> how its maps are made, and at which layer
    'test_resnet': ('exact', None),                                       # mean, linear
    'swin_tiny_patch4_window7_224': ('exact', None),                      # channels last
    'resmlp_12_224': ('exact', None),                                     # tokens
    'test_convnext': ('gradient', MapLayer('norm_pre')),                  # a norm after the mean
    'mobilenetv3_small_050': ('gradient', MapLayer('blocks.5.0')),        # a convolution after the mean
    'test_mambaout': ('gradient', MapLayer('stages.3')),                  # channels last, an MLP
    'test_vit': ('gradient', MapLayer('blocks.5.norm1')),                 # the last attention gives the class token
    'cait_xxs24_224': ('gradient', MapLayer('blocks_token_only.0.norm1')), # the class token comes after the blocks
    'pit_ti_224': ('gradient', MapLayer('transformers.2.blocks.3.norm1'))}   # blocks inside of stages that return two tensors


@pytest.mark.parametrize('arch', KINDS)
def test_the_method_is_found_by_running_the_body(arch):
    model = model_of(arch)
    method = find_map_method(model, SIZE)
    assert (method.kind, method.layer) == KINDS[arch]
    assert (method.kind == 'exact') == (not method.why)
    maps, logits = activation_maps(model, images(2), [0, 2], method)
    assert maps.ndim == 3 and maps.shape[1] == maps.shape[2] > 1 and (maps != 0).any()
    torch.testing.assert_close(logits, model(images(2)))
    if method.kind == 'exact':
        bias = model.net.get_classifier().bias[[0, 2]]
        torch.testing.assert_close(maps.mean((1, 2)) + bias, logits[[0, 1], [0, 2]], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('arch, layer', [('tf_efficientnet_lite0', 'bn2'), ('swin_tiny_patch4_window7_224', 'norm'), ('resmlp_12_224', 'norm')])
def test_gradient_times_activation_is_the_exact_map_where_there_is_one(arch, layer):
    "Of maps, of maps with channels last, and of tokens"
    model = model_of(arch)
    x = images(2)
    exact, logits = class_activation(model, x, [0, 2])
    made, same = gradient_activation(model, x, [0, 2], layer=MapLayer(layer))
    torch.testing.assert_close(made, exact, rtol=1e-3, atol=1e-4*exact.abs().max().item())
    torch.testing.assert_close(same, logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(class_activation(model, x)[0], class_activation(model, x, logits.argmax(1))[0])


def scaled(layer, position, side, by):
    "A forward hook that scales one position of an output, wherever its channels are"
    def hook(module, args, output):
        several = isinstance(output, tuple)
        t = (output[layer.part] if several else output).clone()
        row, col = position//side, position % side
        if t.ndim == 3: t[:, t.shape[1] - side*side + position] *= by
        elif t.shape[2] == t.shape[3]: t[:, :, row, col] *= by
        else: t[:, row, col] *= by
        return tuple(t if k == layer.part else o for k, o in enumerate(output)) if several else t
    return hook


@pytest.mark.parametrize('arch', [a for a, (kind, _) in KINDS.items() if kind == 'gradient'])
def test_a_map_is_the_slope_of_the_logit_when_a_position_fades(arch):
    "By central differences: at the layer one position at a time is scaled a little"
    model, x, step = model_of(arch).double(), images(2).double(), 1e-3
    method = find_map_method(model, SIZE)
    maps, _ = activation_maps(model, x, [0, 2], method)
    side, module = maps.shape[-1], model.net.get_submodule(method.layer.path)
    for position in {0, 1, side, side*side-1}:
        logits = []
        for by in (1-step, 1+step):
            handle = module.register_forward_hook(scaled(method.layer, position, side, by))
            with torch.no_grad(): logits.append(model(x)[[0, 1], [0, 2]])
            handle.remove()
        slope = (logits[1] - logits[0])/(2*step)*side*side
        torch.testing.assert_close(maps[:, position//side, position % side].double(), slope, rtol=.02, atol=1e-3*maps.abs().max().item())


def test_nothing_of_the_model_changes():
    model = model_of('test_vit')
    model.freeze_to(3)
    model.train()
    before = [(p.requires_grad, p.grad, p.clone()) for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    activation_maps(model, images(2))
    assert [m.training for m in model.modules()] == modes
    assert all(p.requires_grad == r and p.grad is g and torch.equal(p, q) for p, (r, g, q) in zip(model.parameters(), before))
    assert not any(m._forward_hooks for m in model.modules())


def test_tokens_in_another_order_are_noticed(monkeypatch):
    "A map whose places are not those of the image would be worse than none"
    for pool in (dict(), dict(global_pool='avg', fc_norm=False)):   # gradient-based, exact
        model = model_of('test_vit', **pool)
        assert find_map_method(model, SIZE).kind != 'none'
        order = torch.tensor([0, *1 + torch.randperm(16, generator=torch.Generator().manual_seed(0))])
        monkeypatch.setattr(model.net.norm_pre, 'forward', lambda x: x[:, order])
        method = find_map_method(model, SIZE)
        assert method.kind == 'none' and 'a gradient-based map is not possible either' in method.why
        with pytest.raises(ValueError, match='no exact class activation map'): activation_maps(model, images(1), method=method)


def test_a_module_that_returns_its_input_is_not_taken_for_the_last():
    "As CoaT's parallel blocks do: the gradient of what they hand on is that of what follows alone"
    assert find_map_method(model_of('coat_tiny'), SIZE).kind == 'none'   # and no map of zeros


def test_one_position_is_no_map():
    method = find_map_method(model_of('test_resnet', size=32), 32)
    assert (method.kind, method.why) == ('none', 'test_resnet reduces images of 32 pixels to one position. Train on larger images.')


def test_without_captum(monkeypatch):
    model = model_of('test_vit')
    monkeypatch.setitem(sys.modules, 'captum.attr', None)
    with pytest.raises(ImportError, match=r'need captum. Run: pip install captum'): activation_maps(model, images(1))
    assert activation_maps(model_of('test_resnet'), images(1))[0].shape == (1, 2, 2)   # exact maps do not need it


# Reports

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp('drawn'), []
    for i in range(12):
        found.append(folder/f'{i}.png')
        picture(i, i % 3).save(found[-1])
    return found


def findings(files, task, probs, targs, arch='test_resnet', classes=('red', 'green', 'blue'), **more):
    model = model_of(arch, len(classes))
    dls = SimpleNamespace(vocab=list(classes), preprocess=replace(body_preprocess(arch), size=SIZE, train_size=None))
    return Findings(learn=SimpleNamespace(model=model, dls=dls, task=task), probs=torch.as_tensor(probs), targs=torch.as_tensor(targs), paths=files, **more)


def right_half(picture) -> np.ndarray:
    "The map of a picture"
    image = np.asarray(Image.open(BytesIO(b64decode(picture.uri.partition(',')[2])))).astype(float)
    return image[:, -image.shape[0]:]


def redness(picture) -> np.ndarray:
    half = right_half(picture)
    return half[..., 0] - half[..., 2]


def test_a_report_of_one_label_has_mistakes_first(files):
    probs, targs = np.full((12, 3), .1, np.float32), np.arange(12) % 3
    probs[np.arange(12), targs] = .8
    probs[:5] = probs[:5, [1, 2, 0]]   # five mistakes
    section = map_section(findings(files, SINGLE_LABEL, probs, targs))
    assert [p.wrong for p in section.pictures] == [True]*4 + [False]*4
    assert not section.note and 'for blue: blue (80%), true class red' in section.pictures[0].alt
    note = map_section(findings(files, SINGLE_LABEL, probs, targs, arch='test_vit')).note
    assert 'gradient-based, which is an approximation' in note and 'at blocks.5.norm1' in note
    assert map_section(findings(files, SINGLE_LABEL, probs, targs, n_models=2)) is None


def test_several_labels_have_a_map_each(files):
    task = labels_task(['red', 'green', 'blue'])
    targs, probs = np.zeros((12, 3), np.float32), np.full((12, 3), .1, np.float32)
    targs[0] = 1, 1, 0
    probs[0] = .9, .2, .7
    f = findings(files, task, probs, targs)
    section = map_section(f)   # the others have no label
    assert [(p.caption, p.wrong) for p in section.pictures] == [('red (90%)', False), ('blue (70%), extra', True), ('green (20%), missing', True)]
    x = torch.from_numpy(np.stack([view_pixels(files[0], 0, f.learn.dls.preprocess)]*3))
    maps, _ = activation_maps(f.learn.model, x, [0, 2, 1])
    drawn = [overlay(Image.fromarray(x[0].numpy().transpose(1, 2, 0)).resize((128, 128), 0), cam) for cam in maps]
    for k, p in enumerate(section.pictures):   # each is the map of its own label
        shown = right_half(p)
        distance = [np.abs(shown - np.asarray(o.resize(shown.shape[:2]), float)).mean() for o in drawn]
        assert np.argmin(distance) == k and distance[k] < 15, distance


def test_a_number_has_a_map_of_both_signs(files):
    task = number_task(NumberScale.of(np.arange(12.)))
    f = findings(files, task, np.linspace(0, 11, 12)[:, None], np.arange(12.)[::-1].copy(), classes=('level',))
    nn.init.zeros_(f.learn.model.net.fc.weight)   # nothing raises the number, nothing lowers it
    section = map_section(f)
    assert len(section.pictures) == 8 and section.title == 'Activation maps' and 'lowered' in section.words
    assert section.pictures[0].caption == 'predicted 0, true 11'
    plain = Image.open(files[0]).convert('RGB')
    assert abs(redness(section.pictures[0]).mean() - np.subtract(*np.asarray(plain, float).mean((0, 1))[[0, 2]])/2) < 8   # white over it
    nn.init.ones_(f.learn.model.net.fc.weight)
    assert redness(map_section(f).pictures[0]).max() > 60   # features after a ReLU raise it


def test_a_report_without_captum_says_what_to_install(files, monkeypatch):
    monkeypatch.setitem(sys.modules, 'captum.attr', None)
    probs = np.full((12, 3), 1/3, np.float32)
    section = map_section(findings(files, SINGLE_LABEL, probs, np.arange(12) % 3, arch='test_vit'))
    assert not section.pictures and section.words.endswith('Gradient-based maps need captum. Run: pip install captum')
    page = render_page('maps.html', maps=section)
    assert '<section' not in page and 'test_vit has no exact class activation map' in page
