"`weights=` takes what training scripts write, and runs nothing of it"
import argparse, os, pathlib, pickle
from collections import OrderedDict

import pytest, torch
from fastai.learner import Learner
from safetensors.torch import save_file
from torch import nn

from fastbit.export import Artifact, save_artifact
from fastbit.bodies import body_preprocess, build_body, weights_source
from fastbit.cli.command import main
from fastbit.data import image_dataloaders
from fastbit.training import transfer_learner
from fastbit.bodies.weights import weights_file
from conftest import TINY


def net(seed=0, n=5):
    torch.manual_seed(seed)
    res = build_body('test_efficientnet', n, 'random')
    for p in res.parameters(): nn.init.normal_(p, std=.1)
    return res


NET = net()
def state(prefix='', of=NET): return OrderedDict((prefix + k, v.clone()) for k, v in of.state_dict().items())


def assert_loaded(weights, of=NET):
    got = build_body('test_efficientnet', 3, weights).state_dict()
    assert all(torch.equal(got[k], v) for k,
            v in of.state_dict().items() if 'classifier' not in k) and not got['classifier.weight'].any()


def timms(**kwargs):
    "What timm's train.py saves"
    optimizer = torch.optim.AdamW(NET.parameters())
    return dict(epoch=3, arch='test_efficientnet', state_dict=state(), optimizer=optimizer.state_dict(), version=2,
            args=argparse.Namespace(model='test_efficientnet', output=pathlib.PurePosixPath('x'), lr=.1),
                amp_scaler=dict(scale=65536.), metric=71.5) | kwargs


WRITTEN = {
    'model_best.pth.tar': timms(), 'distributed.pth.tar': timms(state_dict=state('module.')),
    'compiled.pth.tar': timms(state_dict=state('_orig_mod.module.')),
    'averaged.pth.tar': timms(state_dict=state(of=net(1)), state_dict_ema=state()),
    'no_ema.pth.tar': timms(state_dict_ema=None),
    'lightning.ckpt': dict(epoch=1, state_dict=state('model.') | {'criterion.weight': torch.ones(3)}, callbacks={},
    hyper_parameters=dict(arch='x', path=pathlib.PurePosixPath('y')), pytorch_lightning_version='2'),
    'teacher.ckpt': dict(state_dict=state('model.') | state('ema.', net(1))),
    'model.pt': dict(model_state_dict=state(), loss=.5), 'pytorch_model.bin': state(), 'plain.pth': state(),
    'fastais.pth': {'model': state('0.model.') | {'1.8.weight': torch.ones(3, 5)}},
    'no_ending': state()}


@pytest.mark.parametrize('name', WRITTEN)
def test_files_of_training_scripts(name, tmp_path):
    torch.save(WRITTEN[name], tmp_path/name)
    assert_loaded(tmp_path/name)


def test_the_format_before_torch_1_6(tmp_path):
    torch.save(timms(), tmp_path/'old.pth.tar', _use_new_zipfile_serialization=False)
    assert_loaded(tmp_path/'old.pth.tar')
    torch.save(OrderedDict((k, v) for k, v in state().items() if 'num_batches' not in k), tmp_path/'older.pth')
    assert_loaded(tmp_path/'older.pth')


def test_the_file_of_a_learner_saved_with_its_optimizer(folder, tmp_path):
    "fastai's default; it asked for with_opt=False"
    learn = transfer_learner(image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0), **TINY,
            path=tmp_path)
    with learn.no_logging(), learn.no_bar():
        learn.unfreeze(); learn.fit_one_cycle(1, 1e-3, checkpoint=tmp_path/'run.safetensors')
    for with_opt in (True, False):
        assert_loaded(learn.save(f'opt{with_opt}', with_opt=with_opt), learn.model.net)
    assert_loaded(tmp_path/'run.safetensors', learn.model.net)   # a checkpoint, with the state of the optimizer
    Learner.export(learn, 'whole.pkl')
    with pytest.raises(ValueError, match='never code'): build_body('test_efficientnet', 3, tmp_path/'whole.pkl')


def test_folders(tmp_path, monkeypatch):
    save_artifact(tmp_path/'results'/'model', NET, Artifact('test_efficientnet', tuple('abcde'),
            body_preprocess('test_efficientnet', 32)))
    for folder in (tmp_path/'results', tmp_path/'results'/'model'): assert_loaded(folder)
    assert weights_source('test_efficientnet',
            tmp_path/'results').where == str(tmp_path/'results'/'model'/'model.safetensors')
    (tmp_path/'hub').mkdir(); torch.save(state(), tmp_path/'hub'/'pytorch_model.bin')
    assert_loaded(tmp_path/'hub')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert_loaded('~/results')
    monkeypatch.chdir(tmp_path)
    assert weights_source('tf_efficientnet_b0', 'hub').kind == 'hub'   # the words before folders of their names


def test_folders_without_one_file(tmp_path):
    for name in ('empty', 'several', 'begun'): (tmp_path/name).mkdir()
    for name in ('model_best.pth.tar', 'last.pth.tar'): torch.save(timms(), tmp_path/'several'/name)
    save_file(state(), tmp_path/'begun'/'checkpoint.safetensors')
    for name, error, words in (('empty', FileNotFoundError, 'has no weights'),
            ('several', ValueError, r'2 weights files \(last.pth.tar, model_best.pth.tar\)'),
            ('begun', FileNotFoundError, 'rerun its command to resume it')):
        with pytest.raises(error, match=words): weights_file(tmp_path/name)
    for word, error in (('gone.pth.tar', FileNotFoundError), ('runs/gone', FileNotFoundError),
            ('pretrained', ValueError)):
        with pytest.raises(error, match=word): weights_file(word)


def test_files_of_other_bodies_say_so(tmp_path):
    torch.save(timms(arch='resnet50', state_dict=OrderedDict(fc=torch.ones(2))), tmp_path/'other.pth.tar')
    with pytest.raises(ValueError, match="other.pth.tar does not fit .* it is of resnet50: arch='resnet50'"): build_body('test_efficientnet', 3, tmp_path/'other.pth.tar')
    save_artifact(tmp_path/'model', NET, Artifact('test_efficientnet', tuple('abcde'),
            body_preprocess('test_efficientnet', 32)))
    with pytest.raises(ValueError, match="arch='test_efficientnet'"): build_body('tf_efficientnet_lite0', 3,
            tmp_path/'model')
    torch.save(dict(state_dict=state('student.') | state('teacher.')), tmp_path/'two.ckpt')
    with pytest.raises(ValueError, match=r"two.ckpt holds 2 models \('student.', 'teacher.'\)"): build_body('test_efficientnet', 3, tmp_path/'two.ckpt')


def test_files_without_a_table_of_tensors(tmp_path):
    torch.save(NET, tmp_path/'whole.pt')
    torch.save(dict(epoch=1, metric=.5), tmp_path/'none.pt')
    torch.save(torch.ones(3), tmp_path/'tensor.pt')
    (tmp_path/'keras.h5').write_bytes(b'\x89HDF\r\n\x1a\n' + b'0'*99)
    for name, words in (('whole.pt', 'never code'), ('none.pt', 'but epoch, metric'), ('tensor.pt', 'but a Tensor'),
            ('keras.h5', 'cannot be read as weights')):
        with pytest.raises(ValueError, match=f'{name} .*{words}'): build_body('test_efficientnet', 3, tmp_path/name)


class Runs:
    "Pickled, a call of any function"
    def __init__(self, f, *args): self.call = f, args
    def __reduce__(self): return self.call


def test_no_code_of_a_file_runs(tmp_path, monkeypatch):
    "Also not where all else in it is weights; the classes that it names become inert"
    mark = tmp_path/'ran'
    for i, bomb in enumerate((Runs(os.mkdir, str(mark)), Runs(pathlib.Path.touch, mark),
            Runs(eval, f'open({str(mark)!r}, "w")'), Runs(exec, f'open({str(mark)!r}, "w")'),
            Runs(getattr(os, 'system'), f'touch {mark}'))):
        for zipped in (True, False):
            torch.save(timms(args=bomb), tmp_path/f'{i}.pth.tar', _use_new_zipfile_serialization=zipped)
            try: assert_loaded(tmp_path/f'{i}.pth.tar')
            except ValueError as e: assert 'never code' in str(e)
            assert not mark.exists()
        torch.save(timms(state_dict=dict(state(), extra=bomb)), tmp_path/f'{i}.pth')
        with pytest.raises(ValueError, match='never code'): build_body('test_efficientnet', 3, tmp_path/f'{i}.pth')
        (tmp_path/f'{i}.pt').write_bytes(pickle.dumps(bomb))
        with pytest.raises(ValueError, match='never code'): build_body('test_efficientnet', 3, tmp_path/f'{i}.pt')
        assert not mark.exists()


def test_on_the_command_line(folder, tmp_path, capsys):
    torch.save(timms(), tmp_path/'model_best.pth.tar')
    args = ['baseline', str(folder), '--arch', 'test_efficientnet', '--size', '32', '--workers', '0', '--device',
            'cpu', '--dry-run', '--no-cache']
    assert main([*args, '--weights', str(tmp_path/'model_best.pth.tar')]) == 0 and 'model_best.pth.tar' in capsys.readouterr().out
    assert main([*args, '--weights', str(tmp_path/'gone')]) == 2 and 'gone: no such file' in capsys.readouterr().err
    with pytest.raises(SystemExit): main(['baseline', '--help'])
    assert '.pth.tar' in capsys.readouterr().out


def test_an_empty_word_is_not_the_working_directory(tmp_path, monkeypatch):
    save_artifact(tmp_path/'model', NET, Artifact('test_efficientnet', tuple('abcde'),
            body_preprocess('test_efficientnet', 32)))
    monkeypatch.chdir(tmp_path)
    for word in ('', ' '):
        with pytest.raises(ValueError, match='is empty'): weights_source('test_efficientnet', word)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    broken = state()
    broken['conv_head.weight'].view(-1)[3] = value
    torch.save(broken, tmp_path/'diverged.pth')
    with pytest.raises(ValueError, match='1 of .* conv_head.weight'): build_body('test_efficientnet', 3, tmp_path/'diverged.pth')


def test_tensors_beside_plain_values_and_below_other_names(tmp_path):
    for i, table in enumerate(({**state(), 'epoch': 3}, dict(params=state()), dict(params_ema=state(), params=state(of=net(1))),
            dict(model=dict(state_dict=state())))):
        torch.save(table, tmp_path/f'{i}.pth')
        assert_loaded(tmp_path/f'{i}.pth')
    save_file(state(), tmp_path/'tensors.pth')
    assert_loaded(tmp_path/'tensors.pth')


@pytest.mark.parametrize('given', [NET, NET.state_dict(), None, b'x.pth'], ids=['model', 'tensors', 'None', 'bytes'])
def test_weights_are_a_word_or_a_path(given):
    with pytest.raises(TypeError, match='path of a file') as e: build_body('test_efficientnet', 3, given)
    assert len(str(e.value)) < 300


NO_WEIGHTS = {'page.pth': (b'\n<!DOCTYPE html><html>', 'HTML page'), 'pointer.safetensors': (b'version https://git-lfs.github.com/spec/v1\noid', 'git lfs pull'),
    'x.pth': (b'\x1f\x8b\x08' + b'0'*99, 'gzip'), 'list.pkl': (pickle.dumps([pathlib.PurePosixPath('x')]), 'more than tensors'),
    'empty.pth': (b'', 'an empty file'), 'notes.pth': (b'hello world, no weights here', 'neither a torch nor')}


@pytest.mark.parametrize('name', NO_WEIGHTS)
def test_files_that_are_something_else_say_what(name, tmp_path):
    data, words = NO_WEIGHTS[name]
    (tmp_path/name).write_bytes(data)
    with pytest.raises(ValueError, match=words) as e: build_body('test_efficientnet', 3, tmp_path/name)
    assert '2.6' not in str(e.value)
