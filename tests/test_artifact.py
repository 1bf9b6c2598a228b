"Artifacts: the same answers everywhere, and nothing of a stranger's file is believed or run"
import io, json, os, pickle, struct, subprocess, sys, threading
from pathlib import Path

import numpy as np, pandas as pd, pytest, timm, torch
from fastai.learner import Learner
from PIL import Image
from safetensors.torch import load_file, save_file

from fastbit.export import Artifact, load_artifact, load_predictor, Predictor, save_artifact
from fastbit.export.artifact import CONFIG, FORMAT, WEIGHTS
from fastbit.export.record import made_with
from fastbit.baseline import baseline
from fastbit.bodies import body_preprocess, build_body, TransferModel
from fastbit.data import image_dataloaders
from fastbit.training import transfer_learner
from conftest import TINY, picture, run_fastbit, small_bit, write_folder
from forks import Fork

GOLDEN = Path(__file__).parent/'golden'


def some_net(seed=0, classes=3, arch='test_efficientnet'):
    torch.manual_seed(seed)
    net = build_body(arch, classes, 'random')
    for p in net.get_classifier().parameters(): torch.nn.init.normal_(p)
    return net.eval()


def about_net(size=64, classes=('blue', 'green', 'red'), **kw):
    return Artifact('test_efficientnet', classes, body_preprocess('test_efficientnet', size), temperature=2., versions=made_with(), **kw)


@pytest.fixture
def artifact(tmp_path):
    "A folder, and the network in it"
    net = some_net()
    save_artifact(tmp_path/'model', net, about_net())
    return tmp_path/'model', net


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A baseline's results, and its images"
    root = tmp_path_factory.mktemp('run')
    os.environ['FASTBIT_CACHE'] = str(root/'cache')
    data = write_folder(root/'data', dict(blue=14, green=14, red=12))
    for i in range(3): picture(100+i, 1, (70, 50)).save(data/'green'/f'photo{i}.jpg')
    res = baseline(data, **TINY, recipe='onecycle', size=32, epochs=3, bs=8, device='cpu', out=root/'out', verbose=False)
    return root/'out', data, res


@pytest.mark.parametrize('arch', ['test_efficientnet', 'resnetv2_50x1_bit', 'test_efficientnet_gn'])
def test_timm_opens_what_is_exported(arch, folder, tmp_path):
    "Same logits, labels and preprocessing, for a BatchNorm, a weight-standardised GroupNorm and a GroupNorm body"
    dls = image_dataloaders(folder, arch, size=32, bs=8, device='cpu')
    learn = transfer_learner(dls, arch, 'random')
    torch.nn.init.normal_(learn.model.stage_params()[-1][0])
    learn.export(tmp_path/'model')
    theirs = timm.create_model(f'local-dir:{tmp_path/"model"}', pretrained=True).eval()
    assert all(torch.equal(a, b) for a, b in zip(theirs.state_dict().values(), learn.model.net.state_dict().values()))
    x = torch.rand(2, 3, 64, 64)
    theirs.to(memory_format=learn.model.format)   # another layout is another order of additions
    with torch.inference_mode():
        ours = learn.model.eval()(x)
        assert (theirs(learn.model.normalized(x)) - ours).abs().max() <= 1e-6*ours.abs().max()
        assert (load_predictor(tmp_path/'model', 'cpu').model(x) - ours).abs().max() <= 1e-6*ours.abs().max()
    assert theirs.pretrained_cfg['label_names'] == list(dls.vocab)
    cfg = timm.data.resolve_model_data_config(theirs)
    assert tuple(cfg['input_size']) == (3, 32, 32) and cfg['crop_mode'] == 'squash' and cfg['crop_pct'] == 1.


def test_their_preprocessing_gives_our_pixels(run, tmp_path):
    "timm's transform, made from config.json, on a file"
    out, data, _ = run
    theirs = timm.create_model(f'local-dir:{out/"model"}', pretrained=True).eval()
    tfm = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    files = sorted(data.rglob('*.png'))[:6]
    with torch.inference_mode(): probs = theirs(torch.stack([tfm(Image.open(f).convert('RGB')) for f in files])).softmax(1)
    assert (torch.tensor(load_predictor(out, 'cpu').predict(files).probability) - probs.max(1).values).abs().max() < 1e-5


def test_predictions_are_those_of_the_table(run):
    out, data, res = run
    table = pd.read_csv(out/'predictions.csv')
    got = load_predictor(out, 'cpu').predict(table.path.tolist())
    assert got.prediction.tolist() == table.prediction.tolist()
    assert np.abs(got.probability - table.probability).max() < 1e-6 and np.abs(got.calibrated - table.calibrated).max() < 1e-6
    for bs in (1, 3):   # alone and among others: the same but for rounding
        assert np.abs(load_predictor(out, 'cpu').predict(table.path.tolist(), bs=bs).probability - table.probability).max() < 1e-6
    assert json.loads((out/'model'/CONFIG).read_text())['fastbit']['evaluation']['accuracy'] == res.evaluation.accuracy


def test_whatever_form_an_image_comes_in(artifact):
    p = load_predictor(artifact[0], 'cpu')
    path = artifact[0].parent/'one.png'
    img = picture(1, 2); img.save(path)
    array = np.asarray(img)
    want = p.predict(path).probability[0]
    for o in (str(path), path.read_bytes(), bytearray(path.read_bytes()), img, array, np.stack([array, array]), [path, array], (path for _ in range(2)), pd.Series([str(path)])):
        got = p.predict(o)
        assert (got.probability == want).all() or np.abs(got.probability - want).max() < 1e-6
    assert p.predict(np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])).probability[0] == want   # opaque RGBA
    for bad in (array/255., 3, None, {'a': 1}, torch.zeros(3, 8, 8), pd.DataFrame(dict(path=[str(path)])), np.zeros((8, 8, 7), np.uint8)):
        with pytest.raises(TypeError, match='uint8|not a list of images'): p.predict(bad)
    assert len(p.predict([])) == 0


def test_every_class_has_its_probability(artifact):
    df = load_predictor(artifact[0], 'cpu').predict(picture(0, 0), probs=True)
    assert [c for c in df if c.startswith('p(')] == ['p(blue)', 'p(green)', 'p(red)']
    assert abs(df.iloc[0, -3:].sum() - 1) < 1e-6 and df[f'p({df.prediction[0]})'][0] == pytest.approx(df.probability[0], abs=1e-7)


def test_memory_depends_on_the_batch(artifact, monkeypatch):
    "Never more than a few batches are loaded ahead"
    import fastbit.export.predict as m
    alive, most, lock, real = [0], [0], threading.Lock(), m.flat_squares
    p = load_predictor(artifact[0], 'cpu')
    def load(*a):
        with lock: alive[0] += 1; most[0] = max(most[0], alive[0])
        return real(*a)
    views = Predictor._views
    def run(self, x, *a):
        with lock: alive[0] -= len(x)
        return views(self, x, *a)
    monkeypatch.setattr(m, 'flat_squares', load); monkeypatch.setattr(Predictor, '_views', run)
    assert len(p.predict([picture(i, i) for i in range(100)], bs=4)) == 100
    assert most[0] <= 4*4


# the command

def test_predict_prints_a_table_and_csv(run, tmp_path):
    out, data, _ = run
    files = sorted((data/'green').glob('*'))[:3]
    shown = run_fastbit('predict', out, *files, cwd=tmp_path, FASTBIT_CACHE=str(tmp_path))
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split('\n')[0].split() == ['path', 'prediction', 'confidence'] and shown.stdout.count('\n') == 4
    csv = run_fastbit('predict', out, data, '--csv', '--probs', cwd=tmp_path, FASTBIT_CACHE=str(tmp_path))
    df = pd.read_csv(io.StringIO(csv.stdout))
    assert csv.returncode == 0 and len(df) == 43 and list(df) == ['path', 'prediction', 'probability', 'calibrated', 'reason', 'p(blue)', 'p(green)', 'p(red)']
    table = pd.read_csv(out/'predictions.csv').set_index('path')
    both = df.set_index('path').loc[table.index]
    assert (both.prediction == table.prediction).all() and np.abs(both.probability - table.probability).max() < 1e-6


def test_predict_says_what_it_cannot_read(run, tmp_path):
    out, data, _ = run
    (tmp_path/'page.jpg').write_text('<html>'); picture(0, 0).save(tmp_path/'a.png')
    got = run_fastbit('predict', out, 'page.jpg', 'a.png', '--csv', cwd=tmp_path)
    df = pd.read_csv(io.StringIO(got.stdout))
    assert got.returncode == 1 and df.reason[0] == 'not an image that Pillow can read' and pd.isna(df.prediction[0]) and df.prediction[1] in ('blue', 'green', 'red')
    assert 'note: 1 of 2 images have no prediction, e.g. page.jpg' in got.stderr
    for words, message in ((('predict', out, 'none.png'), "no folder or file 'none.png'"), (('predict', 'nowhere', 'a.png'), "no folder 'nowhere'"), (('predict', out, 'a.png', '--batch-size', '0'), '--batch-size 0'),
                           (('evaluate', out, 'none'), "no folder or file 'none'"), (('onnx', out, 'net.bin'), 'the name ends in .onnx'), (('predict', 'a.pkl', 'a.png'), 'is a pickle')):
        got = run_fastbit(*words, cwd=tmp_path)
        assert got.returncode == 2 and got.stderr.count('\n') == 1 and message in got.stderr, got.stderr


def test_evaluate_measures_and_says_what_was_trained_on(run, tmp_path):
    out, data, res = run
    held_out = res.predictions[['path', 'label']].assign(split='valid')
    held_out.to_csv(tmp_path/'held_out.csv', index=False)
    got = run_fastbit('evaluate', out, 'held_out.csv', cwd=tmp_path)
    assert got.returncode == 0 and f'the valid split, {res.evaluation.n} images' in got.stdout and str(res.evaluation) in got.stdout and 'note' not in got.stderr
    got = run_fastbit('evaluate', out, data, cwd=tmp_path)   # the images that it was not trained on
    assert str(res.evaluation) in got.stdout and f'{43-res.evaluation.n} of ' in got.stdout and 'note' not in got.stderr, got.stdout
    got = run_fastbit('evaluate', out, data, '--tta', '--all', cwd=tmp_path)
    assert 'all, 43 images' in got.stdout and f'{43-res.evaluation.n} of these 43 images were in the training set' in got.stderr
    write_folder(tmp_path/'other', dict(blue=2, violet=2))
    got = run_fastbit('evaluate', out, 'other', cwd=tmp_path)
    assert got.returncode == 2 and 'not classes of this model: violet' in got.stderr


def test_a_large_training_set_leaves_a_sample(artifact):
    from fastbit.export.record import SKETCH, count_trained_on, digest_sketch
    digests = [f'{i*2**44 + 7:016x}' for i in range(5000)]
    a = about_net(trained_on=digest_sketch(digests))
    assert len(a.trained_on['digests']) == SKETCH and count_trained_on(a, digests[::10]) == (100, False) and count_trained_on(a, ['ff'*8]) == (0, False)


def test_onnx_gives_the_same_probabilities(run, tmp_path):
    "Another program, with onnxruntime alone, on resized pixels"
    out, data, _ = run
    got = run_fastbit('onnx', out, 'net.onnx', cwd=tmp_path)
    assert got.returncode == 0, got.stderr
    files = sorted(data.rglob('*.png'))[:5]
    code = '''
import json, sys, numpy as np, onnxruntime
from PIL import Image
s = onnxruntime.InferenceSession('net.onnx')
x = np.stack([np.asarray(Image.open(f).convert('RGB').resize((32, 32), Image.BICUBIC)) for f in sys.argv[1:]])
print(json.dumps([o.tolist() for o in s.run(['probabilities', 'calibrated'], dict(images=x))]))
assert 'torch' not in sys.modules
'''
    plain, calibrated = map(np.array, json.loads(subprocess.run([sys.executable, '-c', code, *map(str, files)], cwd=tmp_path, capture_output=True, text=True, check=True).stdout))
    want = load_predictor(out, 'cpu').predict(files, probs=True)
    assert np.abs(plain - want.filter(like='p(').values).max() < 1e-4 and np.abs(calibrated.max(1) - want.calibrated).max() < 1e-4


@pytest.mark.parametrize('arch', ['resnetv2_50x1_bit', 'test_efficientnet_gn'])
def test_onnx_of_groupnorm_bodies(arch, tmp_path):
    from fastbit.export import export_onnx
    from fastbit.export.onnx import ONNX_TOLERANCE
    net = some_net(arch=arch) if arch == 'test_efficientnet_gn' else small_bit().eval()
    torch.nn.init.normal_(net.get_classifier().weight)
    p = Predictor(TransferModel(net), Artifact(arch, ('a', 'b', 'c'), body_preprocess(arch, 64)))
    assert export_onnx(p, tmp_path/'net.onnx') <= ONNX_TOLERANCE
    from fastbit.export.onnx import PixelsToProbs
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode(): assert (PixelsToProbs(p).eval()(images)[0] - p.model(images.permute(0, 3, 1, 2)).softmax(1)).abs().max() < 1e-5   # what is compared with the file is compared with the network, too


@pytest.mark.parametrize('size', [8, 9, 16])
def test_a_zero_pad_before_a_pool_without_a_pad(size):
    from fastbit.export.onnx import ZeroPadMaxPool
    pool, x = torch.nn.MaxPool2d(3, 2), -torch.rand(2, 4, size, size) - 1
    assert torch.equal(ZeroPadMaxPool(pool, 1, (size, size))(x), pool(torch.nn.functional.pad(x, (1, 1, 1, 1))))


def test_an_onnx_file_that_differs_is_not_kept(artifact, tmp_path, monkeypatch):
    import fastbit.export.onnx as m
    monkeypatch.setattr(m, '_difference', lambda *a: .1)
    with pytest.raises(ValueError, match='differs from PyTorch by 1.0e-01, so it was not written'): m.export_onnx(load_predictor(artifact[0], 'cpu'), tmp_path/'net.onnx')
    assert not (tmp_path/'net.onnx').exists()
    monkeypatch.setattr(m, 'ONNX_PACKAGES', ('onnx_that_nobody_has',))
    with pytest.raises(ImportError, match=r'needs onnx_that_nobody_has. Run: pip install onnx_that_nobody_has'): m.export_onnx(load_predictor(artifact[0], 'cpu'), tmp_path/'net.onnx')


# what was written once

def golden_picture():
    y, x = np.mgrid[:48, :64]
    return np.stack([(4*x) % 256, (5*y) % 256, (3*x + 2*y) % 256], -1).astype(np.uint8)


@pytest.mark.parametrize('folder', sorted(GOLDEN.glob('artifact-*')), ids=lambda p: p.name)
def test_artifacts_of_earlier_versions_open(folder):
    "Kept as they were written, by `python tests/golden/make.py`; a new format gets another folder, and these stay"
    p = load_predictor(folder, 'cpu')
    want = json.loads((folder.parent/f'{folder.name.replace("artifact", "answers")}.json').read_text())
    if p.task.is_number:
        got = p.predict(golden_picture())
        assert got[['prediction', 'low', 'high']].iloc[0].tolist() == pytest.approx([want[k] for k in ('prediction', 'low', 'high')], abs=1e-3)
        return
    asked = dict(min_precision=.9, coverage=.9, unlike=.05) if 'answer' in want else {}   # from format 3 on
    got = p.predict(golden_picture(), probs=True, **asked)
    if asked: assert (got.answer[0], list(got.set[0]), got.p_value[0]) == (want['answer'], want['set'], pytest.approx(want['p_value'], abs=.03))
    assert got.filter(like='p(').iloc[0].tolist() == pytest.approx(want['probs'], abs=1e-5)
    if 'calibrated' in want: assert got.prediction[0] == want['prediction'] and got.calibrated[0] == pytest.approx(want['calibrated'], abs=1e-5)
    else: assert list(got.prediction[0]) == want['prediction']   # format 4: several labels


def test_this_format_has_a_golden_artifact():
    assert FORMAT in [json.loads((f/CONFIG).read_text())['fastbit']['format'] for f in GOLDEN.glob('artifact-*')]


# writing

def test_an_interrupted_export_leaves_what_was_there(artifact, monkeypatch):
    import fastbit.export.artifact as m
    folder, before = artifact[0], {f.name: f.read_bytes() for f in artifact[0].iterdir()}
    for name in ('write_text', 'save_file'):
        def dies(*a, **k): raise KeyboardInterrupt
        with monkeypatch.context() as mp, pytest.raises(KeyboardInterrupt):
            mp.setattr(m, name, dies)
            save_artifact(folder, some_net(1), about_net(), overwrite=True)
        assert {f.name: f.read_bytes() for f in folder.iterdir()} == before and [f.name for f in folder.parent.iterdir()] == ['model']


def test_a_new_name_that_cannot_be_given_leaves_the_old_folder(artifact, monkeypatch):
    "Between the two renames, too"
    folder, before, real = artifact[0], {f.name: f.read_bytes() for f in artifact[0].iterdir()}, os.rename
    def refuses(a, b):
        if str(a).endswith('.part') and Path(a).is_dir(): raise OSError(5, 'Input/output error')
        real(a, b)
    with monkeypatch.context() as mp, pytest.raises(OSError, match='Input/output'):
        mp.setattr(os, 'rename', refuses)
        save_artifact(folder, some_net(1), about_net(), overwrite=True)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before and [f.name for f in folder.parent.iterdir()] == ['model']


def test_killed_while_it_replaces(artifact, tmp_path):
    "SIGKILL before the new name: the old artifact is whole; and the next export clears up"
    code = '''
import os, signal, sys
import test_artifact as t
real = os.rename
os.rename = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
t.save_artifact(sys.argv[1], t.some_net(1), t.about_net(), overwrite=True)
'''
    with Fork(code, artifact[0]) as got: pass
    assert got.returncode == -9
    net, _ = load_artifact(artifact[0])
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), artifact[1].state_dict().values()))
    save_artifact(artifact[0], some_net(1), about_net(), overwrite=True)
    assert [f.name for f in artifact[0].parent.iterdir()] == ['model']


def test_nothing_of_others_is_replaced(artifact):
    folder = artifact[0]
    (folder/'notes.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='notes.txt'): save_artifact(folder, some_net(), about_net(), overwrite=True)
    with pytest.raises(FileExistsError, match='with a file'): save_artifact(folder/'notes.txt', some_net(), about_net(), overwrite=True)
    assert (folder/'notes.txt').read_text() == 'mine'


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    net = some_net()
    with torch.no_grad(): net.conv_stem.weight[0, 0, 0, 0] = float('nan')
    with pytest.raises(ValueError, match='conv_stem.weight has numbers that are not finite'): save_artifact(tmp_path/'model', net, about_net())
    assert not list(tmp_path.iterdir())


def test_export_of_loaders_that_fastbit_did_not_make(tmp_path, folder):
    from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, RandomSplitter, Resize, get_image_files, parent_label
    dls = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(seed=0), item_tfms=Resize(32)).dataloaders(folder, bs=8, device='cpu', num_workers=0)
    learn = transfer_learner(dls, **TINY)
    with pytest.raises(ValueError, match=r"preprocess=body_preprocess\('test_efficientnet\S*', size=32\), with resize='crop'"): learn.export(tmp_path/'model')
    learn.export(tmp_path/'model', preprocess=body_preprocess('test_efficientnet', 32, resize='crop'))
    assert load_predictor(tmp_path/'model').about.preprocess.resize == 'crop'


# pickles

def test_a_pickle_needs_a_word(folder, tmp_path):
    "fastai's own export, which a fastbit learner no longer writes"
    dls = image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, device='cpu')
    learn = transfer_learner(dls, **TINY, path=tmp_path)
    with pytest.raises(ValueError, match='A pickle runs code'): learn.export('export.pkl')
    Learner.export(learn, 'export.pkl')
    with pytest.raises(ValueError, match='trust_pickle=True'): load_predictor(tmp_path/'export.pkl')
    with pytest.warns(UserWarning, match='load_learner'): trusted = load_predictor(tmp_path/'export.pkl', 'cpu', trust_pickle=True)
    learn.export(tmp_path/'safe')
    files = sorted(folder.rglob('*.png'))[:4]
    pd.testing.assert_frame_equal(trusted.predict(files), load_predictor(tmp_path/'safe', 'cpu').predict(files), atol=1e-6)


class Bomb:
    "Pickled, a call that leaves a file behind"
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return (Path.touch, (Path(self.mark),))


def bomb_bytes(mark): return pickle.dumps({'conv_stem.weight': Bomb(mark)})


def test_opening_never_unpickles(artifact, monkeypatch):
    def never(*a, **k): raise AssertionError('unpickled')
    for module, name in ((pickle, 'load'), (pickle, 'loads'), (pickle, 'Unpickler'), (torch, 'load')): monkeypatch.setattr(module, name, never)
    load_predictor(artifact[0], 'cpu').predict(picture(0, 0))


def header(entries, data=b'', size=None):
    text = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    return struct.pack('<Q', len(text) if size is None else size) + text + data


def tensors_of(folder): return load_file(folder/WEIGHTS)


def rehash(folder):
    "What somebody does who wants a changed file to be believed"
    import hashlib
    cfg = json.loads((folder/CONFIG).read_text())
    cfg['fastbit']['sha256'] = hashlib.sha256((folder/WEIGHTS).read_bytes()).hexdigest()
    (folder/CONFIG).write_text(json.dumps(cfg))


def set_config(folder, **kw): (folder/CONFIG).write_text(json.dumps(json.loads((folder/CONFIG).read_text()) | kw))
def set_own(folder, **kw): set_config(folder, fastbit=json.loads((folder/CONFIG).read_text())['fastbit'] | kw)
def set_pp(folder, **kw): set_own(folder, preprocess=json.loads((folder/CONFIG).read_text())['fastbit']['preprocess'] | kw)


def change_tensors(folder, f):
    state = tensors_of(folder)
    save_file(f(state) or state, folder/WEIGHTS)
    rehash(folder)


def link(folder, target):
    (folder/WEIGHTS).unlink(); (folder/WEIGHTS).symlink_to(target)


MALICIOUS = {
    'a pickle under the name of the weights': (lambda d, m: ((d/WEIGHTS).write_bytes(bomb_bytes(m)), rehash(d)), 'not a safetensors file'),
    'a torch file under the name of the weights': (lambda d, m: (torch.save({'a': Bomb(m)}, d/WEIGHTS), rehash(d)), 'not a safetensors file'),
    'a pickle under the name of the record': (lambda d, m: (d/CONFIG).write_bytes(bomb_bytes(m)), 'cannot be used'),
    'a pickle beside the weights': (lambda d, m: ((d/'pytorch_model.bin').write_bytes(bomb_bytes(m)), (d/WEIGHTS).unlink()), 'no model.safetensors'),
    'a header larger than the file': (lambda d, m: ((d/WEIGHTS).write_bytes(header({}, size=2**62)), rehash(d)), 'not a safetensors file'),
    'a header of 100 MB and more': (lambda d, m: ((d/WEIGHTS).write_bytes(header(b'{' + b' '*100_000_001)), rehash(d)), 'can have .* at most|not a safetensors file'),
    'a header that is no JSON': (lambda d, m: ((d/WEIGHTS).write_bytes(header(b'[[[[')), rehash(d)), 'not a safetensors file'),
    'offsets behind the end': (lambda d, m: ((d/WEIGHTS).write_bytes(header({'a': dict(dtype='F32', shape=[2**40], data_offsets=[0, 2**42])})), rehash(d)), 'not a safetensors file'),
    'offsets that overlap': (lambda d, m: ((d/WEIGHTS).write_bytes(header({'a': dict(dtype='F32', shape=[1], data_offsets=[0, 4]), 'b': dict(dtype='F32', shape=[1], data_offsets=[0, 4])}, b'\0'*4)), rehash(d)), 'not a safetensors file'),
    'an empty file': (lambda d, m: ((d/WEIGHTS).write_bytes(b''), rehash(d)), 'not a safetensors file'),
    'a file cut short': (lambda d, m: (d/WEIGHTS).write_bytes((d/WEIGHTS).read_bytes()[:-9]), 'not a safetensors file'),
    'a terabyte of nothing': (lambda d, m: os.truncate(d/WEIGHTS, 2**40), 'can have .* at most'),
    'one bit': (lambda d, m: (d/WEIGHTS).write_bytes((b := bytearray((d/WEIGHTS).read_bytes()), b.__setitem__(-5, b[-5] ^ 1))[0]), 'SHA-256 is not the one'),
    'another shape': (lambda d, m: change_tensors(d, lambda s: s.update({'conv_stem.weight': torch.zeros(3, 3)})), r'conv_stem.weight is F32 of shape \[3, 3\]'),
    'another type': (lambda d, m: change_tensors(d, lambda s: s.update({'conv_stem.weight': s['conv_stem.weight'].half()})), 'conv_stem.weight is F16'),
    'a tensor too few': (lambda d, m: change_tensors(d, lambda s: s.pop('conv_stem.weight') * 0 if False else {k: v for k, v in s.items() if k != 'conv_stem.weight'}), '1 tensors are missing, e.g. conv_stem.weight'),
    'a tensor too many': (lambda d, m: change_tensors(d, lambda s: s.update({'../../etc/passwd': torch.zeros(1)})), '1 tensors are not of this architecture'),
    'the weights are a pipe': (lambda d, m: ((d/WEIGHTS).unlink(), os.mkfifo(d/WEIGHTS)), 'not a regular file'),
    'the weights are a device without end': (lambda d, m: link(d, '/dev/zero'), 'not a regular file'),
    'the weights are a link to themselves': (lambda d, m: link(d, d/WEIGHTS), 'no model.safetensors'),
    'the record is a pipe': (lambda d, m: ((d/CONFIG).unlink(), os.mkfifo(d/CONFIG)), 'not a regular file'),
    'the record names another file': (lambda d, m: set_own(d, file='../../../etc/passwd'), 'unknown fields: file'),
    'the architecture is a path': (lambda d, m: set_config(d, architecture='local-dir:/etc'), 'is not the name of a timm model'),
    'the architecture climbs': (lambda d, m: set_config(d, architecture='../../x'), 'not a timm architecture'),
    'the architecture is on a hub': (lambda d, m: set_config(d, architecture='hf-hub:somebody/something'), 'is not the name of a timm model'),
    'another architecture': (lambda d, m: set_config(d, architecture='resnetv2_50x1_bit'), 'tensors are missing'),
    'no object': (lambda d, m: (d/CONFIG).write_text('[1, 2]'), 'not a JSON object'),
    'not JSON': (lambda d, m: (d/CONFIG).write_text('<html>'), 'cannot be used'),
    'an empty record': (lambda d, m: (d/CONFIG).write_text(''), 'cannot be used'),
    'not text': (lambda d, m: (d/CONFIG).write_bytes(b'\xff\xfe\x00'), 'cannot be used'),
    'nested too deeply': (lambda d, m: (d/CONFIG).write_text('{"a":'*100_000 + '1' + '}'*100_000), 'nested too deeply|cannot be used'),
    'a record without end': (lambda d, m: os.truncate(d/CONFIG, 2**36), 'larger than 64 MB'),
    'a number of a million digits': (lambda d, m: (d/CONFIG).write_text('{"num_classes": ' + '9'*1_000_000 + '}'), 'cannot be used'),
    'a temperature that is none': (lambda d, m: (d/CONFIG).write_text((d/CONFIG).read_text().replace('"temperature": 2.0', '"temperature": NaN')), 'NaN is not a number'),
    'a temperature of nothing': (lambda d, m: set_own(d, temperature=0), 'temperature 0'),
    'a temperature that is text': (lambda d, m: set_own(d, temperature='__import__("os")'), 'temperature'),
    'an absurd size': (lambda d, m: set_pp(d, size=10**9, train_size=10**9), '32 to 4096 pixels'),
    'a size that is true': (lambda d, m: set_pp(d, size=True), 'size=True'),
    'an unknown way to resize': (lambda d, m: set_pp(d, resize='eval'), "resize='eval'"),
    'an unknown interpolation': (lambda d, m: set_pp(d, interpolation='__class__'), 'interpolation'),
    'a divisor of zero': (lambda d, m: set_pp(d, std=[0, 0, 0]), 'std'),
    'two means': (lambda d, m: set_pp(d, mean=[0, 0]), 'mean'),
    'a scale of nothing': (lambda d, m: set_pp(d, max_value=0), 'max_value=0'),
    'a field of the preprocessing too many': (lambda d, m: set_pp(d, run='x'), 'preprocess is not that of fastbit'),
    'classes without end': (lambda d, m: (set_own(d, classes=['a']*3), set_config(d, num_classes=10**12)), 'another number of classes'),
    'classes that are the same': (lambda d, m: set_own(d, classes=['a', 'a', 'b']), 'the same name'),
    'classes that are numbers': (lambda d, m: set_own(d, classes=[1, 2, 3]), 'has a name, which is text'),
    'a class too many': (lambda d, m: (set_own(d, classes=list('abcd')), set_config(d, num_classes=4)), 'classifier.weight is F32 of shape'),
    'no digest': (lambda d, m: set_own(d, sha256=''), 'no digest'),
    'digests that are none': (lambda d, m: set_own(d, trained_on=dict(images=1, digests=['../x'])), 'trained_on'),
    'a format of the future': (lambda d, m: set_own(d, format=99), 'a later version may read it'),
    'a format that is none': (lambda d, m: set_own(d, format='1'), "format is '1'"),
    "timm's own": (lambda d, m: (d/CONFIG).write_text(json.dumps({k: v for k, v in json.loads((d/CONFIG).read_text()).items() if k != 'fastbit'})), 'timm may open it'),
}


@pytest.mark.parametrize('how', MALICIOUS)
def test_malicious_artifacts_are_refused_with_a_reason(how, artifact, tmp_path):
    spoil, reason = MALICIOUS[how]
    spoil(artifact[0], tmp_path/'ran')
    with pytest.raises((ValueError, OSError), match=reason) as e: load_predictor(artifact[0], 'cpu')
    assert not (tmp_path/'ran').exists() and len(str(e.value)) < 600 and '\n' not in str(e.value)
