"Explained by examples: neighbors, the map of features, embed, similar and label-next, as a user meets them"
import json, os, shutil

import numpy as np, pandas as pd, pytest, torch
from fastai.metrics import accuracy
from fastai.vision.augment import Resize
from fastai.vision.data import ImageDataLoaders
from safetensors.numpy import save_file
from sklearn.neighbors import NearestNeighbors

from fastbit.baseline import baseline
from fastbit.cli.command import main
from fastbit.data import image_dataloaders, nearest_rows
from fastbit.export import load_index, load_predictor
from fastbit.report.examples import ExampleFeatures, example_features, explain_mistakes, near_note
from fastbit.report.feature_map import map_picture
from fastbit.studies import rank_to_label
from fastbit.training import transfer_learner
from conftest import TINY, look_at, picture, write_folder

QUICK = dict(TINY, size=32, num_workers=0, recipe='head', epochs=2, verbose=False)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "(folder, the result of a run with mistakes): the body has random weights"
    root = tmp_path_factory.mktemp('examples')
    data = write_folder(root/'data', dict(blue=14, green=14, red=14))
    res = baseline(data, **QUICK, out=root/'run')
    return root, res


def n_train(res) -> int: return int((res.learn.dls.table.split == 'train').sum())


@pytest.fixture(scope='module')
def predictor(run): return load_predictor(run[0]/'run', 'cpu')


# Features

def test_neighbors_are_those_of_scikit_learn(run):
    found = run[1].findings.features
    near = nearest_rows(found.held_out, found.train.rows, 5)
    distance, index = NearestNeighbors(n_neighbors=5, metric='cosine', algorithm='brute').fit(found.train.rows).kneighbors(found.held_out)
    assert np.allclose(near.similarity, 1 - distance, atol=1e-5)
    agree = (near.index == index) | (np.abs(np.diff(near.similarity, append=-1, axis=1)) < 1e-5)   # ties may come in another order
    assert agree.mean() > .95


def test_features_of_a_run_are_those_of_embed_and_of_the_plain_model(run, predictor):
    "Cached or computed, folded or not, in a batch or alone"
    found, paths = run[1].findings.features, run[1].findings.paths
    of_run = found.held_out
    embedded = predictor.embed([paths[i] for i in found.rows]).features
    net, dl = run[1].learn.model.net.eval(), run[1].learn.dls.valid
    x = torch.cat([b[0] for b in dl])
    with torch.no_grad(): plain = net.forward_head(net.forward_features(run[1].learn.model.normalized(x)), pre_logits=True).numpy()[found.rows]
    alone = np.concatenate([predictor.embed(paths[i]).features for i in found.rows[:3]])
    scale = np.abs(plain).max()
    assert np.abs(of_run - plain).max() < 1e-5*scale and np.abs(embedded - plain).max() < 1e-5*scale and np.abs(alone - plain[:3]).max() < 1e-5*scale
    assert embedded.dtype == np.float32 and embedded.shape[1] == net.num_features


def test_an_unreadable_image_has_a_row_of_nan(predictor, tmp_path):
    (tmp_path/'broken.png').write_bytes(b'no image')
    picture(0, 0).save(tmp_path/'right.png')
    found = predictor.embed([tmp_path/'broken.png', tmp_path/'right.png', b'nothing'])
    assert np.isnan(found.features).all(1).tolist() == [True, False, True] and found.reasons[1] == '' and all(found.reasons[::2])
    assert found.paths[2] == '' and predictor.embed([]).features.shape == (0, found.features.shape[1])


def test_an_ensemble_has_no_features(run, predictor):
    "With folds each image was predicted by another model, whose features cannot be compared"
    from dataclasses import replace
    from fastbit.export import Predictor
    from fastbit.export.ensemble import EnsembleModel
    both = Predictor(EnsembleModel([predictor.model, predictor.model]), predictor.about)
    with pytest.raises(ValueError, match='an ensemble of 2, and each of them has different features'): both.embed(run[1].findings.paths)
    assert example_features(replace(run[1].findings, n_models=2, features=None)) is None


# The report

def test_the_report_explains_its_mistakes(run):
    res, page = run[1], (run[0]/'run'/'report.html').read_text()
    n_wrong = int((res.findings.predicted != res.findings.targs).sum())
    assert n_wrong, 'an untrained body that is right everywhere'
    explained = explain_mistakes(res.findings)
    assert explained and all(len(e.neighbors) == 3 for e in explained.values())
    assert all((n.label == 'blue') == ('/blue/' in n.picture.file) for e in explained.values() for n in e.neighbors)
    assert 'class="neighbors"' in page and 'Map of the features' in page and f'{n_train(res)} training images' in page
    assert json.loads((run[0]/'run'/'results.json').read_text())['seconds']['features'] > 0


@pytest.mark.parametrize('width, dark', [(1280, True), (390, False)])
def test_it_fits_a_screen(run, width, dark):
    seen = look_at(run[0]/'run'/'report.html', width, dark)
    assert seen['too_wide'] <= 0 and not seen['errors'] and not seen['broken'] and 'Below each mistake' in seen['text']


def test_nothing_without_mistakes(run):
    from dataclasses import replace
    from fastbit.report import make_report
    f = run[1].findings
    right = replace(f, probs=torch.eye(3)[f.targs])
    html = make_report(right).html
    assert explain_mistakes(right) == {} and 'class="neighbors"' not in html and 'No image was misclassified' in html
    assert ', 0 mistakes are ringed' in map_picture(right).alt or '; 0 mistakes are ringed' in map_picture(right).alt


def test_a_nearly_identical_neighbor_with_another_label():
    assert near_note('cat', ['dog', 'cat'], [.991, .99], .98) == 'Nearly identical (0.991) to a training image labeled dog: likely a label error or a near-duplicate.'
    assert near_note('cat', ['cat', 'dog'], [.999, .97], .98) == '' and near_note('cat', ['dog'], [.98], .98) == ''


def test_loaders_that_fastbit_did_not_make_have_none(run):
    dls = ImageDataLoaders.from_folder(run[0]/'data', valid_pct=.3, item_tfms=Resize(32), bs=8, num_workers=0, seed=0)
    learn = transfer_learner(dls, **TINY, metrics=accuracy)
    html = learn.report().html
    assert 'Highest-loss images' in html and 'class="neighbors"' not in html and 'Map of the features' not in html


def test_time_limits_the_training_images(run):
    f = run[1].findings
    from dataclasses import replace
    slow = f.tta.assign(seconds=3.*len(f.targs))   # three seconds per image
    learn = transfer_learner(image_dataloaders(run[0]/'data', 'test_efficientnet', size=32, num_workers=0), **TINY)
    learn.freeze_to(0)   # features that are in no cache
    found = example_features(replace(f, learn=learn, tta=slow, features=None), limit=30.)
    assert isinstance(found, ExampleFeatures) and 3 <= len(found.train) <= 10 and found.train.words == f'{len(found.train)} of {n_train(run[1])}'


# The file of a run, and similar images

def test_similar_images_in_another_process(run, predictor):
    "The folder of the results is all that is needed"
    root, res = run
    query = res.findings.paths[0]
    near = predictor.similar(query, n=4)
    exact = nearest_rows(predictor.embed(query).features, res.findings.features.train.rows, 4)
    assert np.allclose(near.similarity, exact.similarity[0], atol=1e-3) and len(near) == 4
    assert load_predictor(root/'run'/'model', 'cpu').similar(query, n=4).equals(near)
    assert all(os.path.isabs(p) and os.path.exists(p) for p in near.path)


def test_a_training_image_is_not_its_own_neighbor(run, predictor):
    first = predictor.training_index().paths[0]
    assert first not in predictor.similar(first, n=99).path.tolist() and len(predictor.similar(first, n=99)) == n_train(run[1]) - 1


NOTES = pytest.mark.filterwarnings('default::fastbit.core.text.DataWarning')   # as the command prints them


@NOTES
def test_training_images_that_moved_are_reported(run, tmp_path, capsys):
    root, query = run[0], str(run[1].findings.paths[0])
    shutil.copytree(root/'run', tmp_path/'run')
    shutil.copytree(root/'data', tmp_path/'data')
    os.rename(root/'data', root/'elsewhere')
    try: status = main(['similar', str(tmp_path/'run'), query.replace(str(root), str(tmp_path))])
    finally: os.rename(root/'elsewhere', root/'data')
    err = capsys.readouterr().err
    assert status == 0 and '5 of 5 training images are no longer there' in err and '--in FOLDER' in err
    assert main(['similar', str(tmp_path/'run'), query.replace(str(root), str(tmp_path)), '--in', str(tmp_path/'data')]) == 0
    assert str(tmp_path/'data') in capsys.readouterr().out


@pytest.mark.parametrize('damage, words', [
    (lambda f: f.write_bytes(b'nothing'), 'cannot be used'),
    (lambda f: save_file(dict(rows=np.zeros((2, 3), np.float16)), f, metadata=dict(paths='["a"]', labels='["b"]', n_images='0', model='')), 'do not match'),
    (lambda f: save_file(dict(rows=np.zeros((1, 3), np.float16)), f, metadata=dict(paths='[1]', labels='["b"]', n_images='0', model='')), 'do not match'),
    (lambda f: save_file(dict(rows=np.zeros((1, 3), np.float16)), f, metadata=dict(labels='["b"]', model='')), "it has no 'paths'"),
    (lambda f: save_file(dict(other=np.zeros(3, np.float16)), f), 'cannot be used'),
    (lambda f: save_file(dict(rows=np.zeros((1, 3), np.float16)), f, metadata=dict(paths='["a"]', labels='["b"]', n_images='0', model='0'*64)), 'made by other weights')])
def test_a_damaged_file_is_refused(tmp_path, damage, words):
    damage(tmp_path/'neighbors.safetensors')
    with pytest.raises(ValueError, match=words): load_index(tmp_path/'neighbors.safetensors', '1'*64)


# The commands

@NOTES
def test_commands_end_to_end(run, tmp_path, capsys):
    root = run[0]
    (tmp_path/'new').mkdir()
    for i in range(6): picture(900+i, i % 3).save(tmp_path/'new'/f'{i}.png')
    (tmp_path/'new'/'broken.png').write_bytes(b'no image')
    args = [str(root/'run'), str(tmp_path/'new')]
    assert main(['embed', *args, '-o', str(tmp_path/'out'/'f.parquet')]) == 1   # one image cannot be read
    shown = capsys.readouterr()
    assert '7 images' in shown.out and '1 of 7 images cannot be read' in shown.err and shown.err.count('\n') == 1
    table = pd.read_parquet(tmp_path/'out'/'f.parquet')
    assert list(table)[:3] == ['path', 'reason', 'f0'] and table.f0.isna().sum() == 1 and (table.reason != '').sum() == 1
    assert main(['similar', *args, '-n', '2', '--html', str(tmp_path/'out'/'s.html')]) == 1
    shown = capsys.readouterr().out
    assert f'compared with {n_train(run[1])} training images' in shown and shown.count('predicted ') == 6 and (tmp_path/'out'/'s.html').read_text().count('<img') == 18
    assert main(['label-next', *args, '-n', '3']) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 4 and shown[0].split() == ['score', 'image', 'reason'] and all(' or ' in line for line in shown[1:])
    assert main(['label-next', *args, '-n', '3', '--csv']) == 0
    assert capsys.readouterr().out.startswith('path,score,prediction,probability,represents,similarity,reason\n')


@pytest.mark.parametrize('args, message', [
    (['similar', 'nowhere', 'data'], "There is no folder 'nowhere'"),
    (['similar', 'data', 'data'], 'is not a fastbit results folder'),
    (['embed', 'run', 'nowhere', '-o', 'f.csv'], "There is no folder or file 'nowhere'"),
    (['embed', 'run', 'data', '-o', 'f.txt'], 'the name ends in .parquet, .csv or .npz'),
    (['embed', 'run', 'data', '-o', '/dev/null/f.csv'], 'cannot be written'),
    (['embed', 'run', 'data'], 'required: -o'),
    (['similar', 'run', 'data', '--in', 'nowhere'], "There is no folder or file 'nowhere'"),
    (['similar', 'run', 'data', '-n', '0'], '-n 0: 1 or more'),
    (['similar', 'run', 'data', '--html', 'x.txt'], 'the name ends in .html'),
    (['similar', 'run', 'https://example.org/a.jpg'], 'is an address'),
    (['label-next', 'run', 'data/red/000.png', 'data/green/000.png', '-n', '0'], '-n 0: 1 or more'),
    (['label', 'run', 'data'], 'did you mean label-next?')])
def test_errors_are_one_line(run, args, message, capsys, monkeypatch):
    monkeypatch.chdir(run[0])
    try: status = main(args)
    except SystemExit as e: status = e.code
    err = [o for o in capsys.readouterr().err.splitlines() if ': note: ' not in o]
    assert status == 2 and len(err) == 1 and message in err[0], err


def test_a_model_without_its_training_images(run, tmp_path, capsys):
    shutil.copytree(run[0]/'run'/'model', tmp_path/'model')
    image = str(run[1].findings.paths[0])
    assert main(['similar', str(tmp_path/'model'), image]) == 2
    assert 'has no neighbors.safetensors' in (err := capsys.readouterr().err) and '--in FOLDER' in err
    assert main(['similar', str(tmp_path/'model'), image, '--in', str(run[0]/'data')]) == 0
    with pytest.warns(UserWarning, match=f"^{n_train(run[1])} training images of the model's run are among these 42;"): df = rank_to_label(tmp_path/'model', run[0]/'data', n=30)
    assert df.similarity.isna().all() and set(df.path) == set(map(str, run[1].findings.paths))   # without results, held-out images are unknown


@pytest.fixture(scope='module')
def new_images(tmp_path_factory):
    files = [tmp_path_factory.mktemp('new')/f'{i}.png' for i in range(4)]
    for i, f in enumerate(files): picture(700+i, i % 3).save(f)
    return list(map(str, files))


def test_images_with_labels_are_not_proposed(run, predictor, new_images, tmp_path):
    "Training images under any name, in the index or not, and held-out images"
    table = run[1].learn.dls.table
    train, held_out = table.path[table.split == 'train'].tolist(), table.path[table.split != 'train'].tolist()
    copies = [shutil.copy(p, tmp_path/f'copy{i}.png') for i, p in enumerate(train)]
    words = f"^{len(train)} training and {len(held_out)} held-out images of the model's run are among these {len(table) + 4};"
    with pytest.warns(UserWarning, match=words) as seen: df = rank_to_label(run[1], [*copies, *held_out, *new_images], n=99)
    assert sorted(df.path) == sorted(new_images) and len(seen) == 1
    (tmp_path/'link').symlink_to(run[0]/'data')
    with pytest.warns(UserWarning, match='labels and are skipped'), pytest.raises(ValueError, match="all are, or may be, of this model's run"): rank_to_label(predictor, tmp_path/'link')


def test_a_sample_of_the_training_images_is_reported(run, predictor, new_images):
    from dataclasses import replace
    from fastbit.export import Predictor
    from fastbit.export.record import training_digests
    digests = sorted(d[:16] for d in training_digests(run[1].learn.dls.table.path))
    of = lambda **about: Predictor(predictor.model, replace(predictor.about, **about))
    sample = of(trained_on=dict(images=5000, digests=digests[:20]))   # of 42 images the 20 with the smallest digests
    with pytest.warns(UserWarning) as seen: df = rank_to_label(sample, [*run[1].learn.dls.table.path, *new_images], n=99)
    unseen = [p for p, d in zip(new_images, training_digests(new_images)) if d[:16] < digests[19]]
    assert set(df.path) == set(unseen) and unseen
    assert [str(w.message).split(':')[0] for w in seen] == [
        "20 training images of the model's run are among these 46; they have labels and are skipped.",
        f'{22 + 4 - len(unseen)} of 46 images may be training images and are skipped']
    with pytest.warns(UserWarning, match='a record of 20 of its 5000 training images, so others .* would not be recognized'): assert len(rank_to_label(sample, new_images)) == 4
    with pytest.warns(UserWarning, match='has no record of all its training images'): assert len(rank_to_label(of(trained_on=None), new_images)) == 4


def test_the_batch_size_holds_for_the_folder_too(run, new_images, monkeypatch, capsys):
    from fastbit.export import Predictor
    index_images, seen = Predictor.index_images, []
    monkeypatch.setattr(Predictor, 'index_images', lambda self, images, bs=None: seen.append(bs) or index_images(self, images, bs))
    assert main(['similar', str(run[0]/'run'), new_images[0], '--in', os.path.dirname(new_images[0]), '--batch-size', '3']) == 0 and seen == [3]
