"Bodies: what is published about them, how they are found, and which of them a leaderboard fine-tunes"
import subprocess, sys

import pytest, timm, torch

from fastbit.bodies import list_bodies, timm_name, weights
from fastbit.cli.command import main
from fastbit.core.published import closest_here, closest_in_cost, favorite_bodies, find_bodies, known_cost, published_bodies, published_body, same_body
from fastbit.studies import choice, leaderboard
from fastbit.studies.choice import choose_bodies, imagenet_favorite, imagenet_top1
from fastbit.studies.trials import Body
from conftest import look_at

KNOWN = {   # (top-1, GMACs, input) as timm's results/ list them
    'resnet50.a1_in1k': (.80218, 4.11, 224), 'tf_efficientnet_lite0.in1k': (.7484, .4, 224), 'convnext_tiny.in12k_ft_in1k': (.84186, 4.47, 224),
    'vit_base_patch16_224.augreg2_in21k_ft_in1k': (.85094, 17.6, 224), 'eva02_large_patch14_448.mim_m38m_ft_in22k_in1k': (.90056, 362.33, 448)}


# The table

def test_the_table_is_timms():
    bodies = published_bodies()
    assert len({b.name for b in bodies}) == len(bodies) > 1500 and sum(b.top1 is not None for b in bodies) > 1200
    assert sum(b.gmacs is None for b in bodies) < 10 and all(b.params > 1e4 and b.size >= 32 for b in bodies)
    for name, (top1, gmacs, size) in KNOWN.items():
        b = published_body(name)
        assert (b.top1, b.gmacs, b.size) == (pytest.approx(top1, abs=.002), pytest.approx(gmacs, rel=.02), size), name
    if timm.__version__ != '1.0.31': pytest.skip('the table is that of timm 1.0.31')
    known = {n for n in timm.list_models() if not n.startswith('efficientvim')}   # its classifiers are not linear
    assert {b.arch for b in bodies} == known and {b.name for b in bodies if '.' in b.name} == {n for n in timm.list_pretrained() if n.partition('.')[0] in known}


def test_rows_are_what_timm_says():
    for b in published_bodies()[::40]:
        cfg = timm.get_pretrained_cfg(b.name)
        assert (cfg.input_size[-1], cfg.license or '', cfg.hf_hub_id if b.repo else b.repo) == (b.size, b.license, b.repo), b.name
        first = published_body(b.arch)
        assert first.name in (b.arch, f'{b.arch}.{timm.get_pretrained_cfg(b.arch).tag}'), b.name


@pytest.mark.parametrize('arch', ['resnet50', 'mobilenetv4_conv_small', 'swin_tiny_patch4_window7_224', 'efficientnet_b0'])
def test_parameters_are_counted(arch):
    with torch.device('meta'): net = timm.create_model(arch, num_classes=0)
    assert sum(p.numel() for p in net.parameters()) == published_body(arch).params


def test_licenses_for_non_commercial_use_are_marked():
    by = {b.license: b.non_commercial for b in published_bodies()}
    assert by['cc-by-nc-4.0'] and by['fair-noncommercial-research-license'] and not by['apache-2.0'] and not by['mit'] and not by['bsd-3-clause']
    assert not any(b.non_commercial or not b.license for b in find_bodies(license='commercial'))


# The search

def test_words_and_limits():
    found = find_bodies('convnext small', max_params=60, license='APACHE')
    assert found and all('convnext' in b.name and 'small' in b.name and b.params_m <= 60 and b.license == 'apache-2.0' for b in found)
    assert [b.top1 for b in found if b.top1] == sorted((b.top1 for b in found if b.top1), reverse=True)
    costs = [b.gmacs for b in find_bodies('resnet', max_gmacs=5, sort='cost')]
    assert costs == sorted(costs) and costs[-1] <= 5
    assert {b.arch for b in find_bodies('resnet5?')} == {'resnet50'}
    assert published_body('resnetv2_50x1_bit.goog_in21k') in find_bodies('BiT-M-R50*')


def test_favorites_are_the_best_of_their_cost():
    for most, chosen in favorite_bodies(published_bodies()).items():
        assert len({b.family for b in chosen}) == len(chosen) <= 3
        better = [b for b in published_bodies() if b.repo and b.top1 and b.gmacs and most/3 < b.gmacs <= most and b.top1 > chosen[0].top1]
        assert not better, (most, better)


@pytest.mark.parametrize('name, same', [
    ('vit_b_16', 'vit_base_patch16_224'), ('mobilenet_v3_large', 'mobilenetv3_large_100'), ('EfficientNetB0', 'efficientnet_b0'), ('regnet_y_3_2gf', 'regnety_032'),
    ('google/vit-base-patch16-224', 'vit_base_patch16_224'), ('facebook/dinov2-base', 'vit_base_patch14_dinov2'), ('microsoft/resnet-50', 'resnet50'), ('alexnet', '')])
def test_names_of_other_libraries(name, same):
    assert same_body(name) == same and (not same or published_body(same)) and known_cost(name)


def test_all_other_names_are_in_the_table():
    from fastbit.core.published import _OTHER_NAMES, TORCHVISION_NAMES
    assert [v for v in (*_OTHER_NAMES.values(), *TORCHVISION_NAMES.values()) if not published_body(v)] == []


def test_names_that_differ_by_an_underscore_are_not_mixed_up():
    assert (same_body('regnet_y_16gf'), same_body('regnet_y_1_6gf'), same_body('RegNetY16GF')) == ('regnety_160', 'regnety_016', '')


def test_what_costs_as_much():
    at = published_body('resnet50')
    assert closest_in_cost(at.gmacs, at.params_m, published_bodies())[0].arch == 'resnet50'
    near = closest_in_cost(*known_cost('squeezenet1_1'), find_bodies('lcnet'), n=2)
    assert len(near) == 2 and all(b.params_m < 6 for b in near)


@pytest.mark.parametrize('name, words', [
    ('dinov2_vitb14', 'Did you mean vit_base_patch14_dinov2?'), ('alexnet', 'alexnet costs 0.71 GMACs and has 61.1 million parameters; closest in cost are '),
    ('facebook/convnext-tiny-224', 'Did you mean convnext_tiny?')])
def test_names_that_timm_does_not_have_are_answered(name, words):
    with pytest.raises(ValueError) as e: timm_name(name)
    assert words in str(e.value)


def test_weights_that_are_not_here_are_answered_with_the_closest_in_cost(monkeypatch):
    near = published_body('tf_efficientnet_lite4')
    monkeypatch.setattr(weights, 'closest_here', lambda name: near)
    with pytest.raises(FileNotFoundError, match=r"Use arch='tf_efficientnet_lite4' \(the closest in cost on this machine\), arch='tf_efficientnet_lite0' \(installed\)"):
        weights.hub_file('resnet50')
    assert closest_here('resnet50') in [b for b in published_bodies() if b.arch.startswith('tf_efficientnet_lite')] or closest_here('resnet50').repo


def test_the_list_of_bodies():
    df = list_bodies('resnet50')
    assert {'resnet50.a1_in1k', 'resnet50d.ra2_in1k'} <= set(df.name) and df.set_index('name').loc['resnet50.a1_in1k', 'gmacs'] == pytest.approx(4.1, abs=.1)
    assert set(list_bodies('lite', cached=True).weights) == {'bundled'}
    assert list_bodies('BiT-M-R50x1').recipe.tolist() == ['published'] and set(list_bodies('50x1_bit').recipe) == {'published'}


# The command

def test_the_command_starts_without_pytorch():
    code = ("import sys; from fastbit.cli.command import main; status = main(['bodies']); "
            "print([m for m in ('torch', 'timm', 'pandas', 'fastai', 'numpy') if m in sys.modules], status)")
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=60)
    *screen, last = out.stdout.splitlines()
    assert last == '[] 0' and 20 < len(screen) < 45 and max(map(len, screen)) < 130, out


def test_the_command_searches(capsys):
    assert main(['bodies', 'lite', '--cached']) == 0
    said = capsys.readouterr().out
    assert 'tf_efficientnet_lite0.in1k' in said and ' installed ' in said and 'efficientnet_lite0.ra_in1k' not in said
    assert main(['bodies', 'convnextv2', 'nano']) == 0
    assert 'cc-by-nc-4.0 !' in (said := capsys.readouterr().out) and 'does not allow commercial use' in said
    assert main(['bodies', 'resnet']) == 0
    assert '--all' in (short := capsys.readouterr().out) and len(short.splitlines()) < 35
    assert main(['bodies', 'resnet', '--all']) == 0 and len(capsys.readouterr().out.splitlines()) > 100
    assert main(['bodies', 'test_efficientnet.*', '--time']) == 0 and ' ms ' in capsys.readouterr().out


@pytest.mark.parametrize('words, message', [
    (['vit_b_16'], 'Did you mean vit_base_patch16_224?'), (['resnt50'], 'Did you mean resnet50'), (['resnet', '--license', 'apachee'], 'No body that matches resnet is within these limits'),
    (['--sort', 'speed'], '--sort speed: choose from accuracy'), (['--max-params', '-1'], '--max-params -1')])
def test_what_the_command_does_not_find(words, message, capsys):
    assert main(['bodies', *words]) == 2
    assert message in capsys.readouterr().err.replace("'", '').replace('-1.0', '-1')


# The choice of a leaderboard

def row(name, score, failed=''): return dict(body=name, recipe='probe', score=score, loss=1-score, failed=failed)
def body(name, weights='auto'): return Body(name, name, weights)


def test_the_favorite_is_the_most_accurate_on_imagenet():
    bodies = [body('tf_efficientnet_lite0'), body('tf_efficientnet_lite2'), body('tf_efficientnet_lite4', 'random'), body('tf_efficientnet_b0.ns_jft_in1k')]
    found = imagenet_favorite(bodies)
    assert found.body == bodies[3] and found.top1 == published_body('tf_efficientnet_b0.ns_jft_in1k').top1 and imagenet_top1(bodies[2]) is None
    assert imagenet_top1(body('tf_efficientnetv2_s.in21k')) == published_body('tf_efficientnetv2_s.in21k_ft_in1k').top1
    assert imagenet_favorite([bodies[2]]) is None


@pytest.mark.parametrize('top, top1, chosen', [
    (1, dict(a=.7, b=.75, c=.8), {'a': 'best probe', 'c': 'ImageNet favorite (80.0%)'}),
    (2, dict(a=.7, b=.75, c=.8), {'a': 'best probe', 'b': 'probe 2', 'c': 'ImageNet favorite (80.0%)'}),
    (2, dict(a=.7, b=.9), {'a': 'best probe', 'b': 'probe 2, ImageNet favorite (90.0%)'}),
    (1, dict(a=.9), {'a': 'best probe, ImageNet favorite (90.0%)'}), (1, {}, {'a': 'best probe'}), (0, dict(c=.9), {}),
    (1, dict(a=.7, d=.99), {'a': 'best probe, ImageNet favorite (70.0%)'})])   # d failed
def test_the_choice(top, top1, chosen):
    rows = [row('c', .5), row('a', .9), row('b', .8), row('d', float('nan'), 'no weights')]
    found = choose_bodies(rows, [body(n) for n in 'abcd'], top, top1=lambda b: top1.get(b.name))
    assert {c.body.name: c.why for c in found} == chosen and all(c.row['body'] == c.body.name for c in found)


def test_the_favorite_is_fine_tuned_next_to_the_best_probe(folder, tmp_path, monkeypatch, capsys):
    archs = ['test_efficientnet=random', 'test_efficientnet_ln=random', 'test_efficientnet_gn=random']
    args = dict(archs=archs, size=32, recipes='head', top=1, num_workers=0, out=tmp_path/'board')
    plain = leaderboard(folder, verbose=False, **args)
    assert (plain.rows.why != '').sum() == 1 and (plain.rows.recipe == 'head').sum() == 1   # nothing is published about random weights
    worst = plain.rows[plain.rows.recipe == 'probe'].body.iloc[-1]
    monkeypatch.setattr(choice, 'imagenet_top1', lambda b: .9 if b.name == worst else .5)
    board = leaderboard(folder, **args)
    assert f'{worst} is fine-tuned in any case, for its ImageNet accuracy of 90.0%' in capsys.readouterr().out
    tuned = board.rows[board.rows.recipe == 'head'].set_index('body')
    assert tuned.why[worst] == 'ImageNet favorite (90.0%)' and sorted(tuned.why) == ['ImageNet favorite (90.0%)', 'best probe']
    seen = look_at(board.out/'leaderboard.html', 390)
    assert 'ImageNet favorite' in seen['text'] and 'What to do next' in seen['text'] and seen['too_wide'] <= 0
    assert 'highest published ImageNet accuracy' in str(board) and 'next: ' in str(board)
