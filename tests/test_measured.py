"What `fastbit evaluate` measures: on a run's own data the images, groups and interval of the run; on others near-duplicates count once"
import re, shutil
from pathlib import Path

import numpy as np, pandas as pd, pytest
from PIL import Image

from fastbit.baseline import baseline
from fastbit.cli.command import main
from fastbit.data.check import check_images
from fastbit.data.copies import picture_numbers
from fastbit.data.groups import find_groups
from fastbit.export.measured import held_out_images, part_rows, with_run_split
from fastbit.export.predict import load_predictor
from conftest import TINY, write_folder

SHARED = dict(TINY, size=32, num_workers=0, recipe='head', verbose=False)


def draw(file: Path, seed: int):
    "Draw a picture unlike those of other seeds: none are near-duplicates"
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (4, 4, 3)).astype('uint8')).resize((40, 40)).save(file)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "60 images of three classes, each picture twice; validation and test images drawn by fastbit"
    root = tmp_path_factory.mktemp('measured')
    for k, name in enumerate('abc'):
        (root/'data'/name).mkdir(parents=True)
        for i in range(10):
            draw(root/'data'/name/f'{i}.png', 100*k + i)
            Image.open(root/'data'/name/f'{i}.png').resize((48, 48)).save(root/'data'/name/f'{i}-large.png')
    return root, baseline(root/'data', test_pct=.3, out=root/'out', **SHARED)


def evaluated(capsys, *words) -> str:
    assert main(['evaluate', *map(str, words)]) == 0
    return capsys.readouterr().out


def figures(text) -> tuple: return re.search(r'accuracy ([\d.]+)% \(95% CI ([^,]*), n = (\d+) in (\d+) independent groups\)', text).groups()


def test_on_its_own_data_a_run_and_evaluate_agree(run, capsys):
    "It measured validation and test images together, and took copies for independent images"
    root, result = run
    said = evaluated(capsys, root/'out', root/'data')
    e = result.evaluation
    accuracy, interval, n, n_groups = figures(said)
    assert (int(n), int(n_groups), float(accuracy)) == (e.n, e.n_groups, round(100*e.accuracy, 2)) and e.n_groups == e.n//2
    assert interval in str(result) and 'the test split' in said and f'--split valid measures the {len(result.predictions) - e.n} images' in said
    assert f'{e.n} near-duplicates of {e.n_groups} pictures' in said
    valid = evaluated(capsys, root/'out', root/'data', '--split', 'valid')
    assert 'the valid split' in valid and result.validation.n == int(figures(valid)[2])
    assert figures(evaluated(capsys, root/'out'/'model', root/'data')) == figures(said)   # the model alone, next to its results


def test_other_images_keep_what_is_known_of_them(run, tmp_path, capsys):
    root, result = run
    for f in root.joinpath('data').rglob('*.png'):
        to = tmp_path/'moved'/f.relative_to(root/'data')
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, to)
    held_out = len(result.predictions)
    moved = evaluated(capsys, root/'out', tmp_path/'moved')   # nothing tells its split; the digests of training images do
    assert f'all, {held_out} images' in moved and 'as the run drew it' not in moved and figures(moved)[3] == str(held_out//2)
    draw(tmp_path/'moved'/'a'/'new.png', 999)
    assert f'all, {held_out + 1} images' in evaluated(capsys, root/'out', tmp_path/'moved')
    given = evaluated(capsys, root/'out', root/'data', '--group-regex', r'^([abc])/')
    assert 'near-duplicates' not in given and 'in 3 independent groups' in given


def test_one_image_more_is_another_sample(run):
    root, _ = run
    known = held_out_images(load_predictor(root/'out', 'cpu'))
    table = pd.DataFrame(dict(path=known.path, label='a', split=''))
    drawn, words = with_run_split(table, known)
    assert words and (drawn.split == known.split).all() and set(part_rows(drawn).split) == {'test'}
    assert drawn.group.tolist() == known.group.tolist()   # also those that the images do not show
    own = with_run_split(table.assign(group='mine'), known)[0]
    assert set(own.group) == {'mine'}
    more = pd.concat([table, pd.DataFrame(dict(path=['new.png'], label='a', split=''))], ignore_index=True)
    for rows, of in ((more, known), (table.assign(split='test'), known), (table, known.assign(fold=1)), (table, known[:0]), (table[:0], known)):
        same, nothing = with_run_split(rows, of)
        assert same is rows and nothing == ''


@pytest.mark.parametrize('text', ['', 'a,b\n1,2\n', 'path\nx.png\n', '"', '\xff'])
def test_a_file_of_something_else_is_no_record(run, tmp_path, text):
    root, _ = run
    shutil.copytree(root/'out', tmp_path/'out')
    (tmp_path/'out'/'predictions.csv').write_bytes(text.encode('latin-1'))
    assert held_out_images(load_predictor(tmp_path/'out', 'cpu')).empty


def test_an_unreadable_file_is_a_picture_by_itself(tmp_path):
    "Two of them had no number, and pandas takes two missing numbers for equal"
    folder = write_folder(tmp_path/'data', dict(blue=3))
    files = sorted(map(str, folder.rglob('*.png')))
    for name in ('x.png', 'y.png'): (folder/'blue'/name).write_text('no image')
    table = pd.DataFrame(dict(path=[*files, str(folder/'blue'/'x.png'), str(folder/'blue'/'y.png')], label='blue', split=''))
    numbers = picture_numbers(check_images(table.path))
    assert set(numbers) == set(files)
    assert find_groups(table, {p: i for i, p in enumerate(files)}) is None
    other = table.assign(label=['a', 'b', 'a', 'b', 'a'])
    groups = find_groups(other, dict.fromkeys(files[:2], 0) | {files[2]: 1})
    assert groups.tolist() == [files[0], files[0], *other.path[2:]]
