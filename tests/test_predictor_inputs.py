"What `predict` takes for images, and what it says of everything else"
import collections, io, tarfile, zipfile

import numpy as np, pandas as pd, pytest, torch
from fastcore.foundation import L
from PIL import Image

from fastbit.bodies import body_preprocess, build_body
from fastbit.export import Artifact, load_predictor, save_artifact
from fastbit.cli.command import main
from fastbit.export.inputs import image_items
from conftest import picture


@pytest.fixture
def predictor(tmp_path):
    torch.manual_seed(0)
    net = build_body('test_efficientnet', 3, 'random')
    torch.nn.init.normal_(net.classifier.weight)
    save_artifact(tmp_path/'model', net, Artifact('test_efficientnet', ('a', 'b', 'c'),
            body_preprocess('test_efficientnet', 32)))
    return load_predictor(tmp_path/'model', 'cpu')


@pytest.fixture
def files(tmp_path):
    for i in range(3): picture(i, i).save(tmp_path/f'{i}.png')
    return [tmp_path/f'{i}.png' for i in range(3)]


def test_one_image_in_every_form(predictor, files):
    data = files[1].read_bytes()
    wanted = predictor.predict(files[1]).probability[0]
    with open(files[1], 'rb') as opened, open(files[1], 'rb') as read:
        read.read()   # at its end, as after showing it
        pixels = np.asarray(Image.open(files[1]))
        boxed = np.empty(1, dtype=object); boxed[0] = pixels
        for item in (str(files[1]), data, bytearray(data), memoryview(data), io.BytesIO(data), opened, read,
                Image.open(files[1]), pixels, pixels[None], np.array([str(files[1])]), boxed):
            got = predictor.predict(item)
            assert len(got) == 1 and got.reason[0] == '' and got.probability[0] == pytest.approx(wanted), type(item)


def test_an_opened_file_is_one_image(predictor, files):
    "It gave a row for each of its lines"
    with open(files[0], 'rb') as f: assert len(predictor.predict(f)) == 1
    with open(files[0], 'rb') as f, open(files[1], 'rb') as g: assert len(predictor.predict([f, g])) == 2


def test_several_images_in_every_form(files):
    names = [str(f) for f in files]
    for items in (files, tuple(files), L(files), pd.Series(files), pd.Index(names), iter(files), (f for f in files),
            map(str, files), collections.deque(files), np.array(names), np.array(files, dtype=object),
            dict(zip('abc', files)).values()):
        assert image_items(items) == names, type(items)
    assert image_items([files[0].parent]) == names and image_items(files[0].parent) == names
    assert image_items([]) == [] and image_items(np.zeros((2, 8, 8, 3), np.uint8))[1].shape == (8, 8, 3)


def test_an_empty_list_gives_an_empty_table(predictor):
    df = predictor.predict([])
    assert len(df) == 0 and list(df) == ['path', 'prediction', 'probability', 'calibrated', 'reason']


def rows(): return iter([['a.png', 'cat'], ['b.png', 'dog']])   # as of csv.reader
class Response: content = b'...'
class Upload:
    async def read(self): return b''


REFUSED = {
    'text file': (lambda p: open(p/'0.png'), TypeError, r"open\(path, 'rb'\)"),
    'text in memory': (lambda p: io.StringIO('x'), TypeError, 'reads text'),
    'zip file': (lambda p: zipfile.ZipFile(p/'x.zip', 'w'), TypeError, 'A ZipFile is not a file of one image'),
    'zip of lists': (lambda p: zip(['a.png'], ['cat']), TypeError, 'tuple within a list'),
    'rows': (lambda p: rows(), TypeError, 'list within a list'),
    'nested': (lambda p: [[p/'0.png'], [p/'1.png']], TypeError, 'one flat list'),
    'pixels in lists': (lambda p: [[0, 1], [2, 3]], TypeError, 'list within a list'),
    'set': (lambda p: {'a.png', 'b.png'}, TypeError, 'set has no order'),
    'frozenset': (lambda p: frozenset('a'), TypeError, 'frozenset has no order'),
    'dict': (lambda p: {'a': p/'0.png'}, TypeError, 'list of its values'),
    'table': (lambda p: pd.DataFrame(dict(path=['a'])), TypeError, r"df\['path'\]"),
    'tensor': (lambda p: torch.zeros(3, 8, 8), TypeError, r'A Tensor of shape \(3, 8, 8\)'),
    'tensors': (lambda p: [torch.zeros(3, 8, 8)], TypeError, 'permute'),
    'floats': (lambda p: np.zeros((8, 8, 3)), TypeError, r'astype\(np.uint8\)'),
    'channels first': (lambda p: np.zeros((3, 8, 8), np.uint8), TypeError, 'Channels go last'),
    'grid of paths': (lambda p: np.array([['a', 'b']]), TypeError, 'one dimension'),
    'None': (lambda p: None, TypeError, 'NoneType is not an image'),
    'number': (lambda p: 3, TypeError, 'int is not an image'),
    'numbers': (lambda p: range(3), TypeError, 'int is not an image'),
    'response': (lambda p: Response(), TypeError, 'in .content'),
    'upload': (lambda p: Upload(), TypeError, 'A Upload is not a file of one image'),
    'address': (lambda p: 'https://example.org/cat.png', ValueError, 'downloads nothing.*urlopen'),
    'addresses': (lambda p: ['s3://bucket/cat.png'], ValueError, 'downloads nothing'),
    'data address': (lambda p: 'data:image/png;base64,iVBORw0', ValueError, 'base64.b64decode'),
    'archive': (lambda p: (p/'y.zip').write_bytes(b'PK') and p/'y.zip', ValueError, 'an archive: unpack it'),
    'no images': (lambda p: (p/'empty').mkdir() or p/'empty', FileNotFoundError, 'No images'),
}


@pytest.mark.parametrize('what', REFUSED)
def test_what_is_not_an_image_is_named(what, files):
    make, error, words = REFUSED[what]
    item = make(files[0].parent)
    try:
        with pytest.raises(error, match=words): image_items(item)
    finally: getattr(item, 'close', lambda: None)()


def test_a_path_that_is_not_there_is_a_row_with_its_reason(predictor, files):
    df = predictor.predict([files[0], 'gone.png', ''])
    assert df.reason[0] == '' and df.reason[1] and df.reason[2] and df.prediction.notna().tolist() == [True, False,
            False]


def test_an_address_on_the_command_line(predictor, tmp_path, capsys):
    assert main(['predict', str(tmp_path/'model'), 'https://example.org/cat.png']) == 2
    assert 'fetch the file first' in capsys.readouterr().err


def test_evaluate_takes_a_folder_or_a_table(predictor):
    with pytest.raises(TypeError, match='source is a list.*has no labels'): predictor.evaluate(['a.png'])


@pytest.mark.parametrize('item', [np.zeros((0, 8, 3), np.uint8), np.zeros((8, 0, 3), np.uint8),
    np.zeros((0, 0), np.uint8), Image.new('RGB', (0, 5)), Image.new('L', (5, 0))])
def test_images_without_pixels_have_no_prediction(predictor, item):
    row = predictor.predict([item]).iloc[0]
    assert 'no pixels' in row.reason and row.prediction is None


def test_gray_arrays_of_16_bits(predictor, tmp_path):
    a = np.arange(64, dtype=np.uint16).reshape(8, 8)*1000
    Image.fromarray(a).save(tmp_path/'gray.png')
    both = predictor.predict([a, tmp_path/'gray.png'])
    assert list(both.reason) == ['', ''] and both.probability[0] == both.probability[1]
    for wrong, words in ((a[..., None], r'a\[\.\.\., 0\]'), (np.zeros((2, 8, 8, 1), np.uint8), r'list\(a'),
            (np.stack([a]*3, -1), 'a >> 8')):
        with pytest.raises(TypeError, match=words): image_items(wrong)


def test_a_member_of_a_compressed_archive_that_is_read_as_a_stream(predictor, files, tmp_path):
    with tarfile.open(tmp_path/'x.tgz', 'w:gz') as t: t.add(files[0], '0.png')
    with tarfile.open(tmp_path/'x.tgz', 'r|gz') as t:
        assert [image_items(t.extractfile(m)) for m in t] == [[files[0].read_bytes()]]
