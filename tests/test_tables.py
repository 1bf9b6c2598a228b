"Tables as people make them: labels, columns, separators, encodings, paths, and what cannot be one label per image"
import gzip, os, warnings

import numpy as np, pandas as pd, pytest

from conftest import TINY, picture, write_folder
from fastbit.data.columns import SPLIT_WORDS, split_word
from fastbit.data.rows import table_rows
from fastbit.data import image_dataloaders, image_table
from fastbit.data.labels import clean_label, natural_order
from fastbit.export.predict import class_numbers
from fastbit.core.text import DataWarning

small = dict(arch='test_efficientnet', size=32, num_workers=0)


@pytest.fixture
def table(tmp_path):
    "table('path,label\\n…') -> what `table_rows` makes of the file; warnings are errors"
    def read(text, name='labels.csv', encoding='utf-8', **how):
        (tmp_path/name).write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            return table_rows(tmp_path/name, **how)
    return read


def pairs(found): return [(os.path.basename(p), l) for p, l in zip(found.rows.path, found.rows.label)]


AB = [('a.png', 'cat'), ('b.png', 'dog')]


# Labels

@pytest.mark.parametrize('label, clean', [
    ('cat ', 'cat'), ('\tcat\n', 'cat'), ('cafe\u0301', 'café'), ('\ufeffcat', 'cat'), ('golden\xa0retriever', 'golden retriever'), ('\u200bcat\u200b', 'cat'), ('\u200b', ''),
    ('\u3000cat', 'cat'), ('Cat', 'Cat'), ('ＣＡＴ', 'ＣＡＴ'), ('می\u200cخواهم', 'می\u200cخواهم'), ('a\nb', 'a\nb'), (3, '3')])
def test_spellings_of_a_label(label, clean): assert clean_label(label) == clean


def test_two_classes_are_two_classes(tmp_path):
    labels = ['cat', 'cat ', 'Cat', 'caf\u00e9', 'cafe\u0301', '\xa0cat']
    df = pd.DataFrame(dict(path=[f'{i}.png' for i in range(6)], label=labels))
    with pytest.warns(DataWarning, match=r"'Cat' \(1\) and 'cat' \(3\)"): assert set(image_table(df).label) == {'cat', 'Cat', 'café'}


@pytest.mark.parametrize('labels', [['golden retriever', 'golden_retriever'], ['1', '01', '2'], ['ＣＡＴ', 'cat'], ['Straße', 'STRASSE']])
def test_labels_that_are_perhaps_one(labels):
    with pytest.warns(DataWarning, match='separate classes'): assert len(set(image_table(pd.DataFrame(dict(path=[f'{i}.png' for i in range(len(labels))], label=labels))).label)) == len(labels)


@pytest.mark.parametrize('labels', [['A', 'a', 'b'], ['golden retriever', 'labrador retriever', 'New York'], ['-1', '1'], ['NA', 'None', 'null', 'N/A'], ['A+', 'B+', 'C++'], ['red|round', 'blue|square'],
                                    ['Pepper,_bell_spot', 'Pepper,_bell_healthy', 'Corn'], ['tench, Tinca tinca', 'goldfish, Carassius auratus'], [True, False], list(range(12)), ['1.0', '1.1', '2.0']])
def test_ordinary_labels_without_a_word(labels):
    df = pd.DataFrame(dict(path=[f'{i}.png' for i in range(3*len(labels))], label=labels*3))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert set(image_table(df).label) == set(map(str, labels))


@pytest.mark.parametrize('empty', ['', '  ', '\u200b', None, float('nan'), pd.NA])
def test_a_label_is_not_empty(empty):
    with pytest.raises(ValueError, match='1 of 2 rows have no path or no label.* row 7'): image_table(pd.DataFrame(dict(path=['a', 'b'], label=['cat', empty]), index=[3, 7]))


def test_empty_labels_are_named_by_their_line(table):
    with pytest.raises(ValueError, match='lines 4, 6'): table('path,label\na.png,cat\n\nb.png, \nc.png,dog\n,dog\n')


def test_names_of_nothing_are_names_but_pandas_nan_is_said(table):
    assert pairs(table('path,label\na.png,NA\nb.png,None\n')) == [('a.png', 'NA'), ('b.png', 'None')]
    with pytest.warns(DataWarning, match="called 'nan'"): image_table(pd.DataFrame(dict(path=['a', 'b'], label=['x', 'nan'])))


# Numbers

def test_argmax_agrees_with_the_numbers(tmp_path):
    (tmp_path/'images').mkdir()
    rows = [(f'images/{k}_{i}.png', k) for k in range(12) for i in range(3)]
    for path, k in rows: picture(0, k, (8, 8)).save(tmp_path/path)
    pd.DataFrame(rows, columns=['path', 'label']).astype(dict(label=float)).to_csv(tmp_path/'labels.csv', index=False)
    dls = image_dataloaders(tmp_path/'labels.csv', check=False, valid_pct=.34, **small)
    assert list(dls.vocab) == [str(i) for i in range(12)]
    for x, y in dls.valid: pass
    assert [str(i) for i in y.tolist()] == [dls.table.set_index('path').label[str(p)] for p in dls.valid.items]


@pytest.mark.parametrize('labels, order', [
    (range(12), list(map(str, range(12)))), (['class10', 'class9', 'class1'], ['class1', 'class9', 'class10']), (['-2', '-10', '3'], ['-10', '-2', '3']), (['02', '10', '01'], ['01', '02', '10']),
    (['0.5', '0.25', '10'], ['0.25', '0.5', '10']), (['v1.10', 'v1.9'], ['v1.9', 'v1.10']), (['b', 'a', '2', '10'], ['2', '10', 'a', 'b']), (['9'*5000, '1x'], ['1x', '9'*5000])])
def test_natural_order(labels, order): assert natural_order(map(str, labels)) == order


@pytest.mark.parametrize('labels, names', [([0., 1., 10.], ['0', '1', '10']), (['0.0', '1.0', '10.0'], ['0', '1', '10']), ([-0., -1., 1e16], ['0', '-1', '10000000000000000']), (['01', '02', '10'], ['01', '02', '10']),
                                           (np.array([0, 1, 10], np.uint8), ['0', '1', '10']), (pd.array([0, 1, 10], 'Int64'), ['0', '1', '10']), ([0, 1., '10'], ['0', '1', '10']), (pd.Categorical([0., 1., 10.]), ['0', '1', '10'])])
def test_whole_floats_are_integers(labels, names): assert image_table(pd.DataFrame(dict(path=['a', 'b', 'c'], label=labels))).label.tolist() == names


def test_saved_names_are_found():
    "Classes of older models are as they were: labels that were not cleaned, and floats"
    assert class_numbers(['0.0', '1.0', '10.0'])['10'] == 2 and class_numbers(['cat ', 'dog'])['cat'] == 0
    assert class_numbers(['cat', 'cat ']) == {'cat': 0, 'cat ': 1} and class_numbers(['10', '9'])['9'] == 1


# Columns

@pytest.mark.parametrize('text, taken', [
    ('filename,width,height,class\na.png,20,30,cat\nb.png,21,30,dog\n', 'filename, labels from class; not used: width, height'),
    (',label\na.png,cat\nb.png,dog\n', 'without a name, labels from label'),
    ('Unnamed: 0,image_id,breed\n0,a.png,cat\n1,b.png,dog\n', 'image_id, labels from breed'),
    (',path,label\n5,a.png,cat\n9,b.png,dog\n', 'path, labels from label'),
    ('index,path,label\n0,a.png,cat\n1,b.png,dog\n', 'path, labels from label'),
    ('label,path\ncat,a.png\ndog,b.png\n', 'path, labels from label'),
    ('was,wo\ncat,a.png\ndog,b.png\n', 'wo, labels from was'),
    (' Path , LABEL\na.png,cat\nb.png,dog\n', 'Path, labels from LABEL'),
    ('Image File Name,Target\na.png,cat\nb.png,dog\n', 'Image File Name, labels from Target'),
    ('id,filename,species\n1,a.png,cat\n2,b.png,dog\n', 'filename, labels from species; not used: id'),
    ('Image,Id\na.png,cat\nb.png,dog\n', 'Image, labels from Id'),
    ('fname,class_id,class_name\na.png,0,cat\nb.png,1,dog\n', 'fname, labels from class_name; not used: class_id'),
    ('fname,split,artist\na.png,train,cat\nb.png,val,dog\n', 'fname, labels from artist, splits from split'),
    ('"path","label"\n"1","a.png","cat"\n"2","b.png","dog"\n', 'path, labels from label'),
    ('#path,label\na.png,cat\nb.png,dog\n', 'path, labels from label'),
    (',0,1\n0,a.png,cat\n1,b.png,dog\n', '0, labels from 1')])
def test_columns_by_name_and_content(table, text, taken):
    found = table(text)
    assert pairs(found) == AB and found.words == f'labels.csv: paths from column {taken}'


def test_ids_and_classes_by_what_repeats(table):
    assert pairs(table('kind,code\ncat,0001\ndog,0002\ncat,0003\n')) == [('0001', 'cat'), ('0002', 'dog'), ('0003', 'cat')]


@pytest.mark.parametrize('text, said', [
    ('filename,width,colour\na.png,1,red\nb.png,2,blue\n', "'filename', 'width', 'colour'.*labels is not clear.*label_col='width'"),
    ('file,species,breed\na.png,cat,siam\nb.png,dog,pug\nc.png,dog,corgi\n', "label_col='species'"),
    ('left,right,label\na.png,c.png,cat\nb.png,d.png,dog\n', "paths is not clear.*path_col='left'"),
    ('weight,label,height\n1.5,cat,2\n1.7,dog,3\n', 'paths is not clear'),
    ('label,pixel0,pixel1\n1,0,0\n0,255,3\n', 'pixels in its columns'), ('emotion,pixels,Usage\n0,70 80,Training\n', 'pixels in its columns'),
    ('image,healthy,rust\na.png,1,0\nb.png,0,1\n', 'a column of 0 and 1 for each class'),
    ('path\na.png\nb.png\n', "only column is 'path'")])
def test_columns_that_are_not_clear_are_listed(table, text, said):
    with pytest.raises(ValueError, match=said): table(text)


def test_columns_that_were_asked_for(table):
    text = 'filename,width,Kind,colour\na.png,1,cat,red\nb.png,2,dog,blue\n'
    assert pairs(table(text, label_col='kind')) == AB
    assert pairs(table(text, path_col='filename', label_col='Kind')) == AB
    for bad, said in ((dict(label_col='nope'), "no column 'nope', only 'filename'"), (dict(path_col='Kind', label_col='Kind'), 'both'), (dict(split_col='colour', label_col='Kind'), 'A split can be')):
        with pytest.raises(ValueError, match=said): table(text, **bad)


def test_an_existing_file_tells_the_column(table, tmp_path):
    "Of two columns of paths the one whose files are there, whatever it is called"
    (tmp_path/'b').mkdir()
    for n in ('x', 'y'): picture(0, 0).save(tmp_path/'b'/f'{n}.png')
    assert table('path,cropped,label\na/x.png,b/x.png,cat\na/y.png,b/y.png,dog\n').words.startswith('labels.csv: paths from column cropped')


@pytest.mark.parametrize('df, said', [
    (pd.DataFrame({'a.png': ['b.png'], 'cat': ['dog']}), 'header=None'), (pd.DataFrame([['a.png', 'x', 'y']], columns=['path', 'label', 'label']), "two columns called 'label'"),
    (pd.DataFrame(dict(image=[dict(bytes=b'')], label=[1])), 'type dict'), (pd.DataFrame(dict(path=[], label=[])), 'no rows')])
def test_frames_that_are_no_tables(df, said):
    with pytest.raises(ValueError, match=said): image_table(df)


def test_frames_that_are():
    one = pd.DataFrame(dict(y=['cat', 'dog']), index=['a.png', 'b.png'])
    numbers = pd.DataFrame([['a.png', 'cat'], ['b.png', 'dog']])
    from pathlib import Path
    paths = pd.DataFrame(dict(file=[Path('a.png'), Path('b.png')], y=pd.Categorical(['cat', 'dog'])))
    for df in (one, one.rename_axis('image_id'), numbers, paths): assert image_table(df)[['path', 'label']].values.tolist() == [list(o) for o in AB]
    assert image_table(pd.DataFrame(dict(id=[1., 2.], y=['cat', 'dog']))).path.tolist() == ['1', '2']
    assert set(image_table(pd.DataFrame(dict(path=list('abcd'), label=pd.cut(pd.Series([1, 2, 3, 4]), 2)))).label) == {'(0.997, 2.5]', '(2.5, 4.0]'}


# A first line that is none

@pytest.mark.parametrize('text', ['a.png,cat\nb.png,dog\n', 'cat,a.png\ndog,b.png\n', 'x/a.png;cat;\nx/b.png;dog;\n', '0,a.png,cat\n1,b.png,dog\n', 'a.png cat\nb.png dog\n', 'a.png,key\nb.png,dog\n'])
def test_a_table_without_a_header(table, text): assert [p for p, _ in pairs(table(text))] == ['a.png', 'b.png']


def test_headers_of_ids(table):
    assert len(table('0001,cat\n0002,dog\n').rows) == 2 and len(table('id_1,cat\nid_2,dog\nid_3,cat\n').rows) == 3
    assert len(table('code,what\n0001,cat\n0002,dog\n').rows) == 2 and len(table('path,label\na.png,cat\npath,label\nb.png,dog\n').rows) == 2


# Files of tables

@pytest.mark.parametrize('text, name', [
    ('path;label\na.png;cat\nb.png;dog\n', 'x.csv'), ('path\tlabel\na.png\tcat\nb.png\tdog\n', 'x.tsv'), ('path\tlabel\na.png\tcat\nb.png\tdog\n', 'x.txt'), ('path|label\na.png|cat\nb.png|dog\n', 'x.csv'),
    ('path,label\na.png,cat\nb.png,dog\n', 'x.tsv'), ('a.png   cat\nb.png   dog\n', 'x.txt'), ('path,label,\na.png,cat,\nb.png,dog,\n', 'x.csv'), ('path,label\na.png,cat,\nb.png,dog,\n', 'x.csv'),
    ('sep=;\npath;label\na.png;cat\nb.png;dog\n', 'x.csv'), ('# of May\n#\npath,label\na.png,cat\nb.png,dog\n', 'x.csv'), ('path,label\r\na.png,cat\r\nb.png,dog\r\n', 'x.csv'), ('path,label\ra.png,cat\rb.png,dog', 'x.csv'),
    ('"path", "label"\n"a.png", "cat"\n"b.png", "dog"\n', 'x.csv'), ('\n\npath,label\n\na.png,cat\n,\nb.png,dog\n\n', 'x.csv'), ('path,label\na.png,cat\nb.png,dog\n', 'labels'), ('path,label,note\na.png,cat\nb.png,dog,good\n', 'x.csv')])
def test_separators(table, text, name): assert pairs(table(text, name)) == AB


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32'])
def test_encodings(table, encoding): assert pairs(table('path;label\na.png;café\nb.png;猫\n', encoding=encoding)) == [('a.png', 'café'), ('b.png', '猫')]


def test_windows_is_read_with_a_note_and_others_are_refused(table, tmp_path):
    (tmp_path/'old.csv').write_bytes('path;label\na.png;Grünspecht\nb.png;café “x”\n'.encode('cp1252'))
    with pytest.warns(DataWarning, match="Windows-1252, e.g. 'Grünspecht'"): assert image_table(tmp_path/'old.csv').label.tolist() == ['Grünspecht', 'café “x”']
    for text, encoding in (('путь', 'cp1251'), ('猫咪', 'gbk'), ('カタログ', 'shift-jis'), ('고양이', 'euc-kr')):
        with pytest.raises(ValueError, match=r'labels.csv.*save it as UTF-8'): table(f'path,label\na.png,{text}\nb.png,{text[::-1]}\n', encoding=encoding)


def test_compressed(table):
    assert pairs(table(gzip.compress(b'path,label\na.png,cat\nb.png,dog\n'), 'labels.csv.gz')) == AB
    with pytest.raises(ValueError, match='damaged'): table(gzip.compress(b'path,label\na.png,cat\n')[:-9], 'labels.csv.gz')


@pytest.mark.parametrize('text, name, said', [
    ('', 'x.csv', 'is empty'), ('\n \n', 'x.csv', 'is empty'), ('path,label\n', 'x.csv', 'no rows'), (b'PK\3\4', 'x.xlsx', 'read_excel'), (b'PK\3\4', 'x.csv', 'Excel'), ('{"a": 1}', 'x.csv', 'read_json'), (b'', 'x.json', 'read_json'),
    (b'PAR1', 'x.parquet', 'read_parquet'), (b'', 'x.zip', 'unpack it'), (b'', 'x.png', 'is an image'), ('<!DOCTYPE html>\n<p>, sign in', 'x.csv', 'a web page'), ('version https://git-lfs.github.com/spec/v1\n', 'x.csv', 'Git LFS'),
    (bytes(range(256))*9, 'x.csv', 'text file'), ('path,label\na.png,cat\nb.png,cat, big\n', 'x.csv', "line 3: 3 cells.*double quotes"), ('path,label\n' + 'a.png,cat\n'*9000 + 'b.png,cat,big\n', 'x.csv', 'line 9002: 3 cells'),
    ('path,label\na.png,"cat\nb.png,dog\n', 'x.csv', 'line 2: a double quote'), ('path,label\na.png,cat\nb.png,"dog\nc.png,cat"\n', 'x.csv', 'line 3: a double quote'), ('some words\n', 'x.txt', 'neither a folder nor a table')])
def test_what_is_no_table(table, text, name, said):
    with pytest.raises(ValueError, match=said) as e: table(text, name)
    assert name in str(e.value)


# Splits

@pytest.mark.parametrize('yes, no', [('1.0', '0.0'), ('True', 'False'), ('TRUE', 'FALSE'), ('1', '0'), ('yes', 'no'), ('y', 'n'), ('valid', 'train'), ('Validation', 'Training')])
def test_is_valid(table, yes, no):
    found = table(f'path,label,is_valid\na.png,cat,{no}\nb.png,dog,{yes}\n')
    assert found.rows.split.tolist() == ['train', 'valid'] and found.words.endswith('splits from is_valid')


@pytest.mark.parametrize('column, cells, splits', [
    ('Set', 'Training Validation Testing', 'train valid test'), ('is_test', '0 0 1', '  test'), ('is_training_image', '1 1 0', 'train train valid'), ('purpose', 'train val test', 'train valid test'),
    ('fold', '0 1 2', '  '), ('is_valid', '1 0 ', ''), ('split', 'dev eval train', ''), ('split', 'train red test', ''), ('usage', 'x y z', '  ')])
def test_columns_of_splits(column, cells, splits):
    df = pd.DataFrame({'path': list('abc'), 'label': list('xyx'), column: cells.split(' ')})
    if splits: assert image_table(df).split.tolist() == splits.split(' ')
    else:
        with pytest.raises(ValueError, match=column): image_table(df)


def test_two_columns_of_yes_and_no():
    df = pd.DataFrame(dict(path=list('abc'), label=list('xyx'), is_valid=[0., 1., 0.], is_test=[False, False, True]))
    assert image_table(df).split.tolist() == ['train', 'valid', 'test']
    with pytest.raises(ValueError, match='row 2 is in two splits'): image_table(df.assign(is_valid=[0, 0, 1]))


def test_split_words_are_theirs_and_not_part_of_other_words():
    for split, words in SPLIT_WORDS.items():
        for w in words: assert {split_word(o) for o in (w, w.upper(), f'{w}_set', f'seg_{w}', f'{w}-images', f'{w.title()} Data', f'{w}2017')} == {split}
    assert {split_word(o) for o in ('protest', 'training wheels', 'valley', 'devil', 'cat', '')} == {None}


# Paths

@pytest.fixture
def images(tmp_path):
    "Two folders of images, under a folder of tables"
    for name in ('images/part_1/0001.jpg', 'images/part_2/0002.JPG', 'images/part_2/0003.png'):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        picture(0, 0).save(tmp_path/name)
    return tmp_path


@pytest.mark.parametrize('cells', [['0001', '0002', '0003'], ['part_1/0001', 'part_2/0002', 'part_2/0003'], ['0001.jpg', '0002.jpg', '0003.png'], ['images\\part_1\\0001.jpg', 'images\\part_2\\0002.JPG', 'images\\part_2\\0003.png'],
                                   ['/kaggle/input/x/images/part_1/0001.jpg', '/kaggle/input/x/images/part_2/0002.JPG', '/kaggle/input/x/images/part_2/0003.png'], ['images/part_1/0001.jpg ', './images//part_2/0002.JPG', 'images/x/../part_2/0003.png']])
def test_files_are_found_where_they_are(images, table, cells):
    (images/'images'/'x').mkdir()
    found = table('image,label\n' + ''.join(f'{c},{l}\n' for c, l in zip(cells, 'aba')))
    assert [os.path.relpath(os.path.realpath(p), os.path.realpath(images)) for p in found.rows.path] == ['images/part_1/0001.jpg', 'images/part_2/0002.JPG', 'images/part_2/0003.png']


def test_suffix_and_root(images, table, monkeypatch):
    text = 'id,label\n0002,a\n0003,b\n'
    assert pairs(table(text, root=images/'images'/'part_2', suffix='png')) == [('0002.png', 'a'), ('0003.png', 'b')]
    assert [p for p, _ in pairs(table(text, root=images/'images'))] == ['0002.JPG', '0003.png']
    assert 'in ' in table(text).words and '.JPG, .png' in table(text).words
    for bad, said in ((dict(suffix=''), 'suffix='), (dict(suffix='a/b'), 'suffix=')):
        with pytest.raises(ValueError, match=said): table(text, **bad)
    with pytest.raises(FileNotFoundError, match="root='nowhere'"): table(text, root='nowhere')
    monkeypatch.chdir(images)
    (images/'lists').mkdir()
    for where in ('images/part_1/0001.jpg', '../images/part_1/0001.jpg'):   # as seen from the working directory, and from the list
        assert os.path.isfile(table(f'path,label\n{where},a\nx.png,b\n', 'lists/labels.csv').rows.path.iloc[0])


def test_two_files_for_one_id_are_refused(images, table):
    picture(0, 0).save(images/'images'/'part_1'/'0002.png')
    with pytest.raises(ValueError, match="'0002' could be .*root="): table('id,label\n0001,a\n0002,b\n')


def test_odd_names_that_exist_stay(tmp_path, table):
    names = ['back\\slash.png', ' blank .png', '~tilde.png']
    for n in names: picture(0, 0).save(tmp_path/n)
    found = image_table(pd.DataFrame(dict(path=[str(tmp_path/n) for n in names], label=list('aba'))))
    assert sorted(map(os.path.basename, found.path)) == sorted(names)
    assert sorted(p for p, _ in pairs(table('path;label\n' + ''.join(f'"{n}";{i}\n' for i, n in enumerate(names))))) == sorted(names)


@pytest.mark.parametrize('path', ['https://example.org/a.png', 's3://bucket/a.png', 'file:///data/a.png'])
def test_addresses_are_refused(table, path):
    with pytest.raises(ValueError, match='are addresses'): table(f'path,label\n{path},cat\n{path}2,dog\n')


def test_files_that_are_all_missing_say_where_they_were_looked_for(table, tmp_path):
    from fastbit.baseline import folder_rule
    from fastbit.studies import check_data
    table('path,label\na.png,cat\nb.png,dog\n')
    for f in (lambda p: image_dataloaders(p, **small), folder_rule, lambda p: check_data(p, verbose=False, labels=False)):
        with pytest.raises(FileNotFoundError, match=r'None of the 2 files is there.*a\.png.*root='), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            f(tmp_path/'labels.csv')


# One row per file

@pytest.mark.parametrize('spelling', ['./a.png', 'x/../a.png', './/a.png', '{here}/a.png', '{here}/link/a.png', 'x\\..\\a.png'])
def test_spellings_of_a_path(tmp_path, table, monkeypatch, spelling):
    (tmp_path/'x').mkdir()
    (tmp_path/'link').symlink_to(tmp_path)
    other = spelling.format(here=tmp_path)
    with pytest.raises(ValueError, match='One file with two labels'): table(f'path,label\na.png,cat\n{other},dog\n')
    with pytest.raises(ValueError, match='in two splits'): table(f'path,label,split\na.png,cat,train\n{other},cat,valid\n')
    more = f'path,label,site,taken\na.png,cat,1,2020\n{other},cat,2,2021\nb.png,dog,3,2022\n'
    with pytest.raises(ValueError, match='(?s)One file with two times, 1 times.*Leave one of its rows out'): table(more, time_col='taken')
    with pytest.raises(ValueError, match='(?s)One file in two groups.*: 1.*: 2.*give groups that share images one name'): table(more, group_col='site')
    monkeypatch.chdir(tmp_path)
    with pytest.warns(DataWarning, match='1 of 3 rows'): found = table_rows(pd.DataFrame(dict(path=['a.png', other, 'b.png'], label=['cat', 'cat', 'dog'])))
    assert len(found.rows) == 2 and found.skipped.reason.tolist() == ['listed more than once']


def test_the_same_row_twice_counts_once(table, tmp_path):
    (tmp_path/'x.csv').write_text('path,label\na.png,cat\na.png,cat\nb.png,dog\n')
    with pytest.warns(DataWarning, match='1 of 3 rows'): assert len(image_table(tmp_path/'x.csv')) == 2


# Several labels, and quantities

@pytest.mark.parametrize('labels', [
    ["['cat', 'dog']", "['cat']"], ['cat|dog', 'cat', 'dog'], ['cat,dog', 'cat', 'dog'], ['cat; dog', 'dog; cat'],
    ['cat,dog', 'dog,bird', 'bird,cat'], ['16 0', '16', '0', '7 16', '7']])
def test_what_may_be_several_labels_is_asked_for(labels):
    df = pd.DataFrame(dict(path=[f'{i}.png' for i in range(len(labels))], tags=pd.Series(labels, dtype=object)))
    with pytest.raises(ValueError, match="'tags'.*task='labels'.*task='label'"): image_table(df)


@pytest.mark.parametrize('labels', [[['cat', 'dog'], ['cat']], [np.array(['cat', 'dog']), np.array(['cat'])], [('cat', 'dog'), ()]])
def test_lists_are_several_labels(labels):
    df = pd.DataFrame(dict(path=[f'{i}.png' for i in range(len(labels))], tags=pd.Series(labels, dtype=object)))
    assert image_table(df).label.tolist() == [tuple(o) for o in labels]


def test_what_may_be_several_labels_is_said():
    for labels in (['cat dog', 'cat', 'dog'], ['cat+dog', 'cat', 'dog']):
        with pytest.warns(DataWarning, match='look like several labels'): image_table(pd.DataFrame(dict(path=list('abc'), label=labels)))
    assert image_table(pd.DataFrame(dict(path=list('ab'), label=[['cat'], ['dog']]))).label.tolist() == ['cat', 'dog']
    assert image_table(pd.DataFrame(dict(path=list('ab'), label=["['cat']", "['dog']"]))).label.tolist() == ['cat', 'dog']


def test_decimals_that_hardly_repeat_are_numbers_to_predict():
    df = pd.DataFrame(dict(path=[f'{i:02d}.png' for i in range(40)], price=np.arange(40)*1.37))
    assert image_table(df).label.tolist() == df.price.tolist()


@pytest.mark.parametrize('values, refused', [
    (np.arange(40)**2, True), (np.repeat(np.arange(12)*.5, 10), False), (np.repeat(np.arange(40)**2, 3), False)])
def test_quantities_are_no_classes(values, refused):
    df = pd.DataFrame(dict(path=[f'{i}.png' for i in range(len(values))], price=values))
    if refused:
        with pytest.raises(ValueError, match=r"'price' has \d+ different numbers.*task='number'.*task='label'"): image_table(df)
    else:
        with pytest.warns(DataWarning, match="a quantity, use task='number'"): image_table(df)


def test_numbered_classes_are_classes():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for values in (np.arange(100).repeat(3), np.arange(40), np.arange(1, 41), np.array([3, 17, 250]).repeat(2)):
            assert image_table(pd.DataFrame(dict(path=[f'{i}.png' for i in range(len(values))], label=values))).label.nunique() == len(set(values))


# On the command line, and everywhere

@pytest.mark.filterwarnings('ignore::fastbit.core.text.DataWarning')
def test_the_command_takes_the_columns(tmp_path, capsys, monkeypatch):
    from fastbit.cli.command import main
    monkeypatch.chdir(write_folder(tmp_path/'data', dict(x=8, y=8)))
    rows = [(f'{i:03d}', d, i, k) for d, k in (('x', 'cat'), ('y', 'dog')) for i in range(8)]
    pd.DataFrame(rows, columns=['number', 'where', 'weight', 'what']).assign(number=lambda d: d['where'] + '\\' + d.number).to_csv('t.csv', index=False, sep=';')
    assert main(['recipe', 't.csv', '--path-col', 'number']) == 2
    assert "Choose it with --label-col" in capsys.readouterr().err
    columns = ['--path-col', 'number', '--label-col', 'what', '--root', '.', '--suffix', 'png']
    assert main(['recipe', 't.csv', *columns]) == 0
    out = capsys.readouterr().out
    assert '16 images, 2 classes' in out and '--label-col what' in out
    assert main(['check', 't.csv', '--no-labels', '--out', 'check', *columns]) in (0, 1)
    model = ['--arch', TINY['arch'], '--weights', 'random', '--size', '32', '--bs', '8', '--epochs', '1', '--workers', '0', '--recipe', 'head', '--out', 'run']
    assert main(['baseline', 't.csv', *model, *columns]) == 0
    assert main(['evaluate', 'run', 't.csv', *columns]) == 0
    assert '16 images' in capsys.readouterr().out
    assert main(['baseline', '.', *model[:-1], 'other', '--label-col', 'what']) == 2
    assert '--label-col what is for tables' in capsys.readouterr().err


def test_python_takes_the_columns(tmp_path):
    from fastbit.baseline import baseline, folder_rule
    from fastbit.studies import check_data, few_shot_curve, leaderboard
    import inspect
    from fastbit.export import Predictor
    for f in (baseline, folder_rule, leaderboard, few_shot_curve, check_data, image_dataloaders, image_table, Predictor.evaluate, Predictor.labeled_probs):
        assert {'root', 'path_col', 'label_col', 'split_col', 'suffix'} <= set(inspect.signature(f).parameters), f
    root = write_folder(tmp_path/'data', dict(x=6, y=6))
    df = pd.DataFrame(dict(number=[f'{d}/{i:03d}' for d in 'xy' for i in range(6)], weight=range(12), what=['cat', 'dog']*6))
    how = dict(root=root, path_col='number', label_col='what', suffix='.png')
    assert folder_rule(df, **how)[1].table.label.nunique() == 2
    board = leaderboard(df, ['test_efficientnet=random'], top=0, size=32, num_workers=0, verbose=False, out=tmp_path/'board', **how)
    assert board.n == 2 or board.n == 3
    assert len(few_shot_curve(df, ks=(1,), repeats=1, **TINY, size=32, num_workers=0, batch_size=4, n_steps=2, scale=None, verbose=False, **how)[0]) == 1


def test_a_million_rows_ask_little_of_the_disk(monkeypatch, tmp_path):
    "Existence is asked of a sample"
    from fastbit.data import filepaths
    asked = []
    monkeypatch.setattr(filepaths, 'is_file', lambda p: asked.append(p) or True)
    df = pd.DataFrame(dict(path=[f'x/{i}.png' for i in range(20_000)], label=['a', 'b']*10_000))
    assert len(image_table(df)) == 20_000 and len(asked) < 200


# What people's tables have besides

def test_splits_of_the_last_rows_count():
    df = pd.DataFrame(dict(path=[f'{i}.png' for i in range(3000)], label=['a', 'b']*1500, purpose=['training']*2400 + ['testing']*600))
    assert image_table(df).split.value_counts().to_dict() == {'': 2400, 'test': 600}


@pytest.mark.parametrize('column, cells, said', [
    ('subset', 'train test_seen test_unseen', "'test_seen'"), ('set', 'train query gallery', "'gallery'"), ('phase', 'train none test', "'none'"), ('dataset', 'train unlabeled unlabeled', "'unlabeled'"),
    ('partition', '0 1 2', "'2'"), ('partition', '1.0 2.0 3.0', "'2.0'"), ('Usage', 'Training PublicTest valid', 'several words')])
def test_odd_words_for_splits_are_refused(column, cells, said):
    with pytest.raises(ValueError, match=f'olumn {column!r}.*{said}'): image_table(pd.DataFrame({'path': list('abc'), 'label': list('xyx'), column: cells.split()}))


def test_splits_of_fer2013(table):
    assert table('path,label,Usage\na.png,cat,Training\nb.png,dog,PublicTest\nc.png,cat,PrivateTest\n').rows.split.tolist() == ['train', 'valid', 'test']


@pytest.mark.parametrize('text', [
    'path,split\ncat/1.png,train\ndog/2.png,test\n', 'image_id,partition\na.png,0\nb.png,1\nc.png,2\n', 'path,is_valid\na.png,True\nb.png,False\n', 'a.png,train\nb.png,test\n', 'path,group\na.png,train\nb.png,val\n'])
def test_splits_are_not_labels(table, text):
    with pytest.raises(ValueError, match='has splits, and there is no column of labels'): table(text)


def test_classes_that_look_like_splits_a_little(table):
    assert table('path,usage\na.png,casual\nb.png,formal\n').rows.label.tolist() == ['casual', 'formal'] == table('path,test\na.png,casual\nb.png,formal\n').rows.label.tolist()
    assert table('path,vehicle\na.png,train\nb.png,bus\n').rows.label.tolist() == ['train', 'bus'] and len(table('path,split\na.png,train\nb.png,test\n', label_col='split').rows) == 2


@pytest.mark.parametrize('column', ['valid', 'valid_image'])
def test_flags_that_hold_out_most_rows_are_noted(column):
    df = pd.DataFrame({'path': [f'{i}.png' for i in range(40)], 'label': ['x', 'y']*20, column: [i > 7 for i in range(40)]})
    with pytest.warns(DataWarning, match=f'{column!r} holds out 32 of 40 rows'): image_table(df)
    with pytest.warns(DataWarning, match=f'{column!r} holds out 40 of 40 rows'): image_table(df.assign(**{column: True}))


@pytest.mark.parametrize('number, last', [('{},5', '40'), ('-{},25', '40,75'), ('{},125', '40'), ('{}.000,5', '40'), ('{},000.5', '40'), ('{},000', '40')])
def test_quantities_with_commas_are_no_classes(table, number, last):
    cells = [*(number.format(i) for i in range(1, 13)), last]
    with pytest.raises(ValueError, match="13 different numbers.*task='number'"): table('path;score\n' + ''.join(f'{i}.png;{o}\n' for i, o in enumerate(cells)))


@pytest.mark.parametrize('labels', [['1.0', '1', 'unknown'], ['0.5', '0.50'], ['1', '+1'], ['-1.0', '-1', 'x']])
def test_equal_numbers_are_noted(labels):
    with pytest.warns(DataWarning, match='equal numbers'): assert len(set(image_table(pd.DataFrame(dict(path=list('abc')[:len(labels)], label=labels))).label)) == len(labels)


def test_long_ids_are_not_equal_numbers(table): assert len(table('path,label\na.png,12345678901234567\nb.png,12345678901234568\nc.png,x\n').rows) == 3


def test_descriptions_of_several_lines(table):
    text = 'path,label,description\na.png,cat,"A cat, grey.\nVery nice, too, and old\n\n"\nb.png,dog,"A ""dog"",\nbig"\n'
    assert pairs(table(text)) == AB and pairs(table(text.replace('.png', ''))) == [('a', 'cat'), ('b', 'dog')]


@pytest.mark.parametrize('text', [
    'id,label,note\n1,cat,"nice\n2,dog,"good"\n', 'id,label,note\n1,cat,"nice\n2,cat,good\n3,cat,fine"\n4,cat,x\n', 'id,label\n1,cat\n2,"dog\n3,bird"\n', 'path,label,note\na.png,cat,"nice\nb.png,dog,good"\n'])
def test_quotes_that_swallow_rows(table, text):
    with pytest.raises(ValueError, match='line [23]: a double quote'): table(text)


@pytest.mark.parametrize('names, cells', [(['AB.png', 'ab.png'], ['AB', 'ab']), (['A/1.png', 'a/1.png'], ['A/1', 'a/1']), (['Ab.png', 'ab.jpg'], ['Ab', 'ab']), (['x.png', 'x.PNG'], ['x.png', 'x.PNG'])])
def test_ids_that_differ_in_case(tmp_path, table, names, cells):
    for n in names:
        (tmp_path/'images'/n).parent.mkdir(parents=True, exist_ok=True)
        picture(0, 0).save(tmp_path/'images'/n)
    if len(list((tmp_path/'images').rglob('*.*'))) < 2: pytest.skip('a disk to which the names are one')
    found = table('id,label\n' + ''.join(f'{c},{l}\n' for c, l in zip(cells, 'xy')))
    assert sorted(zip(found.rows.label, (os.path.relpath(p, tmp_path/'images') for p in found.rows.path))) == list(zip('xy', names))


def test_an_index_of_paths():
    df = pd.DataFrame.from_dict({f'{i}.png': dict(label='ab'[i % 2], w=1) for i in range(4)}, orient='index')
    for one in (df, df.assign(index=7)): assert image_table(one).path.tolist() == [f'{i}.png' for i in range(4)]
    many = pd.DataFrame(dict(path=['a.png', 'b.png'], label=['cat', 'dog'], split=['train', 'valid'], w=1, conf=.5))
    for one in (many.set_index(['path', 'label']), many.set_index(['path', 'w']), many.set_index('path')):
        assert image_table(one).values.tolist() == [['a.png', 'cat', 'train'], ['b.png', 'dog', 'valid']]


def test_floats_and_other_extensions_find_their_files(tmp_path, table):
    for i in (1, 2): picture(0, 0).save(tmp_path/f'{i}.png')
    for text, how in (('id,label\n1.0,x\n2.0,y\n', {}), ('id,label\n1.0,x\n2.0,y\n', dict(suffix='png')), ('path,label\n1.jpg,x\n2.jpg,y\n', dict(suffix='.png'))):
        assert pairs(table(text, **how)) == [('1.png', 'x'), ('2.png', 'y')]


@pytest.mark.parametrize('title', ['Labels of May', '"Labels, of May"', 'Labels of May,'])
def test_a_title_above_the_header(table, title):
    for text in ('path,label\na.png,cat\nb.png,dog\n', '\npath,label\na.png,cat\nb.png,dog\n'): assert pairs(table(f'{title}\n{text}')) == AB


def test_columns_of_0_and_1_that_are_not_one_hot(table):
    with pytest.raises(ValueError, match="labels is not clear.*label_col='target'"): table('path,y,target\na.png,0,1\nb.png,1,1\nc.png,0,0\n')
    with pytest.raises(ValueError, match="label_col='target'"): table('image_name,patient_id,diagnosis,target\na.png,IP_1,nevus,0\nb.png,IP_2,unknown,0\nc.png,IP_3,melanoma,1\n')
