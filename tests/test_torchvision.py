"Weights of torchvision's models in timm's: the same logits"
from functools import partial

import pytest, timm, torch, torchvision
from torchvision.models import VisionTransformer

from fastbit.bodies import build_body, timm_name

tiny_vit = partial(VisionTransformer, 64, 16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768)
FAMILIES = {   # timm's name -> torchvision's model
    'resnet18': 'resnet18',
    'densenet121': 'densenet121',
    'mobilenetv3_small_100': 'mobilenet_v3_small',
    'efficientnet_b0': 'efficientnet_b0',
    'convnext_tiny': 'convnext_tiny',
    'regnetx_004_tv': 'regnet_x_400mf',
    'regnety_004': 'regnet_y_400mf',
    'vit_tiny_patch16_224': tiny_vit}
LARGER = {
    'resnext50_32x4d': 'resnext50_32x4d',
    'wide_resnet50_2': 'wide_resnet50_2',
    'mobilenetv3_large_100': 'mobilenet_v3_large',
    'efficientnet_b5': 'efficientnet_b5',
    'efficientnetv2_s': 'efficientnet_v2_s',
    'swin_tiny_patch4_window7_224': 'swin_t',
    'vgg11': 'vgg11',
    'vit_base_patch16_224': 'vit_b_16'}


def as_trained(net):
    "Statistics, weights and layer scales that a wrong name or epsilon would not survive"
    torch.manual_seed(1)
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(m.running_mean, -.1, .1)
            torch.nn.init.uniform_(m.running_var, .01, .1)
            torch.nn.init.uniform_(m.weight, .1, .3)
    for n, p in net.named_parameters():
        if 'layer_scale' in n or 'head' in n or p.ndim == 1: torch.nn.init.normal_(p, .1, .1)
    return net.eval()


def check_same(arch, model, tmp_path, size):
    make = getattr(torchvision.models, model) if isinstance(model, str) else model
    theirs = as_trained(make(num_classes=1000))
    torch.save(theirs.state_dict(), tmp_path/'theirs.pth')
    ours = build_body(arch, weights=tmp_path/'theirs.pth', size=size)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad(): a, b = ours(x), theirs(x)
    assert (a-b).abs().max() <= 2e-4*b.abs().max() and b.std() > 1e-3
    new = build_body(arch, 3, tmp_path/'theirs.pth', size=size).state_dict()
    assert all(torch.equal(new[k], v) for k, v in ours.state_dict().items() if new[k].shape == v.shape)


@pytest.mark.parametrize('arch', FAMILIES)
def test_torchvisions_weights(arch, tmp_path): check_same(arch, FAMILIES[arch], tmp_path, 64)


@pytest.mark.slow
@pytest.mark.parametrize('arch', LARGER)
def test_torchvisions_weights_of_larger_models(arch, tmp_path):
    check_same(arch, LARGER[arch], tmp_path, 224 if 'swin' in arch or 'vit' in arch else 64)


def test_a_file_of_another_family_is_refused(tmp_path):
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), tmp_path/'theirs.pth')
    for arch in ('mobilenetv3_large_100', 'resnet18', 'vit_tiny_patch16_224'):
        with pytest.raises(ValueError, match='does not fit'): build_body(arch, 3, tmp_path/'theirs.pth')


def test_position_embeddings_are_resized(tmp_path):
    "A file for 224 pixels, trained further at 64: what timm does with it"
    net = timm.create_model('vit_tiny_patch16_224', num_classes=5)
    torch.save(net.state_dict(), tmp_path/'w.pth')
    got = build_body('vit_tiny_patch16_224', 3, tmp_path/'w.pth', size=64)
    theirs = timm.create_model('vit_tiny_patch16_224', num_classes=5, img_size=64, pretrained=True,
                               pretrained_cfg_overlay=dict(file=str(tmp_path/'w.pth'), num_classes=5))
    assert got.pos_embed.shape == (1, 17, 192) and torch.equal(got.pos_embed, theirs.pos_embed)


@pytest.mark.parametrize('name, words', [
    ('vit_b_16', "arch='vit_base_patch16_224'"), ('mobilenet_v3_large', "arch='mobilenetv3_large_100'"),
    ('resnet5O', 'resnet50'), ('efficientvim_m1', '4 classifiers')])
def test_other_names_lead_to_timms(name, words):
    with pytest.raises(ValueError, match=words): timm_name(name)


def test_torchvisions_functions_name_the_model():
    with pytest.raises(TypeError, match="arch='resnet50'"): timm_name(torchvision.models.resnet50)
