"Files for other places: int8 with its cost, and a Dockerfile whose every line can be checked"
import json, re, shutil
from types import SimpleNamespace

import numpy as np, pytest
from PIL import Image
from sklearn.metrics import average_precision_score, mean_absolute_error

from fastbit.baseline import baseline
from fastbit.cli.command import main
from fastbit.cli.parser import make_parser
from fastbit.export import export_docker, load_predictor, save_artifact
from fastbit.export.ensemble import EnsembleModel
from fastbit.export.int8 import check_int8
from fastbit.studies import measure_int8
from fastbit.studies.int8_cost import compare_onnx, held_out_rows
from conftest import TINY, write_folder
from tasks import CASES
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
    assert cost.n == len(table) == 12 and cost.value == pytest.approx(run[2].evaluation.accuracy, abs=.01)
    assert cost.int8_value - cost.value == pytest.approx(cost.difference.difference) and cost.difference.low <= cost.difference.high
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


def broken(file, to):
    "A file whose classifier has the opposite weights"
    import onnx
    graph = onnx.load(file)
    classifier = [n for n in graph.graph.node if n.op_type == 'Gemm'][-1]
    weight = next(o for o in graph.graph.initializer if o.name == classifier.input[1])
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(graph, to)
    return to


def plain_headline(case, file, paths) -> float:
    "With onnxruntime, Pillow and scikit-learn alone, and the labels that the pictures were drawn with"
    import onnxruntime
    pixels = np.stack([np.array(Image.open(p).resize((32, 32), Image.Resampling.BICUBIC)) for p in paths])
    out = onnxruntime.InferenceSession(str(file)).run(None, {'images': pixels})[0]
    truth = [case.label(int(p[-6:-4])) for p in paths]
    if case.key == 'number': return mean_absolute_error(truth, out[:, 0])
    meta = onnxruntime.InferenceSession(str(file)).get_modelmeta().custom_metadata_map
    hot = np.array([[c in names for c in json.loads(meta['classes'])] for names in truth])
    return average_precision_score(hot, out)   # each label has images


@pytest.mark.slow   # exports and quantizes
@pytest.mark.parametrize('key', ['labels', 'number'])
def test_int8_of_other_tasks(key, tmp_path, monkeypatch, capsys):
    "The figures are those of a plain computation, a broken file is told, groups widen the interval, and each line says what it is"
    pytest.importorskip('onnxruntime')
    from fastbit.studies import int8_cost
    case, out, net, plain, costs = CASES[key], tmp_path/'out', tmp_path/'net.onnx', tmp_path/'plain.onnx', []
    res = case.run(case.table(tmp_path/'images', 96), out)
    kept = lambda predictor, file, *args: shutil.copy(file, plain) and costs.append(compare_onnx(predictor, file, *args)) or costs[0]
    monkeypatch.setattr(int8_cost, 'compare_onnx', kept)
    assert main(['export', str(out), str(net), '--int8']) == 0
    cost, said, p = costs[0], capsys.readouterr().out.splitlines(), load_predictor(out, 'cpu')
    rows = held_out_rows(p)
    assert list(rows.path) == list(res.predictions.path) and cost.n == len(rows)
    values = [plain_headline(case, f, rows.path) for f in (plain, net)]
    assert (cost.value, cost.int8_value) == pytest.approx(values, abs=1e-4) and cost.value == pytest.approx(res.score.value, abs=1e-3)
    assert cost.difference.difference == pytest.approx(cost.int8_value - cost.value, abs=1e-6) and cost.difference.low < cost.difference.high
    assert cost.verdict == 'not significant' and not cost.is_worse and cost.p_value is None and cost.calibrated_on == 96 - cost.n

    assert cost.exact is None if key == 'number' else cost.exact.value == pytest.approx(res.evaluation.exact_match)   # the thresholds are those of the run
    import onnx
    kinds = [n.op_type for n in onnx.load(net).graph.node]
    assert 'QuantizeLinear' in kinds and 'QuantizeLinear' not in kinds[kinds.index('Gemm'):]   # labels and numbers are not in steps

    number = r'[\d.]+'
    signed, held_out = rf'[+-]{number}', f'on {cost.n} held-out images'
    name, lower, loss = ('mAP', '', 'a loss') if key == 'labels' else ('MAE', ', lower is better', 'an increase')
    exact = [rf'exact match {number}% with int8, {number}% with float32: {signed} points \(95% CI {signed} to {signed}\), not significant']
    lines = [rf'.*, to {"numbers" if key == "number" else "probabilities"}, in 8-bit integers', rf'{name}         {number} with int8, {number} with float32, {held_out}',
             rf'difference  {signed} \(95% CI {signed} to {signed}\){lower}: not significant; {loss} of more than {number} is unlikely', *exact*(key == 'labels'),
             rf'time        {number} ms per image with int8, {number} ms with float32: .*', rf'size        {number} MB with int8, {number} MB with float32', rf'calibrated  on {cost.calibrated_on} training images']
    assert len(said) == len(lines) and all(map(re.fullmatch, lines, said)), said

    worse = compare_onnx(p, plain, broken(net, tmp_path/'broken.onnx'), rows, 9)
    assert worse.is_worse and 'int8 is significantly worse. Export without int8 (--int8).' in str(worse)
    assert worse.int8_value == pytest.approx(plain_headline(case, tmp_path/'broken.onnx', rows.path), abs=1e-4)
    assert compare_onnx(p, tmp_path/'broken.onnx', net, rows, 9).verdict == 'better'   # the other way round
    width = lambda rows: np.subtract(*compare_onnx(p, plain, tmp_path/'broken.onnx', rows, 9).difference[:0:-1])
    twice = rows.loc[rows.index.repeat(2)].reset_index(drop=True)
    assert width(twice) < .85*width(rows) and width(twice.assign(group=twice.path)) == pytest.approx(width(rows), rel=.2)


def test_int8_of_other_tasks_says_what_it_needs(tmp_path, capsys):
    for key, table, message in (
            ('labels', 'label,prediction,p(blue)\nblue;emu,blue,.5', "the label 'emu', which is not a class of the model"),
            ('labels', 'label,prediction,low,high\n3,3,2,4', 'predictions of a number per image, and the model predicts several labels per image'),
            ('number', 'label,prediction,probability\ncat,cat,.7', 'predictions of one label per image, and the model predicts a number per image'),
            ('number', 'label,prediction,low,high,fold\n3,3,2,4,1', 'is of all folds'),
            ('number', 'label,prediction,low,high\n3,3,2,4', 'no neighbors.safetensors, which lists the training images')):
        folder = tmp_path/f'{key}{len(message)}'
        save_artifact(folder/'model', *CASES[key].artifact())
        Image.new('RGB', (40, 40)).save(folder/'a.png')
        head, row = table.split('\n')
        (folder/'predictions.csv').write_text(f'path,split,{head}\n{folder}/a.png,valid,{row}\n')
        assert main(['export', str(folder), str(folder/'net.onnx'), '--int8']) == 2
        said = capsys.readouterr().err
        assert message in said and not (folder/'net.onnx').exists(), said
    with pytest.raises(ValueError, match='is for one model, and this one is the mean of several.*what int8 costs cannot be measured'): check_int8(SimpleNamespace(model=EnsembleModel.__new__(EnsembleModel)))


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
