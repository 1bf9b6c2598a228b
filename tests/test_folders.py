"Folders as people have them: which are classes, which are splits, and what is not used"
import os, sys, types, unicodedata, warnings, zlib

import pytest

from fastbit.cli.command import main
from fastbit.data import image_dataloaders, read_image_set
from fastbit.data.folders import find_images
from fastbit.data.tables import read_folder
from fastbit.core.text import DataWarning
from conftest import picture

small = dict(arch='test_efficientnet', size=32, num_workers=0)


def draw(root, *names):
    "Images that differ, in the folders that their names say, as PNG whatever they are called"
    for name in names:
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        picture(zlib.crc32(name.encode()) % 2**31, len(name)).save(root/name, format='PNG')
    return root


def many(*folders, n=2): return [f'{f}/{i}.png' for f in folders for i in range(n)]


def used(root):
    "{(label, split): images}, without a warning"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return read_image_set(root).table.groupby(['label', 'split']).size().to_dict()


@pytest.mark.parametrize('train, valid, test', [
    ('train', 'val', 'test'), ('training_set', None, 'test_set'), ('seg_train', None, 'seg_test'), ('train', 'dev', 'test'),
    ('Training', 'Validation', 'Testing'), ('train2017', 'val2017', None), ('Train Images', 'valid_images', 'TEST'),
    ('train-data', 'eval', 'test-data'), ('trainset', 'valset', 'testset')])
def test_usual_words_for_splits(tmp_path, train, valid, test):
    for name in filter(None, (train, valid, test)): draw(tmp_path, *many(f'{name}/cats', f'{name}/dogs'))
    expected = {'' if not valid else 'train', *(['valid'] if valid else []), *(['test'] if test else [])}
    assert used(tmp_path) == {(c, s): 2 for c in ('cats', 'dogs') for s in expected}
    words = read_image_set(tmp_path).source
    for name, part in ((train, 'training'), (valid, 'validation'), (test, 'test')):
        if name: assert f'{name}/ for {part}' in words


@pytest.mark.parametrize('names', [('one', 'two'), ('fold1', 'fold2', 'fold3'), ('old', 'new'), ('a', 'b')])
def test_folders_with_the_same_folders_are_not_classes(tmp_path, names):
    draw(tmp_path, *many(*(f'{n}/{c}' for n in names for c in ('cats', 'dogs', 'birds'))))
    for i in range(2): (tmp_path/names[0]/'birds'/f'{i}.png').unlink()   # a class may be missing in one
    with pytest.raises(ValueError, match='all have the folders.*call them train, valid and test'): read_folder(tmp_path)


def test_deep_classes_stay_classes(tmp_path):
    draw(tmp_path, 'cats/indoor/1.png', 'cats/2.png', 'dogs/outdoor/1.png', 'dogs/puppies/2.png', 'birds/images/3.png')
    assert used(tmp_path) == {('birds', ''): 1, ('cats', ''): 2, ('dogs', ''): 2}
    draw(tmp_path/'all', 'cats/images/1.png', 'dogs/images/1.png')   # a habit of exports
    assert used(tmp_path/'all') == {('cats', ''): 1, ('dogs', ''): 1}


def test_splits_within_classes(tmp_path):
    draw(tmp_path, *many('cats/train', 'cats/val', 'dogs/train', 'dogs/val', 'dogs/test'))
    parts = [('cats', 'train'), ('cats', 'valid'), ('dogs', 'test'), ('dogs', 'train'), ('dogs', 'valid')]
    assert used(tmp_path) == dict.fromkeys(parts, 2)


@pytest.mark.parametrize('folders, classes', [
    (('seg_train/seg_train', 'seg_test/seg_test'), {'': 2, 'test': 2}),   # how Kaggle unpacks
    (('train/images', 'val/images'), {'train': 2, 'valid': 2}), (('Train/Training/data', 'Test/Testing/data'), {'': 2, 'test': 2})])
def test_a_folder_in_between_is_no_class(tmp_path, folders, classes):
    draw(tmp_path, *many(*(f'{f}/{c}' for f in folders for c in ('sea', 'ice'))))
    assert used(tmp_path) == {(c, s): n for c in ('ice', 'sea') for s, n in classes.items()}


def test_folds_with_splits_are_several_data_sets(tmp_path):
    draw(tmp_path, *many(*(f'fold_{i}/{s}/{c}' for i in range(2) for s in ('train', 'val') for c in 'ab')))
    with pytest.raises(ValueError, match=r'fold_0 has splits \(train and val\).* Give .*fold_0'): read_folder(tmp_path)


@pytest.mark.parametrize('names, reason', [
    (('unlabeled',), 'in unlabeled/, which has no labels'), (('unsup',), 'in unsup/, which has no labels'),
    (('masks/cat', 'masks/dog'), 'in masks/, whose folders are named like classes')])
def test_folders_next_to_classes_that_are_not_classes(tmp_path, names, reason):
    draw(tmp_path, *many('cat', 'dog', *names))
    with pytest.warns(DataWarning, match=reason): found = read_image_set(tmp_path)
    assert sorted(set(found.table.label)) == ['cat', 'dog'] and set(found.skipped.reason) == {reason}


@pytest.mark.parametrize('folders, said', [
    (('HAM_images_part_1', 'HAM_images_part_2'), 'parts of one set'), (('images_001/images', 'images_002/images'), 'parts of one set'),
    (('images', 'masks'), 'masks or labels'), (('images', 'annotations/trimaps'), 'masks or labels'),
    (('cars_train/cars_train', 'cars_test/cars_test'), 'look like splits'), (('cat_train', 'cat_test', 'dog_train', 'dog_test'), 'look like splits'),
    (('Real', 'Fake', 'Real_test', 'Fake_test'), 'look like splits'),
    (('train/images/a', 'train/images/b', 'train/masks/a', 'train/masks/b'), 'all have the folders'),
    (('train/2020/a', 'train/2020/b', 'train/2021/a', 'train/2021/b'), 'all have the folders')])
def test_folders_that_cannot_be_classes_are_refused(tmp_path, folders, said):
    draw(tmp_path, *many(*folders))
    (tmp_path/'metadata.csv').write_text('path,label\n')
    with pytest.raises(ValueError, match=said) as e: read_folder(tmp_path)
    assert 'train' in folders[0] or 'metadata.csv' in str(e.value)


@pytest.mark.parametrize('names', [('shoes', 'training shoes'), ('image', 'text'), ('part 1', 'whole'), ('labels', 'boxes'), ('1', '2'), ('a1', 'a2')])
def test_classes_with_such_words_stay_classes(tmp_path, names):
    draw(tmp_path, *many(*names))
    assert {k for k, _ in used(tmp_path)} == set(names)


def test_what_is_no_class_in_a_split_is_left_out(tmp_path):
    draw(tmp_path, *many('train/a', 'train/b', 'train/unlabeled', 'train/backup/a', 'train/backup/b'))
    with pytest.warns(DataWarning, match='in unlabeled/, which has no labels|in backup/'): found = read_image_set(tmp_path)
    assert sorted(set(found.table.label)) == ['a', 'b'] and len(found.skipped) == 6


def test_a_data_set_beside_other_folders_is_named(tmp_path):
    draw(tmp_path, *many('NPD/NPD/train/a', 'NPD/NPD/train/b', 'NPD/NPD/valid/a', 'NPD/NPD/valid/b', 'test/test'))
    with pytest.raises(ValueError, match=r'NPD/NPD has splits \(train and valid\).* Give .*NPD/NPD'): read_folder(tmp_path)
    draw(tmp_path/'one', *many('images/cat'))   # one class, one folder too high
    with pytest.raises(ValueError, match='single folder, images, with cat in it'): read_folder(tmp_path/'one')


def test_thousands_of_classes(tmp_path):
    from fastbit.data.folders import Folder
    from fastbit.data.layouts import find_layout
    folder = lambda name, folders, images: Folder(path=name, name=name, key=(0, name), images=images, folders=folders, skipped=[])
    classes = [folder(f'c{i}x', [], [f'c{i}x/1.png']) for i in range(20_000)]
    assert len(find_layout(folder(str(tmp_path), classes, [])).parts[0].classes) == 20_000   # compared in pairs it would take minutes


def test_a_split_in_one_class_is_named(tmp_path):
    draw(tmp_path, *many('cat/train', 'cat/new', 'dog/train'))
    with pytest.warns(DataWarning, match='cat/train and dog/train of .* are named like a split'): read_image_set(tmp_path)


def test_two_folders_for_one_split_are_refused(tmp_path):
    draw(tmp_path, *many(*(f'{s}/{c}' for s in ('train', 'val', 'validation', 'eval', 'holdout') for c in 'ab')))
    with pytest.raises(ValueError, match='eval, holdout, val and validation are several folders for one'): read_folder(tmp_path)
    draw(tmp_path/'inside', *many('a/train', 'a/training', 'b/train'))
    with pytest.raises(ValueError, match='several folders for one split'): read_folder(tmp_path/'inside')


def test_everything_beside_the_splits_is_named(tmp_path, capsys):
    draw(tmp_path, *many('train/cat', 'train/dog', 'cat', n=6))
    draw(tmp_path, *many('test', 'extra/deep'), 'lost.png', 'train/lost.png')
    with pytest.warns(DataWarning, match='not used') as told: found = read_image_set(tmp_path)
    assert found.table.split.eq('').all() and len(found.table) == 12
    assert found.skipped.reason.value_counts().to_dict() == {
        'in cat/, which is not a split': 6, 'without a class folder in test/': 2, 'in extra/, which is not a split': 2,
        'next to the splits': 1, 'without a class folder in train/': 1}
    for name in ('cat/', 'test/', 'extra/', 'beside'): assert name in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter('always', DataWarning)   # a note on stderr, as on a command line
        tiny = ['--arch', 'test_efficientnet', '--weights', 'random', '--size', '32']
        assert main(['baseline', str(tmp_path), *tiny, '--dry-run']) == 0
    plan = capsys.readouterr().out
    assert 'train/ for training; classes are the folders in it' in plan and '6 in cat/, which is not a split' in plan


@pytest.mark.parametrize('named', ['train', 'test', 'val'])
def test_a_class_may_be_called_like_a_split(tmp_path, named):
    draw(tmp_path, *many('bus', 'car', named))
    with pytest.warns(DataWarning, match=f'{named} of .* is used as a class'): found = read_image_set(tmp_path)
    assert sorted(set(found.table.label)) == sorted(['bus', 'car', named]) and set(found.table.split) == {''}
    draw(tmp_path, f'{named}/steam/1.png')   # one deep folder makes no split of it
    with pytest.warns(DataWarning): assert read_image_set(tmp_path).table.label.value_counts()[named] == 3


def test_only_folders_called_like_splits_and_no_classes(tmp_path):
    draw(tmp_path, *many('train', 'test'))
    with pytest.raises(ValueError, match='test and train of .* hold images and no class folders'): read_folder(tmp_path)
    (tmp_path/'train.csv').write_text('id,label\n')
    with pytest.raises(ValueError, match='If train.csv has the labels, give that file'): read_folder(tmp_path)


def test_only_a_test_folder_can_be_evaluated(tmp_path):
    draw(tmp_path, *many('test/a', 'test/b'))
    assert used(tmp_path) == {('a', 'test'): 2, ('b', 'test'): 2}
    with pytest.raises(ValueError, match='no training images'): image_dataloaders(tmp_path, **small)


@pytest.mark.parametrize('name', [
    'download', 'photo.jpg_large', 'photo.jpg.1', 'photo.aspx', 'photo.php', 'IMG.JPG~', '1', 'photo.orig', 'photo.txt'])
def test_images_without_an_extension_of_images_are_found(tmp_path, name):
    draw(tmp_path, f'a/{name}', 'a/1.png', 'b/1.png')
    assert used(tmp_path) == {('a', ''): 2, ('b', ''): 1}


def test_files_that_are_no_images_are_counted_by_kind(tmp_path):
    draw(tmp_path, 'a/1.png', 'b/1.png')
    for name in ('a/notes.txt', 'a/boxes.xml', 'b/boxes.xml', 'b/README', 'b/film.mp4', 'a/.hidden.png'):
        (tmp_path/name).write_bytes(b'some text')
    (tmp_path/'b'/'empty').touch()
    assert used(tmp_path) == {('a', ''): 1, ('b', ''): 1}   # no warning: files beside images are ordinary
    counts = read_image_set(tmp_path).skipped.reason.value_counts().to_dict()
    assert counts == {'not an image (.xml)': 2, 'not an image (no extension)': 2, 'not an image (.txt)': 1,
        'not an image (.mp4)': 1, 'hidden': 1}


HEIC = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(64)


def test_heic_and_raw_say_what_helps(tmp_path, capsys):
    draw(tmp_path, *many('a', 'b'), 'a/sensor.NEF')   # Pillow would open its thumbnail
    for name in ('a/IMG_1.HEIC', 'b/IMG_2.heic', 'b/IMG_3'): (tmp_path/name).write_bytes(HEIC)
    said = r'3 in HEIC format \(pip install pillow-heif\), 1 in a camera raw format'
    with pytest.warns(DataWarning, match=said): read_image_set(tmp_path)
    with pytest.warns(DataWarning): assert len(find_images(tmp_path)) == 4
    for p in (tmp_path/'a').glob('*.png'): p.unlink()
    for p in (tmp_path/'b').glob('*.png'): p.unlink()
    with pytest.raises(ValueError, match='skipped: 3 in HEIC format'): read_image_set(tmp_path)


def test_installed_plugins_are_registered(monkeypatch):
    from fastbit.data import decode
    called = []
    plugin = types.SimpleNamespace(register_heif_opener=lambda: called.append('heif'))
    monkeypatch.setattr(decode.importlib.util, 'find_spec', lambda name: name == 'pillow_heif' or None)
    monkeypatch.setitem(sys.modules, 'pillow_heif', plugin)
    decode._more_formats()
    assert called == ['heif']


def test_heic_under_the_name_of_a_jpeg(tmp_path):
    "What phones send"
    draw(tmp_path, *many('a', 'b', n=3))
    (tmp_path/'a'/'IMG.jpg').write_bytes(HEIC)
    with pytest.warns(DataWarning, match='IMG.jpg: in HEIC format'): image_dataloaders(tmp_path, **small)


def test_only_what_systems_make_vanishes(tmp_path):
    draw(tmp_path, *many('__normal__', '__other', 'c'), 'c/__1.png')
    draw(tmp_path, 'c/._1.png', '__MACOSX/c/._1.png', 'c/.ipynb_checkpoints/1.png', '@eaDir/1.png', 'c/__pycache__/x.png', '.git/x.png')
    (tmp_path/'.DS_Store').write_bytes(b'x'); (tmp_path/'c'/'Thumbs.db').write_bytes(b'x')
    assert used(tmp_path) == {('__normal__', ''): 2, ('__other', ''): 2, ('c', ''): 3}
    assert read_image_set(tmp_path).skipped.reason.tolist() == ['hidden folder']


def test_what_was_perhaps_meant(tmp_path):
    draw(tmp_path, *many('photos/animals/cat', 'photos/animals/dog', 'photos/animals/bird'))
    photos = tmp_path/'photos'
    with pytest.raises(ValueError, match=r'single folder, animals, with bird, cat and dog in it\. Give .*animals'): read_folder(photos)
    cat, said = photos/'animals'/'cat', '2 images and no class folders.*animals, if cat is one class of several'
    with pytest.raises(ValueError, match=said): read_folder(cat)
    (cat/'labels.csv').write_text('path,label\n')
    with pytest.raises(ValueError, match='Give the table .*labels.csv, if it has the labels'): read_folder(cat)
    (tmp_path/'empty'/'a').mkdir(parents=True)
    with pytest.raises(ValueError, match='No images in .*its folders are empty'): read_folder(tmp_path/'empty')
    (tmp_path/'words').mkdir(); (tmp_path/'words'/'a.txt').write_text('x')
    with pytest.raises(ValueError, match=r'skipped: 1 not an image \(\.txt\)'): read_folder(tmp_path/'words')


def test_images_beside_class_folders_are_named(tmp_path):
    draw(tmp_path, *many('a', 'b'), 'stray.png')
    with pytest.warns(DataWarning, match='1 without a class folder'): assert len(read_image_set(tmp_path).table) == 4


def test_results_of_fastbit_are_no_class(tmp_path):
    draw(tmp_path, *many('a', 'b'), 'fastbit-runs/x/loss.png', 'mine/loss.png', 'mine/rate.png')
    for name in ('results.json', 'history.csv'): (tmp_path/'mine'/name).write_text('')
    assert used(tmp_path) == {('a', ''): 2, ('b', ''): 2}


def test_one_name_in_two_unicode_forms_is_one_class(tmp_path):
    forms = [unicodedata.normalize(f, 'café') for f in ('NFC', 'NFD')]
    draw(tmp_path, *many(f'train/{forms[0]}', 'train/tea', f'valid/{forms[1]}', 'valid/tea'))
    assert used(tmp_path) == {('café', 'train'): 2, ('café', 'valid'): 2, ('tea', 'train'): 2, ('tea', 'valid'): 2}


def test_links_are_followed_and_circles_end(tmp_path):
    draw(tmp_path/'pool', *many('x', 'y'))
    (tmp_path/'data'/'a').mkdir(parents=True)
    (tmp_path/'data'/'a'/'x').symlink_to(tmp_path/'pool'/'x'); (tmp_path/'data'/'b').symlink_to(tmp_path/'pool'/'y')
    (tmp_path/'data'/'a'/'twice').symlink_to(tmp_path/'pool'/'x')
    (tmp_path/'pool'/'x'/'up').symlink_to(tmp_path/'data')
    for i in range(12):   # each leads to all others: far too many ways to go them all
        (tmp_path/'pool'/'y'/f'all{i}').symlink_to(tmp_path/'pool'/'y')
        (tmp_path/'pool'/'y'/f'd{i}').mkdir(); (tmp_path/'pool'/'y'/f'd{i}'/'back').symlink_to(tmp_path/'pool')
    assert used(tmp_path/'data') == {('a', ''): 2, ('b', ''): 4}   # b leads to all of pool, each once


def test_a_deep_folder_is_no_error(tmp_path):
    draw(tmp_path, *many('a', 'b'))
    here = tmp_path/'a'
    for _ in range(150): here = here/'d'
    os.makedirs(here)
    picture(1, 1).save(here/'deep.png')
    with pytest.warns(DataWarning, match='more than 100 folders deep'): assert len(read_image_set(tmp_path).table) == 4


def test_a_class_that_was_never_trained_is_neither_an_output_nor_in_the_headline(tmp_path, capsys):
    draw(tmp_path, *many('train/a', 'train/b', n=5), *many('test/a', 'test/unknown'))
    said = r'2 of 4 images in the test set are not used.*unknown.*fastbit predict'
    with pytest.warns(DataWarning, match=said): dls = image_dataloaders(tmp_path, **small)
    assert list(dls.vocab) == ['a', 'b'] and dls[2].n == 2
    assert dls.skipped.reason.tolist() == ['of the class unknown, which has no training images']*2
    draw(tmp_path, *many('valid/a', 'valid/b', 'valid/new'))
    with pytest.warns(DataWarning) as told: dls = image_dataloaders(tmp_path, **small)
    assert '2 of 6 images in the validation set' in str(told[0].message) and 'in the test set' in str(told[1].message)
    assert list(dls.vocab) == ['a', 'b'] and dls.valid.n == 4
    for p in (tmp_path/'test'/'a').iterdir(): p.unlink()   # Keras: nothing but test/unknown
    with pytest.warns(DataWarning) as told: dls = image_dataloaders(tmp_path, **small)
    assert '2 of 2 images in the test set' in ' '.join(str(o.message) for o in told)
    assert len(dls.loaders) == 2


def test_a_plain_folder_says_nothing(folder):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dls = image_dataloaders(folder, **small)
    assert len(dls.skipped) == 0 and dls.source == f'{folder.name}/: classes are its 3 folders'


def test_check_and_predict_name_what_they_do_not_use(tmp_path, capsys):
    from fastbit.studies import check_data
    from fastbit.export.inputs import image_items
    draw(tmp_path, *many('train/a', 'train/b', n=3), *many('test/unknown', 'extra/deep'))
    (tmp_path/'train'/'a'/'notes.txt').write_text('x'); (tmp_path/'train'/'a'/'IMG.heic').write_bytes(HEIC)
    with pytest.warns(DataWarning): res = check_data(tmp_path, labels=False, verbose=False)
    reasons = res.rows[res.rows.kind == 'unused'].detail.value_counts().to_dict()
    assert reasons == {'of the class unknown, which has no training images': 2, 'in extra/, which is not a split': 2,
        'in HEIC format (pip install pillow-heif)': 1}
    assert 'train/ for training, test/ for test' in str(res) and 'other files (1 not an image (.txt))' in str(res)
    said = r'2 file\(s\) of .* have no prediction: 1 in HEIC format.*, 1 not an image \(.txt\)'
    with pytest.warns(DataWarning, match=said): assert len(image_items(tmp_path/'train'/'a')) == 3
    (tmp_path/'words').mkdir(); (tmp_path/'words'/'IMG.heic').write_bytes(HEIC)
    with pytest.raises(FileNotFoundError, match='skipped: 1 in HEIC format'): image_items(tmp_path/'words')


def test_every_plan_says_what_is_used_and_what_is_not(tmp_path, capsys, monkeypatch):
    from fastbit.studies import few_shot_curve
    draw(tmp_path, *many('photos/train/a', 'photos/train/b', n=6))
    (tmp_path/'photos'/'train'/'a'/'notes.txt').write_text('x')
    monkeypatch.chdir(tmp_path)
    said = ('  source      photos/: train/ for training; classes are the folders in it', '  not used    1 not an image (.txt)')
    tiny = ['--size', '32', '--arch', 'test_efficientnet=random', '--top', '0']
    assert main(['recipe', 'photos']) == 0 and all(o in capsys.readouterr().out for o in said[:1])
    assert main(['compare', 'photos', *tiny]) == 0
    out = capsys.readouterr().out
    assert all(o in out for o in said)
    few_shot_curve('photos', ks=(1,), repeats=1, **small, weights='random', batch_size=4, n_steps=2, scale=None)
    out = capsys.readouterr().out
    assert all(o in out for o in said)
