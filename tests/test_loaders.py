"Pixels, batches and answers as people's programs ask for them: labels that come back exactly, other loaders, other start methods, 16 bits"
import io, warnings
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from PIL import Image

from conftest import TINY, picture, write_folder
from fastbit.cli.command import main
from fastbit.data import image_dataloaders, read_image
from fastbit.training import transfer_learner
from fastbit.core.text import DataWarning
from fastbit.core.files import csv_text

QUICK = ('--arch', 'test_efficientnet', '--weights', 'random', '--size', '32', '--device', 'cpu', '--workers', '0')


# CSV

ODD = ['+', '=sum.png', '-1', '@x', "'quoted'", 'say "hi"', 'a, b', ' leading', 'trailing ', 'new\nline', 'carriage\rreturn', 'both\r\n', '\ttab', '1e5', 'NA', 'null', 'ü', '']


def read_back(text): return pd.read_csv(io.BytesIO(text.encode()), dtype=str, keep_default_na=False)


@pytest.mark.parametrize('odd', [ODD, [o for o in ODD if '\r' not in o]], ids=['with returns', 'without'])
def test_a_table_is_read_back_exactly(odd):
    df = pd.DataFrame({'path': odd, '+label': odd[::-1], 'a\r': 'x'})
    assert read_back(csv_text(df)).equals(df) and read_back(csv_text(df.drop(columns='a\r'))).equals(df.drop(columns='a\r'))


def test_what_predict_and_baseline_write_is_what_evaluate_reads(tmp_path, monkeypatch, capsys):
    "Classes and files that a spreadsheet would run"
    monkeypatch.chdir(tmp_path)
    classes = ['+', '=x', '-c']
    data = write_folder(tmp_path/'data', dict.fromkeys(classes, 8))
    for c in classes: (data/c/'000.png').rename(data/c/'=sum.png')
    assert main(['baseline', str(data), *QUICK, '--recipe', 'head', '--epochs', '1', '--out', 'out']) == 0
    rows = pd.read_csv('out/predictions.csv', dtype=str)
    assert set(rows.label) == set(classes) and all(Path(p).exists() for p in rows.path)
    assert main(['evaluate', 'out', 'out/predictions.csv']) == 0
    assert f'{len(rows)} images' in capsys.readouterr().out
    assert main(['predict', 'out', str(data/'+'), '--csv']) == 0
    answers = read_back(capsys.readouterr().out)
    assert str(data/'+'/'=sum.png') in list(answers.path) and set(answers.prediction) <= set(classes)
    monkeypatch.chdir(data/'+')
    assert main(['predict', str(tmp_path/'out'), '=sum.png', '--spreadsheet', '--probs']) == 0
    shown = read_back(capsys.readouterr().out)
    assert shown.path.item() == "'=sum.png" and shown.prediction.item() in {"'" + c for c in classes}


# Worker processes

@pytest.fixture
def start_method(request):
    "As people choose it; what is the default on Windows (spawn) and on Linux from Python 3.14 on (forkserver)"
    from torch import multiprocessing
    before = multiprocessing.get_start_method()
    # worker processes are forked from one that has imported what they need, or each would take seconds
    multiprocessing.set_forkserver_preload(['fastbit.training.tta', 'fastbit.data.steps'])
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


def pixels_and_labels(dl): return [tuple(o.as_subclass(torch.Tensor) for o in b) for b in dl]


def all_passes(dls, pp, files, workers) -> dict:
    "Batches of every kind of loader, with one worker process where it has any; two passes with `workers`"
    from fastbit.data.views import SquaresImage
    from fastbit.data.steps import step_loader
    from fastbit.data.shared import rank_loader
    steps = lambda dl: [dl.source.after_batch(tuple(b.rows)) for b in dl if b.finish() is None]
    shares = lambda dl: [b.b for b in dl]
    persistent = dls.train.new(persistent_workers=True, num_workers=workers)
    res = dict(train=pixels_and_labels(dls.train), persistent=pixels_and_labels(persistent) + pixels_and_labels(persistent),
               valid=pixels_and_labels(dls.valid), test=pixels_and_labels(dls.test_dl(files)),
               views=pixels_and_labels(dls.valid.new(after_item=[SquaresImage(('identity', 'crop_center'), pp)])),
               steps=steps(step_loader(dls.train, 5, 3, 0, 3, mixup=.1)), shares=shares(rank_loader(dls.train)))
    return {k: [o for b in batches for o in b] for k, batches in res.items()}


@pytest.mark.parametrize('start_method', ['forkserver'], indirect=True)
def test_batches_do_not_depend_on_how_workers_start(folder, start_method):
    "Order, crops, flips, cached pixels: those of no workers. Batch transforms stay in this process, whatever they are"
    files = [str(p) for p in sorted(folder.rglob('*.png'))[:3]]
    load = lambda workers, cache: image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, seed=4, num_workers=workers, cache=cache, device='cpu', batch_tfms=[lambda x: x])
    without, with_workers = load(0, False), load(1, True)
    expected, got = (all_passes(dls, dls.preprocess, files, n) for dls, n in ((without, 0), (with_workers, 2)))
    for kind in expected: assert len(expected[kind]) == len(got[kind]) and all(map(torch.equal, expected[kind], got[kind])), kind
    assert not torch.equal(got['persistent'][0], got['persistent'][len(got['persistent'])//2])
    with_workers.train.pixels.refresh()
    assert {size: len(s) for size, s in with_workers.train.pixels.stores.items()} == {32: 8+3, 35: 32+8}   # one per image, by its split; then those of three files to test and of views of validation


@pytest.mark.slow   # a whole import of torch and fastai
@pytest.mark.parametrize('start_method', ['spawn'], indirect=True)
def test_a_new_process_loads_the_same_batches(folder, start_method):
    train, train2 = (image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=n, device='cpu', check=False).train for n in (0, 1))
    assert all(torch.equal(a, b) for x, y in zip(pixels_and_labels(train), pixels_and_labels(train2), strict=True) for a, b in zip(x, y))


@pytest.mark.parametrize('start_method', ['fork', 'spawn'], indirect=True)
def test_workers_that_take_seconds_to_start_are_for_many_images(start_method, monkeypatch):
    from fastbit.data.batches import default_workers
    monkeypatch.setattr('os.cpu_count', lambda: 8)
    few = dict(fork=200, spawn=5000)[start_method]
    assert (default_workers(few-1, torch.device('cpu')), default_workers(few, torch.device('cpu'))) == (0, 8)


def test_a_learner_can_be_pickled_with_its_loaders(folder, tmp_path):
    "Exported by fastai's own habit, batch transforms and all"
    import pickle
    dls = image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0, check=False)
    again = pickle.loads(pickle.dumps(dls))
    assert [type(f) for f in again.train.after_batch.fs] == [type(f) for f in dls.train.after_batch.fs] and again.vocab == dls.vocab
    assert all(torch.equal(a, b) for x, y in zip(pixels_and_labels(dls.valid), pixels_and_labels(again.valid), strict=True) for a, b in zip(x, y))


# Other files

@pytest.fixture
def elsewhere(folder, tmp_path):
    "(loaders of a folder, another folder of class folders)"
    dls = image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0, check=False, device='cpu')
    return dls, write_folder(tmp_path/'new', dict(blue=2, red=3))


def labels_of(dl): return [dl.vocab[i] for _, y in dl for i in y.tolist()]


def test_files_elsewhere_are_labelled_by_their_class_folders(elsewhere, monkeypatch):
    "Lists of any spelling, the folder, the class folder, a nested one"
    dls, new = elsewhere
    files = sorted(new.rglob('*.png'))[::-1]
    expected = ['red']*3 + ['blue']*2
    for items in (files, list(map(str, files)), pd.Series(files), np.array(list(map(str, files))), iter(files)):
        dl = dls.test_dl(items, with_labels=True)
        assert labels_of(dl) == expected and [Path(o) for o in dl.items] == files
    assert labels_of(dls.test_dl(new, with_labels=True)) == expected[::-1]
    assert labels_of(dls.test_dl(str(new/'red'), with_labels=True)) == ['red']*3
    (new/'red'/'2021').mkdir()
    files[0].rename(new/'red'/'2021'/'x.png')
    assert labels_of(dls.test_dl(new, with_labels=True)) == expected[::-1]
    monkeypatch.chdir(new/'red')
    assert labels_of(dls.test_dl(['000.png', Path('001.png')], with_labels=True)) == ['red']*2
    assert len(dls.test_dl('000.png').dataset) == 1 and len(dls.test_dl(new).one_batch()) == 1


def test_labels_of_the_data_come_first_in_any_spelling(folder, monkeypatch):
    "Files of a table whose folders say nothing, named from another working directory"
    (folder/'all').mkdir()
    rows = [(p.rename(folder/'all'/f'{p.parent.name}{p.name}'), p.parent.name) for p in sorted(folder.rglob('*.png'))]
    monkeypatch.chdir(folder)
    dls = image_dataloaders(pd.DataFrame([(f'all/{p.name}', l) for p, l in rows], columns=['path', 'label']), 'test_efficientnet', size=32, bs=8, num_workers=0, check=False)
    some = rows[::7]
    for items in ([f'all/{p.name}' for p, _ in some], [p for p, _ in some], [f'./all/../all/{p.name}' for p, _ in some]):
        assert labels_of(dls.test_dl(items, with_labels=True)) == [l for _, l in some]


@pytest.mark.parametrize('form', ['pairs', 'dict', 'DataFrame', 'CSV', 'images'])
def test_labels_are_given(elsewhere, form):
    dls, new = elsewhere
    files = sorted(new.rglob('*.png'))[::-1]
    labels = ['green', ' blue', 'red', 'red', 'blue']
    df = pd.DataFrame(dict(n=range(5), label=labels, path=list(map(str, files))))
    df.to_csv(new/'table.csv', index=False)
    given = dict(pairs=list(zip(files, labels)), dict=dict(zip(files, labels)), DataFrame=df, CSV=new/'table.csv',
                 images=[(read_image(f), l) for f, l in zip(files, labels)])[form]
    dl = dls.test_dl(given, with_labels=True)
    expected = [o.strip() for o in labels]
    assert labels_of(dl) == (expected[::-1] if form == 'CSV' else expected)   # sorted by path, as from a CSV file always
    same = dls.test_dl(files[::-1] if form == 'CSV' else files)
    assert torch.equal(dl.one_batch()[0], same.one_batch()[0]) and len(dls.test_dl(given).one_batch()) == 1


def test_what_has_no_label_or_another_is_refused(elsewhere, tmp_path):
    dls, new = elsewhere
    stray = picture(0, 0).save(tmp_path/'stray.png') or tmp_path/'stray.png'
    for items, words in (([stray], 'not named after its classes'), ([stray.read_bytes()], '1 of 1 images have no label'), (tmp_path, 'have no label'),
                         ([(stray, 'cat')], "not classes of this data: 'cat'"), (pd.DataFrame(dict(file=[stray], label='red')), 'column path'), ([], 'empty')):
        with pytest.raises(ValueError, match=words): dls.test_dl(items, with_labels=True)
    (tmp_path/'nothing').mkdir()
    with pytest.raises(FileNotFoundError, match='no images'): dls.test_dl(tmp_path/'nothing')


def test_what_the_messages_recommend_works(elsewhere, tmp_path):
    "`evaluate`, `calibrate`, `tta`, `predict` and a learner from a pickle, on files elsewhere"
    from fastai.learner import load_learner
    dls, new = elsewhere
    learn = transfer_learner(dls, **TINY)
    with learn.no_bar(), learn.no_logging():
        for ask in (learn.evaluate, learn.calibrate):
            with pytest.raises(ValueError, match=r'learn\.dls\.test_dl\(files, with_labels=True\)'): ask(dl=dls.test_dl(sorted(new.rglob('*.png'))))
        dl = dls.test_dl(new, with_labels=True)
        assert learn.evaluate(dl=dl, show=False).n == len(learn.tta(dl=dl, show=False)[1]) == 5 and learn.calibrate(dl=dl) > 0
        assert learn.predict(str(new/'red'/'000.png'))[0] == learn.predict(new/'red'/'000.png')[0] in dls.vocab
        super(type(learn), learn).export(tmp_path/'learner.pkl')
        with pytest.warns(UserWarning, match='pickle'): again = load_learner(tmp_path/'learner.pkl')
        with again.no_bar(), again.no_logging(): assert again.get_preds(dl=again.dls.test_dl(new, with_labels=True))[1].tolist() == [0]*2 + [2]*3


# 16 bits

def gray16(path, i, top, mode='I;16', size=(24, 20)):
    "A picture of 16 bits with values of 0 to `top`, darker for class a"
    values = np.random.default_rng(i).integers(0, top + 1, size[::-1]) // (1 + (path.parent.name == 'a'))
    values[0, 0] = top
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes(mode, size, values.astype('>u2' if mode == 'I;16B' else '<i4' if mode == 'I' else '<u2').tobytes()).save(path)
    return path


def write_gray16(root, top, n=6, ending='png', **kwargs):
    for label in 'ab':
        for i in range(n): gray16(root/label/f'{i}.{ending}', i, top, **kwargs)
    return root


def loaders16(root, **kwargs): return image_dataloaders(root, 'test_efficientnet', size=32, bs=4, num_workers=0, device='cpu', **kwargs)


def test_the_scale_of_16_bits():
    "The full scale is what it was; 8, 10, 12 and 14 bits use all gray levels; what is above is white"
    from fastbit.data.decode import to_rgb
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    of = lambda a, top: np.asarray(to_rgb(Image.fromarray(a), top))[..., 0]
    assert np.array_equal(of(every, 65535), (every.astype(int) + 128)//257)
    for bits in (8, 10, 12, 14):
        got, top = of(every, 2**bits-1).ravel(), 2**bits-1
        assert np.array_equal(np.unique(got), np.arange(256)) and (got[top:] == 255).all()
        assert np.abs(got[:top+1] - np.arange(top+1)*255/top).max() <= .5
    assert np.array_equal(of(every[:1], 255)[0], np.arange(256))   # 8-bit values come back as they are


@pytest.mark.parametrize('mode, ending', [('I;16', 'png'), ('I;16', 'tif'), ('I;16B', 'tif'), ('I', 'tif')])
@pytest.mark.parametrize('top, levels, bits', [(255, 2, 8), (1000, 5, 10), (4095, 17, 12), (16383, 65, 14)])
def test_a_set_that_uses_little_of_16_bits_is_reported(tmp_path, mode, ending, top, levels, bits):
    "With the scale to type, and with that scale not any more"
    write_gray16(tmp_path, top, 3, ending, mode=mode)
    said = rf'6 of 6 images have 16 bits per pixel and values up to {top}: .*{levels} of 256 gray levels.*max_value={2**bits-1} '
    with pytest.warns(DataWarning, match=said): loaders16(tmp_path)
    dls = loaders16(tmp_path, max_value=2**bits-1)
    assert dls.preprocess.max_value == 2**bits-1 and dls.report.peak.tolist() == [top]*6
    x = torch.cat([b[0] for b in loaders16(tmp_path, max_value=2**bits-1, resize='pad').valid])
    assert x.max() > .9


@pytest.mark.parametrize('top', [16384, 30000, 65535])
def test_a_set_that_uses_its_bits_is_not_reported(tmp_path, top): loaders16(write_gray16(tmp_path, top, 3))


def test_the_whole_set_decides(tmp_path):
    "One bright image, mixed depths, 16-bit colors, too small a scale, a scale for nothing"
    write_gray16(tmp_path/'bright', 4095, 3)
    gray16(tmp_path/'bright'/'a'/'x.png', 9, 60000)
    loaders16(tmp_path/'bright')
    mixed = write_folder(tmp_path/'mixed', dict(a=4, b=4))
    loaders16(mixed)
    gray16(mixed/'a'/'x.png', 9, 4095)
    with pytest.warns(DataWarning, match='1 of 9 images have 16 bits'): loaders16(mixed)
    loaders16(mixed, max_value=4095)
    gray16(mixed/'a'/'x.png', 9, 5000)
    with pytest.warns(DataWarning, match='1 of 9 images have values above max_value=4095, up to 5000'): loaders16(mixed, max_value=4095)
    (mixed/'a'/'x.png').unlink()
    with pytest.warns(DataWarning, match='max_value=4095 has no effect'): loaders16(mixed, max_value=4095)
    for wrong in (0, 65536, 4095., True, '12'):
        with pytest.raises(ValueError, match='max_value=.*whole number'): loaders16(mixed, max_value=wrong)


def png16(path, top):
    "A color PNG of 16 bits, which Pillow reads and does not write"
    import struct, zlib
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    rows = b''.join(b'\0' + np.full((20, 3), top, '>u2').tobytes() for _ in range(20))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 20, 20, 16, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))


def test_colors_of_16_bits_are_reported_where_their_upper_bytes_are_dark(tmp_path):
    data = write_folder(tmp_path/'data', dict(a=4, b=4))
    png16(data/'a'/'x.png', 65535)
    loaders16(data)
    png16(data/'a'/'x.png', 4095)
    with pytest.warns(DataWarning, match='1 of 9 images have colors of 16 bits and values up to about 4095.*16 of 256 levels'): loaders16(data)


def test_training_prediction_cache_and_export_have_one_scale(tmp_path):
    "A file's row in validation is its prediction; the cache keeps scales apart; the artifact brings its own; findings are kept"
    from fastbit.export import load_predictor
    write_gray16(tmp_path/'data', 4095)
    dls = loaders16(tmp_path/'data', max_value=4095)
    plain = loaders16(tmp_path/'data', max_value=4095, cache=False)
    with pytest.warns(DataWarning, match='17 of 256'): dark = loaders16(tmp_path/'data')
    for _ in range(2): assert torch.equal(dls.valid.one_batch()[0], plain.valid.one_batch()[0])
    assert dark.valid.one_batch()[0].max() < .07 < .9 < dls.valid.one_batch()[0].max()
    learn = transfer_learner(dls, **TINY)
    with learn.no_bar(), learn.no_logging():
        learn.fit_head(1)
        probs = learn.get_preds()[0]
        learn.export(tmp_path/'model')
    predictor = load_predictor(tmp_path/'model', 'cpu')
    assert predictor.about.preprocess.max_value == 4095
    got = predictor.predict(list(dls.valid.items), probs=True).filter(like='p(').to_numpy()
    assert np.abs(got - probs.numpy()).max() < 1e-5


def test_check_reports_the_depth_and_takes_the_scale(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_gray16(tmp_path/'data', 4095, 12, size=(40, 40))
    check = lambda *more: (main(['check', 'data', *QUICK[:-4], '--no-labels', '--out', f'out{len(more)}', *more]), capsys.readouterr().out)
    status, said = check()
    assert status == 1 and 'dark for their bit depth: 1' in said and '--max-value 4095' in said
    assert 'bit depth' not in check('--max-value', '4095')[1]
    assert main(['check', 'data', '--max-value', '0']) == 2


def test_a_baseline_says_and_keeps_the_scale(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_gray16(tmp_path/'data', 4095, 8)
    words = ['baseline', 'data', *QUICK, '--recipe', 'head', '--dry-run']
    with warnings.catch_warnings():
        warnings.simplefilter('always')   # the command prints them
        assert main(words) == 0 and 'note: 16 of 16 images have 16 bits' in capsys.readouterr().err
    assert main([*words, '--max-value', '4095']) == 0
    both = capsys.readouterr()
    assert '16-bit values of 0 to 4095 scaled to 0 to 255' in both.out and not both.err


# What is no image

def test_two_images_are_not_an_image_with_its_label(elsewhere):
    dls, new = elsewhere
    a, b, *_ = sorted(new.rglob('*.png'))
    data, px = b.read_bytes(), np.zeros((8, 8, 3), np.uint8)
    for pair in ([a, b], (str(a), str(b)), (a, data), (a, px), (a, picture(0, 0)), [a, b, b], (a, 'gone.png')):
        with pytest.raises(TypeError, match='one flat list'): dls.test_dl([pair])
    with pytest.raises(TypeError, match='one flat list'): dls.test_dl([[a, b], [b, a]])
    assert len(dls.test_dl([(a, 'red'), (b, 'blue')]).dataset) == 2 and len(dls.test_dl([a, b]).dataset) == 2
    learn = transfer_learner(dls, **TINY)
    with pytest.raises(TypeError, match='one flat list'): learn.predict([a, b])


NO_IMAGES = {
    'opened file': (lambda p: io.BytesIO(p.read_bytes()), TypeError, r"open\(path, 'rb'\)\.read"),
    'opened files': (lambda p: [io.BytesIO(p.read_bytes())], TypeError, r"open\(path, 'rb'\)\.read"),
    'tensors': (lambda p: [torch.zeros(3, 8, 8)], TypeError, 'permute'), 'None': (lambda p: None, TypeError, 'NoneType is not an image'),
    'numbers': (lambda p: [1, 2], TypeError, 'int is not an image'), 'number': (lambda p: 3, TypeError, 'int is not an image'),
    'empty table': (lambda p: pd.DataFrame(dict(path=[])), ValueError, 'table is empty'),
    'missing folder': (lambda p: p.parent/'gone', FileNotFoundError, 'no such file or folder: .*gone')}


@pytest.mark.parametrize('what', NO_IMAGES)
def test_what_is_not_an_image_is_refused_by_test_dl(what, elsewhere):
    dls, new = elsewhere
    make, error, words = NO_IMAGES[what]
    with pytest.raises(error, match=words): dls.test_dl(make(next(new.rglob('*.png'))))


def test_columns_and_batches_of_test_dl(elsewhere):
    dls, new = elsewhere
    files = sorted(map(str, new.rglob('*.png')))
    assert len(dls.test_dl(pd.DataFrame(dict(filename=files))).dataset) == len(files)
    with pytest.raises(ValueError, match='bs=0: a batch'): dls.test_dl(files, bs=0)
