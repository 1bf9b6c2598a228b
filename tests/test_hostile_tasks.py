"Tables, DataFrames, folders and artifacts that nobody should make, for each task: they are read right, or refused at once with a reason"
import json, os, time, warnings
from pathlib import Path

import numpy as np, pandas as pd, pytest

import corpus
from conftest import picture
from fastbit.cli.command import main
from fastbit.core.text import DataWarning
from fastbit.data import read_image_set
from fastbit.data.columns import split_word
from fastbit.data.quantities import as_quantities
from fastbit.data.split import split_table
from fastbit.export import export_onnx, load_predictor, save_artifact
from fastbit.export.artifact import CONFIG, FORMAT
from fastbit.metrics import iterative_parts
from tasks import CASES, SCALE

MOST_WORDS, MOST_SECONDS = 700, 2


@pytest.fixture(params=CASES)
def case(request): return CASES[request.param]


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('tables')
    for i in range(20): picture(i, i % 3, (8, 8)).save(root/f'{i:02d}.png')
    return root


def written(case, sep=',', quote='') -> str:
    return '\n'.join([f'path{sep}label', *(f'{i:02d}.png{sep}{quote}{o}{quote}' for i, o in enumerate(case.cells))]) + '\n'


def read(source, case, **options):
    "A table, or the error with its reason; nothing else, at once, in few words"
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.simplefilter('ignore', DataWarning)
        try: found = read_image_set(source, **dict(task=case.key) | options).table
        except (ValueError, FileNotFoundError) as e:
            assert 20 < len(str(e)) < MOST_WORDS, str(e)[:2000]
            found = e
    assert time.process_time() - start < MOST_SECONDS
    return found


# Files

BIG = 'x'*1_000_000
FORMS = dict(   # of a right table, all of which are read
    bom=lambda t: b'\xef\xbb\xbf' + t.encode(), utf16=lambda t: t.encode('utf-16'), utf16_le=lambda t: t.encode('utf-16-le'), utf16_be=lambda t: t.encode('utf-16-be'), utf32=lambda t: t.encode('utf-32'),
    returns=lambda t: t.replace('\n', '\r').encode(), both=lambda t: t.replace('\n', '\r\n').encode(), form_feeds=lambda t: t.replace('\n', '\x0c\n').encode(), blank_lines=lambda t: t.replace('\n', '\n\n').encode(), comment=lambda t: f'# made by {BIG}\n{t}'.encode())


@pytest.mark.parametrize('form', FORMS)
def test_forms_of_a_table(case, folder, form):
    (folder/'t.csv').write_text(written(case))
    plain = read(folder/'t.csv', case)
    (folder/'t.csv').write_bytes(FORMS[form](written(case)))
    pd.testing.assert_frame_equal(read(folder/'t.csv', case), plain)
    assert len(plain) == len(case.cells)


@pytest.mark.parametrize('sep', [';', '\t', '|'])
def test_separators_of_columns(case, folder, sep):
    (folder/'t.csv').write_text(written(case))
    plain = read(folder/'t.csv', case)
    (folder/'t.csv').write_text(written(case, sep, '"'))
    pd.testing.assert_frame_equal(read(folder/'t.csv', case), plain)


REFUSED = dict(   # one more line, or another file; what is said about it
    a_nul=(lambda t, c: t.replace('01.png', '01\0png'), 'not a text file'), binary=(lambda t, c: bytes(range(256))*20, 'not a text file'), an_empty_file=(lambda t, c: '', 'is empty'), lines_of_nothing=(lambda t, c: '\n\n \n', 'is empty'), a_vertical_tab=(lambda t, c: '\x0b', 'is empty'), cells_of_nothing=(lambda t, c: ',\n,\n', 'is empty|only column'), a_line_separator=(lambda t, c: '\u2028\n', 'is empty'),
    a_header_alone=(lambda t, c: 'path,label\n', 'has no rows'), one_column=(lambda t, c: 'path\n00.png\n', "only column is 'path'"), json=(lambda t, c: '{"path": 1}', 'JSON'), a_page=(lambda t, c: '<!doctype html><table>', 'web page'),
    two_columns_of_one_name=(lambda t, c: t.replace('\n', f',{c}\n').replace(f'label,{c}', 'label,label', 1), 'two columns'), a_cell_too_many=(lambda t, c: f'{t}19.png,{c},more\n', 'line \\d+: 3 cells'), a_long_cell_too_many=(lambda t, c: f'{t}19.png,"{BIG}",1,2\n', 'line \\d+: 4 cells|cannot be read as a table'),
    a_quote_that_does_not_end=(lambda t, c: f'{t}19.png,"{c}\n', 'line \\d+: a double quote'), a_long_quote_that_does_not_end=(lambda t, c: f'{t}19.png,"{BIG}\n', 'line \\d+: a double quote'), a_quote_over_rows=(lambda t, c: t.replace('03.png,', '03.png,"').replace('\n05', '"\n05'), 'a double quote'),
    an_empty_label=(lambda t, c: f'{t}19.png,\n', r'line \d+'), a_blank_label=(lambda t, c: f'{t}19.png," "\n', r'line \d+'), no_path=(lambda t, c: f'{t},{c}\n', r'line \d+'), an_address=(lambda t, c: f'{t}https://example.org/x.png,{c}\n', 'addresses'),
    another_encoding=(lambda t, c: t.encode() + '19.png,\u0436\u0438\u0432\u043e\u0442\u043d\u043e\u0435\n'.encode('cp1251'), 'UTF-8'), nothing_there=(lambda t, c: t.replace('.png', '_.png'), None))


@pytest.mark.parametrize('how', REFUSED)
def test_tables_that_are_refused(case, folder, how):
    make, words = REFUSED[how]
    text = make(written(case), case.cells[0])
    (folder/'t.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
    found = read(folder/'t.csv', case)
    if words is None: assert not any(map(os.path.exists, found.path))   # as any file that is missing: said when the images are read
    else: assert isinstance(found, ValueError) and pd.Series([str(found)]).str.contains(words)[0], found


@pytest.mark.parametrize('path', ['../../../etc/passwd', '/etc/passwd', '/dev/zero', '/dev/stdin', '/proc/self/mem', '.', '/', 'none.png', 'x'*1_000_000 + '.png', '~root/x.png', '$HOME/x.png', '`id`.png', '\x1b[2J.png', '-rf'])
def test_paths_are_names_of_files_and_no_more(case, folder, path, recwarn):
    "What is no image is left out by its reason when images are read; here nothing of it is opened"
    (folder/'t.csv').write_text(f'{written(case)}{path},{case.cells[0]}\n')
    found = read(folder/'t.csv', case)
    assert len(found) == len(case.cells) + 1 and found.label.map(type).nunique() == 1


LABELS = ['<script>alert(1)</script>', '\x1b[31mred', '=1+1', '../x', '/etc', '**bold** [x](http://e)', '\u202egnp', '🐈‍⬛', '日本語', 'العربية', 'नमस्ते', 'ｆｕｌｌ', 'nul', '-c', '%s', '{0.__class__}', '$(id)', 'a\tb', 'a"b', "a'b", 'é', 'e\u0301x', '\x07bell', BIG]


@pytest.mark.parametrize('label', LABELS, ids=range(len(LABELS)))
def test_names_of_labels_are_kept_as_they_are(folder, label):
    import unicodedata
    quoted = '"' + label.replace('"', '""') + '"'
    for key in ('label', 'labels'):
        (folder/'t.csv').write_text(f'{written(CASES[key])}19.png,{quoted}\n')
        found = read(folder/'t.csv', CASES[key]).label.iloc[-1]
        assert found == (unicodedata.normalize('NFC', label) if key == 'label' else (unicodedata.normalize('NFC', label),))
    (folder/'t.csv').write_text(f'{written(CASES["number"])}19.png,{quoted}\n')
    assert 'not finite numbers' in str(read(folder/'t.csv', CASES['number']))


@pytest.mark.parametrize('cell, number', [
    ('+5', 5), ('.5', .5), ('5.', 5), ('1e5', 1e5), ('00012', 12), (' 7 ', 7), ('1e-400', 0), ('٣', 3), ('１２', 12),
    *((o, None) for o in ('1e400', 'nan', 'inf', '-Infinity', '1,5', '1_000', '0x1F', '0b1', '1j', '1 000', '1\u00a0000', '2020-01-01', '12:30', 'True', '-', '--5', '5-', '1.5e', '1d5', '½', '²', 'Ⅷ', '$3', '3%', 'None', '<NA>', '9'*400, BIG))])
def test_cells_of_numbers(cell, number):
    cells = ['1.5', '2.5', cell]
    if number is not None: assert as_quantities(cells, 'mass').tolist() == [1.5, 2.5, number]
    else:
        with pytest.raises(ValueError, match='(?s)1 of 3 cells that are not finite.*rows 2') as e: as_quantities(cells, 'mass')
        assert len(str(e.value)) < MOST_WORDS


def test_rows_of_one_file_that_differ(case, folder):
    "Labels are joined, where an image may have several; a number is not two"
    (folder/'t.csv').write_text(f'{written(case)}./00.png,{case.cells[1]}\n')
    found = read(folder/'t.csv', case)
    if case.key == 'labels': assert len(found) == len(case.cells) and found.label[0] == ('cat', 'dog')
    else: assert f'One file with two {case.key}s' in str(found) and ('one label per image' in str(found)) == (case.key == 'label')
    (folder/'t.csv').write_text(f'{written(case)}./00.png,{case.cells[0]}\n')
    with pytest.warns(DataWarning) as said: assert len(read_image_set(folder/'t.csv', task=case.key).table) == len(case.cells)
    assert case.key != 'number' or 'same number' in str(said[0].message)


# DataFrames

def objects(values): return pd.Series(values, dtype=object)
def sets(f): return objects([f(o) for o in (('a', 'b'), ('a',), ('b', 'c'))*4])


def arrow_lists():
    pa = pytest.importorskip('pyarrow')
    return pd.Series(list(sets(list)), dtype=pd.ArrowDtype(pa.list_(pa.string())))


COLUMNS = dict(   # what each task makes of a column: what its last image has, or None: an error
    category=(lambda: pd.Categorical(['a', 'b']*6), 'b', ('b',), None), Int64=(lambda: pd.array([1, 2]*6, 'Int64'), '2', ('2',), 2.), Int64_missing=(lambda: pd.array([1, None]*6, 'Int64'), None, None, None), float16=(lambda: (np.arange(12)/2).astype('f2'), '5.5', ('5.5',), 5.5),
    bool=(lambda: [True, False]*6, 'False', ('False',), None), mixture=(lambda: objects([1, 'a', 2.5]*4), '2.5', ('2.5',), None), dates=(lambda: pd.date_range('2020', periods=12), '2020-01-12 00:00:00', None, None), complex=(lambda: np.arange(12)*1j, '11j', ('11j',), None), infinite=(lambda: [np.inf, *range(11)], '10', ('10',), None),
    nothing=(lambda: [None]*12, None, None, None), lists=(lambda: sets(list), None, ('b', 'c'), None), tuples=(lambda: sets(tuple), None, ('b', 'c'), None), sets=(lambda: sets(set), None, ('b', 'c'), None), arrays=(lambda: sets(np.array), None, ('b', 'c'), None), series=(lambda: sets(lambda o: pd.Series(o)), None, ('b', 'c'), None),
    categories_of_tuples=(lambda: pd.Categorical(sets(tuple)), None, ('b', 'c'), None), arrow_lists=(arrow_lists, None, ('b', 'c'), None), lists_with_nothing=(lambda: objects([['a', None], ['b']]*6), None, None, None), lists_of_lists=(lambda: objects([[['a', 'b']], [['c'], ['d']]]*6), None, None, None), empty_lists=(lambda: objects([[]]*12), None, None, None),
    lists_and_texts=(lambda: objects([['a', 'b'], 'a']*6), None, None, None), a_list_in_itself=(lambda: objects([loop()]*12), None, None, None), dictionaries=(lambda: objects([dict(a=1)]*12), None, None, None), arrays_of_one=(lambda: objects([np.array(1.5*i) for i in range(12)]), '16.5', ('16.5',), 16.5), long_integers=(lambda: objects([10**400 + i for i in range(12)]), str(10**400 + 11), (str(10**400 + 11),), None))


def loop():
    a = ['a']
    a.append(a)
    return a


@pytest.mark.parametrize('kind', COLUMNS)
def test_columns_of_any_type(case, folder, kind):
    make, *wanted = COLUMNS[kind]
    wanted = dict(zip(CASES, wanted))[case.key]
    df = pd.DataFrame(dict(path=[str(folder/f'{i:02d}.png') for i in range(12)])).assign(label=make())
    found = read(df, case)
    assert isinstance(found, ValueError) if wanted is None else found.label.iloc[-1] == wanted, found
    assert case.key != 'labels' or "use task='labels'" not in str(found)   # that is what was asked for


@pytest.mark.parametrize('columns, words', [(['a', 'a'], 'twice'), (['a', 'A'], 'twice'), ([None, 'a'], 'two or more'), (5, 'two or more'), ('a,', 'two or more'), (['a', 'x'], "no column 'x'"), (['a', 'path'], 'neither 0 nor 1')])
def test_columns_of_bits_that_are_named_wrongly(folder, columns, words):
    df = pd.DataFrame(dict(path=[str(folder/f'{i:02d}.png') for i in range(4)], a=[1, 0]*2, b=[0, 1]*2))
    with pytest.raises(ValueError, match=words): read_image_set(df, label_cols=columns)


def test_one_label_only_and_all_labels_everywhere(folder):
    df = pd.DataFrame(dict(path=[str(folder/f'{i:02d}.png') for i in range(20)]))
    assert read_image_set(df.assign(label=objects([('a', 'b')]*20)), task='labels').table.label.tolist() == [('a', 'b')]*20
    with pytest.raises(ValueError, match='no label in any row'): read_image_set(df.assign(label=objects([()]*20)), task='labels')


@pytest.mark.parametrize('name', ['1'*50, '1'*5000, 'dataset'*8, 'dataset'*500, 'train' + '1x'*25, '12'*20 + 'px'*10])
def test_names_that_are_nearly_a_split_take_no_time(case, folder, name):
    "An expression that can read digits in several ways tries all of them: folders and columns are named by hashes"
    start = time.process_time()
    assert split_word(name) is None and split_word('train' + '1'*40) == 'train'
    (folder/'t.csv').write_text(written(case).replace('label', name, 1))
    read(folder/'t.csv', case)
    assert time.process_time() - start < .5


def test_thousands_of_labels_take_seconds():
    rng, n = np.random.default_rng(0), 2000
    df = pd.DataFrame(dict(path=[f'{i}.png' for i in range(n)], label=objects([tuple(f'l{k}' for k in rng.integers(0, 3000, 6)) for _ in range(n)])))
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DataWarning)
        table = split_table(read_image_set(df, task='labels').table)
    assert table.split.value_counts().valid >= .15*n and time.process_time() - start < 8


@pytest.mark.parametrize('groups', [None, 7])
def test_dealing_out_is_as_it_was(groups):
    "The images of each label that are left are counted down, instead of again for each label"
    rng = np.random.default_rng(0)
    targets = (rng.random((60, 9)) < .2).astype(int)
    part = iterative_parts(targets, [.7, .3], 1, None if groups is None else rng.integers(0, groups, 60))
    assert (part.sum(), part[:12].tolist()) == GOLDEN[groups]


GOLDEN = {None: (18, [1, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1]), 7: (24, [0, 1, 0, 0, 0, 0, 0, 1, 0, 1, 1, 0])}


# Folders

def test_links_between_class_folders(tmp_path):
    for name in ('red', 'blue'): (tmp_path/'data'/name).mkdir(parents=True)
    for i in range(3): picture(i, 0).save(tmp_path/'data'/'red'/f'{i}.png')
    picture(9, 1).save(tmp_path/'data'/'blue'/'9.png')
    picture(8, 1).save(tmp_path/'outside.png')
    os.symlink('../red/0.png', tmp_path/'data'/'blue'/'again.png')
    os.symlink('nowhere.png', tmp_path/'data'/'blue'/'broken.png')
    os.symlink('itself.png', tmp_path/'data'/'blue'/'itself.png')
    os.symlink('..', tmp_path/'data'/'blue'/'round')
    for name in ('red', 'blue'): os.symlink(tmp_path/'outside.png', tmp_path/'data'/name/'outside.png')
    with pytest.warns(DataWarning, match='in several class folders'): found = read_image_set(tmp_path/'data', task='labels')
    sets = {os.path.basename(p): o for p, o in zip(found.table.path, found.table.label)}
    assert sets['9.png'] == ('blue',) and sets['1.png'] == ('red',) and sets.get('0.png', sets.get('again.png')) == sets['outside.png'] == ('blue', 'red')
    assert not {'broken.png', 'itself.png'} & {k for k, o in sets.items() if len(o) > 1}


# Artifacts

@pytest.fixture
def artifact(case, tmp_path):
    save_artifact(tmp_path/'model', *case.artifact())
    return tmp_path/'model'


def config(folder) -> dict: return json.loads((folder/CONFIG).read_text())
def write(folder, cfg): (folder/CONFIG).write_text(json.dumps(cfg))


def change(folder, **own):
    cfg = config(folder)
    write(folder, cfg | dict(fastbit=cfg['fastbit'] | own))


def drop(folder, name):
    cfg = config(folder)
    del cfg['fastbit'][name]
    write(folder, cfg)


def raw(folder, old, new):
    text = (folder/CONFIG).read_text()
    assert text.count(old) == 1, old
    (folder/CONFIG).write_text(text.replace(old, new))


def number(folder, **kw): change(folder, number=SCALE | kw)
def classes(folder, *names): write(folder, (cfg := config(folder)) | dict(num_classes=len(names), fastbit=cfg['fastbit'] | dict(classes=list(names))))


TAMPERED = {
    'labels': {
        'no thresholds': (lambda f: drop(f, 'thresholds'), 'it has no thresholds'), 'no task': (lambda f: drop(f, 'task'), 'it has no task'), 'too few thresholds': (lambda f: change(f, thresholds=[.5]), '3 numbers from 0 to 1'),
        'too many thresholds': (lambda f: change(f, thresholds=[.5]*4), '3 numbers from 0 to 1'), 'thresholds above 1': (lambda f: change(f, thresholds=[.5, .5, 1.1]), '3 numbers from 0 to 1'), 'thresholds below 0': (lambda f: change(f, thresholds=[.5, .5, -.1]), '3 numbers from 0 to 1'),
        'a threshold that is none': (lambda f: raw(f, '0.1,', 'NaN,'), 'NaN is not a number'), 'an infinite threshold': (lambda f: raw(f, '0.1,', '1e999,'), '3 numbers from 0 to 1'), 'thresholds that are texts': (lambda f: change(f, thresholds=['.5']*3), '3 numbers from 0 to 1'), 'a text of thresholds': (lambda f: change(f, thresholds='abc'), '3 numbers from 0 to 1'),
        'thresholds that are true': (lambda f: change(f, thresholds=[True]*3), '3 numbers from 0 to 1'), 'thresholds in lists': (lambda f: change(f, thresholds=[[.5]]*3), '3 numbers from 0 to 1'), 'one threshold': (lambda f: change(f, thresholds=.5), 'cannot be used'), 'thresholds without end': (lambda f: change(f, thresholds=[.5]*1_000_000), '3 numbers from 0 to 1'),
        'a number': (lambda f: change(f, number=SCALE), 'number is of models that predict one'), 'one label': (lambda f: change(f, task='label'), "task is 'label'"), 'numbers': (lambda f: change(f, task='number'), 'it has no number'), 'one class': (lambda f: classes(f, 'a'), '1 classes')},
    'number': {
        'no number': (lambda f: drop(f, 'number'), 'it has no number'), 'number of nothing': (lambda f: change(f, number=None), 'number must have'), 'numbers in a list': (lambda f: change(f, number=[1, 2, 3, 4, 5]), 'number must have'), 'a field too few': (lambda f: change(f, number={k: v for k, v in SCALE.items() if k != 'within'}), 'number must have'),
        'a field too many': (lambda f: number(f, file='x'), 'number must have'), 'a scale of 0': (lambda f: number(f, std=0), 'not the scale of any numbers'), 'a negative scale': (lambda f: number(f, std=-1), 'not the scale of any numbers'), 'a scale that is none': (lambda f: raw(f, '"std": 10.0', '"std": NaN'), 'NaN is not a number'),
        'an infinite scale': (lambda f: raw(f, '"std": 10.0', '"std": 1e999'), 'number must have'), 'a mean beyond the ends': (lambda f: number(f, mean=1000), 'not the scale of any numbers'), 'ends that cross': (lambda f: number(f, low=60, high=40), 'not the scale of any numbers'), 'a negative interval': (lambda f: number(f, within=-1), 'number must have'),
        'an interval that is none': (lambda f: raw(f, '"within": 12.0', '"within": NaN'), 'NaN is not a number'), 'an infinite interval': (lambda f: raw(f, '"within": 12.0', '"within": 1e999'), 'number must have'), 'an interval that is text': (lambda f: number(f, within='12'), 'number must have'), 'a mean that is true': (lambda f: number(f, mean=True, low=0), 'number must have'),
        'an integer beyond floats': (lambda f: number(f, high=10**400), 'number must have'), 'thresholds': (lambda f: change(f, thresholds=[.5]), "task is 'number'"), 'two numbers': (lambda f: classes(f, 'a', 'b'), 'one class, the name of the number'), 'a number without a name': (lambda f: classes(f, ''), 'one class'), 'a name that is a number': (lambda f: classes(f, 5), 'one class'), 'several labels': (lambda f: change(f, task='labels', number=None), '1 classes')}}
OF_ANY = {
    'an unknown task': (lambda f: change(f, task='boxes'), 'it can be label|unknown fields'), 'a task that is none': (lambda f: change(f, task=None), 'it can be label|unknown fields'), 'a task in a list': (lambda f: change(f, task=['labels']), 'it can be label|unknown fields'), 'a task in a dictionary': (lambda f: change(f, task={}), 'it can be label|unknown fields'),
    'the next format': (lambda f: change(f, format=FORMAT+1), 'a later version may read it'), 'a format that is a fraction': (lambda f: change(f, format=FORMAT + .5), 'reads 1 to'), 'the format before': (lambda f: change(f, format=3, task='labels', thresholds=[.5]*3), 'unknown fields'), 'another number of classes': (lambda f: write(f, config(f) | dict(num_classes=7)), 'another number of classes')}
CHANGES = [(key, how) for key in TAMPERED for how in TAMPERED[key]] + [(key, how) for key in CASES for how in OF_ANY]


@pytest.mark.parametrize('key, how', CHANGES)
def test_tampered_artifacts_are_refused_with_a_reason(key, how, tmp_path):
    save_artifact(tmp_path/'model', *CASES[key].artifact())
    spoil, reason = (OF_ANY | TAMPERED.get(key, {}))[how]
    spoil(tmp_path/'model')
    with pytest.raises(ValueError, match=reason) as e: load_predictor(tmp_path/'model', 'cpu')
    assert len(str(e.value)) < 600 and '\n' not in str(e.value)


MEASURED = dict(part='valid', n=40, accuracy=.9, low=.8, high=.95, map=.9, map_interval=[.8, .95], mae=3., mae_interval=[2., 4.])


@pytest.mark.parametrize('change_of', [
    {}, dict(mae_interval='ab', map_interval='ab'), dict(mae_interval=[1], map_interval=[1]), dict(mae_interval=[None]*2, map_interval=[None]*2), dict(mae_interval=[1, 2, 3], map_interval=[[1], [2]]),
    dict(mae='x', map='x', accuracy='x'), dict(mae=None, map=None, accuracy=None), dict(n=None), dict(mae=10**400, map=10**400, accuracy=10**400), dict(mae_interval=[10**400]*2, map_interval={'a': 1})])
def test_an_evaluation_of_any_kind_is_shown(case, tmp_path, change_of):
    net, about = case.artifact(evaluation=MEASURED)
    save_artifact(tmp_path/'model', net, about)
    change(tmp_path/'model', evaluation=MEASURED | change_of)
    p = load_predictor(tmp_path/'model', 'cpu')
    shown = next(o for o in str(p).splitlines() if o.startswith('measured'))
    assert ('95% CI' in shown) == (not change_of) or case.key == 'label' and 'accuracy' not in change_of, shown


def test_without_thresholds_that_are_said_one_half_counts(tmp_path):
    save_artifact(tmp_path/'model', *CASES['labels'].artifact(thresholds=None))
    p = load_predictor(tmp_path/'model', 'cpu')
    row = p.predict(picture(0, 0), probs=True).iloc[0]
    assert set(row.prediction) == {c for c in p.classes if row[f'p({c})'] >= .5}


def test_hostile_images(case, artifact):
    "What is no image has a reason and no prediction; what is one has the prediction of the plain picture"
    p = load_predictor(artifact, 'cpu')
    cases = [c for c in corpus.unusual() + corpus.not_images()[::3] + corpus.damaged()[::4] if 'megapixels' not in c.name]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # of Pillow's, about what is odd in a file
        rows = p.predict([corpus.art(), *(c.data for c in cases)])
    plain = rows.iloc[0]
    for c, r in zip(cases, rows.iloc[1:].itertuples()):
        values = [] if r.prediction is None else [r.prediction] if case.key == 'number' else np.ravel(r.probability)
        assert bool(r.reason) == (not len(values) or bool(np.isnan(values).any())) or r.prediction == (), c.name
        if c.fate == corpus.BAD: assert r.reason, c.name
        if c.fate == corpus.GOOD: assert not r.reason, (c.name, r.reason)
        if c.fate == corpus.GOOD and case.key == 'number': assert abs(r.prediction - plain.prediction) < 2 and r.low <= r.prediction <= r.high, c.name
        if c.fate == corpus.GOOD and c.name.endswith('.png'): assert r.prediction == plain.prediction, c.name


@pytest.mark.filterwarnings('ignore::fastbit.core.text.DataWarning')   # folded, it differs from itself
def test_weights_that_give_no_numbers_have_a_reason(case, tmp_path):
    net, about = case.artifact()
    net.get_classifier().weight.data.fill_(3e38)
    save_artifact(tmp_path/'model', net, about)
    row = load_predictor(tmp_path/'model', 'cpu').predict(picture(0, 0)).iloc[0]
    assert row.reason == 'the model gives no finite numbers for it' or np.isfinite(np.ravel(row.probability if case.key != 'number' else row.prediction)).all()


@pytest.mark.parametrize('key', ['labels'])
def test_rows_of_csv_are_joined_alike(key, tmp_path, capsys):
    "By a character that no label of the model has, and not only none of those that were predicted"
    net, about = CASES[key].artifact(classes=('a;b', 'c', 'd'), thresholds=(1., 0., 0.))
    save_artifact(tmp_path/'model', net, about)
    picture(0, 0).save(tmp_path/'x.png')
    assert main(['predict', str(tmp_path/'model'), str(tmp_path/'x.png'), '--csv']) == 0
    assert capsys.readouterr().out.splitlines()[1].split(',')[1] in ('c|d', 'd|c')
