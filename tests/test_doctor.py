"Faults that were put in are found, with the recall and the precision that the documentation states, and nothing is changed"
import os, re, shutil, sys, warnings
from pathlib import Path

import numpy as np, pandas as pd, pytest
from PIL import Image, ImageDraw

from fastbit.studies import check_data, label_table
from fastbit.studies.detect import KINDS, check_labels, group_ids
from conftest import look_at, picture, run_fastbit

COLOURS = dict(bird='#1f77b4', cat='#d62728', fox='#2ca02c', owl='#9467bd')


def drawing(label: str, i: int) -> Image.Image:
    "Shapes of a class's colour anywhere on a pale ground: no two are alike"
    rng = np.random.default_rng([i, *label.encode()])
    img = Image.new('RGB', (96, 80), tuple(rng.integers(190, 255, 3)))
    d = ImageDraw.Draw(img)
    for _ in range(rng.integers(3, 7)):
        x, y, w, h = rng.integers(0, 70), rng.integers(0, 55), *rng.integers(12, 45, 2)
        (d.ellipse if label in ('bird', 'cat') else d.rectangle)([x, y, x+w, y+h], fill=COLOURS[label], outline='black')
    return Image.fromarray((np.asarray(img) + rng.normal(0, 12, (80, 96, 3))).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope='module')
def planted(tmp_path_factory):
    "(folder, what was planted: kind -> names of files)"
    root, faults = tmp_path_factory.mktemp('check')/'data', {}
    for part, n in (('train', 50), ('valid', 15)):
        for label in COLOURS:
            (root/part/label).mkdir(parents=True)
            for i in range(n): drawing(label, i + 1000*(part == 'valid')).save(root/part/label/f'{label}{i:03d}.png')
    put = lambda kind, path: faults.setdefault(kind, set()).add(path.name)
    for k, label in enumerate(COLOURS):
        files = sorted((root/'train'/label).iterdir())
        shutil.copy(files[0], p := root/'valid'/label/f'{label}-copy.png'); put('copy_across_splits', p)
        with Image.open(files[1]) as img: img.resize((144, 120)).save(p := root/'valid'/label/f'{label}-anew.jpg', quality=85); put('copy_across_splits', p)
        shutil.copy(files[2], p := root/'train'/label/f'{label}z-twice.png'); put('copy', p)
        (p := root/'train'/label/f'{label}-cut.png').write_bytes(files[3].read_bytes()[:-150]); put('truncated', p)
        exif = Image.Exif(); exif[0x112] = 6
        with Image.open(files[4]) as img: drawing(label, 777+k).transpose(Image.Transpose.ROTATE_90).save(p := root/'train'/label/f'{label}-turned.jpg', exif=exif); put('rotated', p)
    (p := root/'train'/'fox'/'page.jpg').write_bytes(b'<html>'); put('unreadable', p)
    Image.new('RGB', (10, 9), 'green').save(p := root/'train'/'fox'/'dot.png'); put('tiny', p)
    shutil.copy(root/'train'/'cat'/'cat010.png', p := root/'train'/'owl'/'owl-cat.png'); put('copy_other_label', p)
    names = list(COLOURS)
    for k in range(10):   # a twentieth of the training labels
        old, new = names[k % 4], names[(k + 1 + k//4) % 4]
        if old == new: new = names[(k + 2) % 4]
        p = root/'train'/new/f'was-{old}-{k}.png'
        (root/'train'/old/f'{old}{20+k:03d}.png').rename(p); put('label', p)
    return root, faults


@pytest.fixture(scope='module')
def checked(planted, tmp_path_factory):
    os.environ['FASTBIT_CACHE'] = str(tmp_path_factory.mktemp('cache'))
    return check_data(planted[0], size=64, out=tmp_path_factory.mktemp('out')/'check', verbose=False)


def _names(checked, kind): return {os.path.basename(p) for p in checked.rows.path[checked.rows.kind == kind]}


@pytest.mark.parametrize('kind', ['truncated', 'unreadable', 'rotated', 'tiny', 'copy', 'copy_across_splits', 'copy_other_label'])
def test_all_of_them_and_nothing_else(planted, checked, kind): assert _names(checked, kind) == planted[1][kind]


def test_eight_of_ten_swapped_labels_and_every_second_flag_is_right(planted, checked):
    found, wrong = _names(checked, 'label'), planted[1]['label'] | planted[1]['copy_other_label']
    assert len(found & planted[1]['label']) >= .8*len(planted[1]['label'])   # recall
    assert len(found & wrong) >= .5*len(found)                               # precision
    rows = checked.rows[checked.rows.kind == 'label']
    assert rows.score.is_monotonic_increasing and (rows.suggested != rows.label).all()
    said = {os.path.basename(r.path): r.suggested for r in rows.itertuples()}
    assert np.mean([said[n] == n.split('-')[1] for n in found & planted[1]['label']]) >= .8   # and what they are


def test_nothing_is_changed(planted, checked):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(planted[0].rglob('*'))}
    again = check_data(planted[0], size=64, verbose=False)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(planted[0].rglob('*'))} == before
    assert again.rows.equals(checked.rows)


@pytest.mark.parametrize('width', [1200, 390])
def test_the_gallery_in_a_browser(checked, width):
    seen = look_at(checked.out/'check.html', width)
    assert (seen['errors'], seen['broken'], seen['requests']) == ([], [], []) and seen['pictures'] > 20 and seen['too_wide'] <= 0
    assert 'Duplicates across splits: 8' in seen['text'] and 'was-' in seen['text']


def test_a_clean_folder_has_nothing_to_see_and_the_command_says_so(planted, tmp_path):
    for label in ('bird', 'fox'):
        (tmp_path/'data'/label).mkdir(parents=True)
        for i in range(30): drawing(label, i).save(tmp_path/'data'/label/f'{i}.png')
    run = run_fastbit('check', 'data', '--no-labels', cwd=tmp_path)
    assert run.returncode == 0 and 'nothing found' in run.stdout, run.stdout + run.stderr
    passed, unchecked = (re.search(rf'{what}: (.*)', run.stdout)[1] for what in ('passed', 'not checked'))
    assert {'unreadable files', 'duplicates', 'dark images', 'classes with few images'} <= set(passed.split(', ')) and 'label errors' not in passed
    assert unchecked == 'duplicates across splits (the data has no split); label errors, images that may belong to groups (turned off)'
    (tmp_path/'data'/'fox'/'cut.png').write_bytes(b'x')
    run = run_fastbit('check', 'data', '--no-labels', '--out', 'seen', cwd=tmp_path)
    assert run.returncode == 1 and 'cannot be read: 1' in run.stdout
    assert pd.read_csv(tmp_path/'seen'/'check.csv').kind.tolist() == ['unreadable'] and (tmp_path/'seen'/'check.html').exists()
    assert run_fastbit('check', 'nowhere', cwd=tmp_path).returncode == 2


def test_classes_with_hardly_any_images(tmp_path):
    for label, n in (('bird', 33), ('owl', 3)):
        (tmp_path/label).mkdir()
        for i in range(n): drawing(label, i).save(tmp_path/label/f'{i}.png')
    rows = check_data(tmp_path, size=64, verbose=False).rows
    assert rows[rows.kind == 'imbalance'].detail.tolist() == ['3 images, and bird has 33, 11 times as many']
    assert rows[rows.kind == 'few'].label.tolist() == ['owl'] and not (rows.kind == 'label').any()   # three are too few to judge


def test_a_wrong_copy_does_not_vouch_for_itself():
    "Of two copies with a wrong label, one would be right if the other were in training"
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(0, 1, (40, 30)), rng.normal(2, 1, (40, 30))].astype(np.float32)
    x[1:6] = x[0]
    y = ['a']*40 + ['b']*40
    y[:6] = ['b']*6
    together = label_table(x, y, groups=[0]*6 + list(range(1, 75)))
    assert together.wrong[:6].all() and (together.suggested[:6] == 'a').all()


def test_what_passed_is_neither_found_nor_unchecked(planted, checked):
    found = set(checked.rows.kind)
    assert not found & set(checked.passed) and {'dark', 'blurry', 'imbalance'} <= set(checked.passed)
    assert checked.unchecked == ('images that may belong to groups (the data has a split)',)
    assert set(KINDS) - found - set(checked.passed) == {'groups', 'number', 'rare'}   # the last two are of other tasks
    html = (checked.out/'check.html').read_text()
    assert '<b>Passed:</b> ' in html and 'blurry images' in html and '<b>Not checked:</b> images that may' in html


def test_what_most_images_are_is_no_fault_of_any(tmp_path):
    for label in ('bird', 'fox'):
        (tmp_path/label).mkdir()
        for i in range(12): drawing(label, i).resize((20, 16)).save(tmp_path/label/f'{i}.png')
    res = check_data(tmp_path, labels=False, verbose=False)
    assert not (res.rows.kind == 'tiny').any() and 'tiny (24 of 24 images)' in res.skipped and res.skipped in str(res)
    assert 'tiny' not in res.passed

def _import_again(monkeypatch, package):
    "Forget a package, so that the next import runs its modules"
    for name in [m for m in sys.modules if m.split('.')[0] == package]: monkeypatch.delitem(sys.modules, name)

def test_looking_for_label_errors_leaves_the_warnings_on(monkeypatch):
    "cleanlab 2.9 switches off all warnings of a process as it is imported; if it does not, `_cleanlab_filter` can go"
    with warnings.catch_warnings():
        _import_again(monkeypatch, 'cleanlab')
        import cleanlab.filter
        assert warnings.filters[0] == ('ignore', None, Warning, None, 0), 'no longer needed'
    with warnings.catch_warnings():
        warnings.simplefilter('always')
        before = list(warnings.filters)
        _import_again(monkeypatch, 'cleanlab')
        label_table(np.random.RandomState(0).randn(20, 4), list('ab')*10)
        assert warnings.filters == before


def test_mislabeled_images_of_a_group_do_not_vouch_for_each_other():
    "Frames of a unit are alike, and a unit has its label as a whole"
    rng, units, frames = np.random.default_rng(0), 24, 8
    kind, unit = np.arange(units) % 2, np.repeat(np.arange(units), frames)
    look = rng.normal(0, 1, (units, 40))
    look[:, 0] += 4*kind
    features = (look[unit] + rng.normal(0, .1, (len(unit), 40))).astype(np.float32)
    label = np.where(unit == 5, 'even', np.where(kind[unit], 'odd', 'even'))
    table = pd.DataFrame(dict(path=[f'{i}.png' for i in range(len(unit))], label=label, split='', group=unit.astype(str)))
    found = lambda t: {o.path for o in check_labels(t, features, []).issues} & {*table.path[unit == 5]}
    assert len(found(table)) == frames and not found(table.drop(columns='group'))


def test_near_duplicates_join_groups():
    table = pd.DataFrame(dict(path=list('abcdef'), group=['1', '1', '2', '2', '3', '4']))
    ids = group_ids(table, [['b', 'c'], ['e', 'f']])
    assert ids[:4] == [ids[0]]*4 and ids[4] == ids[5] != ids[0]
    assert len({*group_ids(table, [])}) == 4 and len({*group_ids(table[['path']], [['b', 'c']])}) == 5


def sheet(i, drawn=True):
    "White paper, with lines or without"
    img = Image.new('RGB', (96, 96), 'white')
    if not drawn: return img
    d, rng = ImageDraw.Draw(img), np.random.default_rng(i)
    for _ in range(3): d.line([tuple(p) for p in rng.integers(5, 90, (3, 2)).tolist()], fill=tuple(rng.integers(0, 120, 3).tolist()), width=2)
    return img


@pytest.mark.parametrize('n_drawn', [40, 5])
def test_line_art_on_white_is_a_style_and_empty_images_are_found(tmp_path, n_drawn):
    for label in 'ab':
        (tmp_path/label).mkdir()
        for i in range(n_drawn//2): sheet(2*i + (label == 'a')).save(tmp_path/label/f'{i}.png')
        for i in range(20, 60): picture(i, label == 'a', (96, 96)).save(tmp_path/label/f'{i}.png')
    sheet(0, drawn=False).save(tmp_path/'a'/'blank.png')
    speck = sheet(0, drawn=False)
    speck.putpixel((3, 3), (0, 0, 0))
    speck.save(tmp_path/'b'/'speck.png')
    checked = check_data(tmp_path, labels=False, cache=False, verbose=False)
    of = lambda kind: {Path(p).name for p in checked.rows.path[checked.rows.kind == kind]}
    assert of('low_information') == {'blank.png', 'speck.png'}
    text = str(checked)
    if n_drawn == 40:
        assert not of('plain') and 'mostly one color (40 of 122 images: the style of the set, such as drawings on white)' in text
        assert of('light') <= {'blank.png', 'speck.png'} and 'plain' not in checked.passed
    else: assert 0 < len(of('plain')) <= n_drawn and 'style' not in text
