"Files for other places: int8 with its cost, and a Dockerfile whose every line can be checked"
import json, re

import pytest

from fastbit.baseline import baseline
from fastbit.cli.command import main
from fastbit.cli.parser import make_parser
from fastbit.export import export_docker, save_artifact
from fastbit.studies import measure_int8
from conftest import TINY, write_folder
from test_artifact import about_net, some_net


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp('deploy')
    data = write_folder(root/'photos', dict(blue=20, green=20, red=20))
    return root/'out', data, baseline(data, **TINY, recipe='head', size=32, device='cpu', num_workers=0, out=root/'out', verbose=False)


@pytest.mark.slow   # exports and quantizes
def test_int8_is_calibrated_on_training_images_and_measured_on_held_out_ones(run, tmp_path, monkeypatch, capsys):
    pytest.importorskip('onnxruntime')
    from fastbit.export import int8
    from fastbit.studies import int8_cost
    seen, costs, real, measure = [], [], int8.onnx_batches, int8_cost.measure_int8
    monkeypatch.setattr(int8, 'onnx_batches', lambda predictor, items, *args: seen.append(list(map(str, items))) or real(predictor, items, *args))
    monkeypatch.setattr(int8_cost, 'measure_int8', lambda *args: costs.append(measure(*args)) or costs[0])
    assert main(['export', str(run[0]), str(tmp_path/'net.onnx'), '--int8']) == 0
    cost, table = costs[0], run[2].predictions
    calibrated, held_out, again = map(set, seen)
    assert held_out == again == set(table.path) and not calibrated & held_out and len(calibrated) == cost.calibrated_on == 48
    assert cost.n == len(table) == 12 and cost.accuracy == pytest.approx(run[2].evaluation.accuracy, abs=.01)
    assert cost.int8_accuracy - cost.accuracy == pytest.approx(cost.difference.difference) and cost.difference.low <= cost.difference.high
    assert cost.megabytes[1] < .5*cost.megabytes[0] and str(cost) in capsys.readouterr().out and (tmp_path/'net.onnx').exists()


def test_int8_says_what_it_needs(run, tmp_path, capsys):
    save_artifact(tmp_path/'model', some_net(), about_net())
    with pytest.raises(FileNotFoundError, match='no predictions.csv'): measure_int8(tmp_path/'model', tmp_path/'net.onnx')
    moved = tmp_path/'moved'
    save_artifact(moved/'model', some_net(), about_net())
    (moved/'predictions.csv').write_text('path,split,label,prediction\n/nowhere/a.png,valid,blue,blue\n')
    with pytest.raises(FileNotFoundError, match='1 of 1 held-out images of the run are missing'): measure_int8(moved, tmp_path/'net.onnx')
    assert main(['export', str(moved), 'net.pt', '--int8']) == 2 and '.onnx' in capsys.readouterr().err
    assert not (tmp_path/'net.onnx').exists()


def instructions(folder) -> list: return [line.split(' ', 1) for line in (folder/'Dockerfile').read_text().splitlines() if line and not line.startswith('#')]


def test_a_dockerfile_whose_lines_exist(run, tmp_path, capsys):
    assert main(['export', str(run[0]), str(tmp_path/'image'), '--docker']) == 0
    assert 'docker build -t model' in capsys.readouterr().out
    lines = instructions(tmp_path/'image')
    kinds = [kind for kind, _ in lines]
    assert kinds[0] == 'FROM' and kinds.index('USER') < kinds.index('CMD') and {'HEALTHCHECK', 'EXPOSE'} <= set(kinds)
    for words in (rest.split() for kind, rest in lines if kind == 'COPY'):
        source, = [w for w in words[:-1] if not w.startswith('--')]
        assert (tmp_path/'image'/source).exists()
    words = json.loads(next(rest for kind, rest in lines if kind == 'CMD'))
    assert words[0] == 'fastbit'
    if 'serve' in make_parser().commands: assert make_parser().parse_args(words[1:]).command == 'serve'
    health = next(rest for kind, rest in lines if kind == 'HEALTHCHECK')
    python = json.loads(health.partition('CMD ')[2])
    compile(python[2], 'health', 'exec')
    assert f':{words[words.index("--port") + 1]}/health' in python[2]
    pins = (tmp_path/'image'/'requirements.txt').read_text().split()
    assert all(re.fullmatch(r'[a-z]+==[\w.]+', pin) for pin in pins) and not re.search('token|secret|password|/home/(?!user)', (tmp_path/'image'/'Dockerfile').read_text())
    names = sorted(f.relative_to(tmp_path/'image').as_posix() for f in (tmp_path/'image').rglob('*') if f.is_file())
    assert set(names) == {'Dockerfile', 'requirements.txt', *(f'model/{n}' for n in ('README.md', 'config.json', 'model.safetensors', 'abstain.tensors'))}


def test_docker_says_what_it_needs(run, tmp_path, capsys):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'notes.txt').touch()
    assert main(['export', str(run[0]), str(tmp_path/'mine'), '--docker']) == 2 and 'exists already' in capsys.readouterr().err
    assert main(['export', str(run[0]), str(tmp_path/'new'), '--docker', '--int8']) == 2 and '--int8' in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match='not a fastbit results folder'): export_docker(tmp_path/'mine', tmp_path/'new')
