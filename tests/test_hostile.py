"Four hundred files that are not what they seem, and names that nobody should give: through check, training and prediction, in the command's own process"
import io, os, re, subprocess, time
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest
from PIL import Image

from conftest import write_folder
from forks import Fork
from fastbit.data.decode import reading
from fastbit.core.threads import in_threads
from fastbit.core.files import csv_text
import corpus

QUICK = ('--arch', 'test_efficientnet', '--weights', 'random', '--size', '32', '--device', 'cpu')
CLASSES = ['blue', 'green', '=1+1', '<b>bold<script>alert(1)<', 'new\nline', '🐈', '-c', 'x'*255, 'quote"s, and commas', os.fsdecode(b'caf\xe9'), '\x1b[31mred']
MOST_MEMORY = 2.4   # GB; torch and one image of 92 megapixels take about 1.5, another would take 0.7
MOST_SECONDS = 480


def as_text(path): return path.encode(errors='backslashreplace').decode()


MEASURED = '''
import resource, sys
from fastbit.cli.command import main
status = main(sys.argv[2:])
with open(sys.argv[1], 'w') as f: f.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20))
sys.exit(status)
'''


class Run:
    "The command, its output, and the most memory that it had"
    def __init__(self, *args, cwd, **env):
        try:
            with Fork(MEASURED, cwd/'memory', *args, cwd=cwd, env={**os.environ, **env}) as p: self.out, self.err = p.communicate(MOST_SECONDS)
        except subprocess.TimeoutExpired: pytest.fail(f'{args[0]} hangs')
        self.code = p.returncode
        self.gb = float((cwd/'memory').read_text())

    def sound(self, *codes, csv=False):
        assert self.code in codes, self.err[-3000:]
        for text in (self.out, self.err)[csv:]:
            assert 'Traceback' not in text and 'unexpected' not in text, text[-3000:]
            assert not re.search(r'[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x9b]', text.replace('\r', '')), 'a control character'
        assert self.gb < MOST_MEMORY, f'{self.gb:.1f} GB'
        return self


@pytest.fixture(scope='module')
def hostile(tmp_path_factory):
    "Folder of class folders with names from hell, one with the corpus: (folder, {path: Case}, the ones that a folder's scan finds)"
    root = tmp_path_factory.mktemp('hostile')
    data = write_folder(root/'data', dict.fromkeys(CLASSES, 8))
    cases = corpus.write(data/'blue'/'corpus')
    return data, cases


def found(cases): return {p: c for p, c in cases.items() if not os.path.basename(p).startswith('.') and os.path.splitext(p)[1].lower() in ALL and p == as_text(p)}
from fastbit.data.decode import IMAGE_EXTENSIONS as ALL


@pytest.fixture(scope='module')
def trained(hostile, tmp_path_factory):
    data, cases = hostile
    cwd = tmp_path_factory.mktemp('trained')
    return cwd, Run('baseline', data, *QUICK, '--recipe', 'head', '--epochs', 2, '--out', 'out', cwd=cwd, FASTBIT_CACHE=str(cwd/'cache'))


def test_there_are_enough():
    assert len(corpus.all_cases()) >= 370 and sum(c.fate == corpus.BAD for c in corpus.all_cases()) >= 100


SIDE = 5000   # pixels; 25 megapixels, 100 MB as Pillow has them


def most_memory(f) -> float:
    "MB that the process had at most while `f` ran, above what it had before"
    def mb(name): return int(re.search(rf'{name}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1])/1024
    Path('/proc/self/clear_refs').write_text('5')   # the high-water mark begins anew
    before = mb('VmRSS')
    f()
    return mb('VmHWM') - before


def _readers(tmp_path):
    from fastbit.bodies import body_preprocess
    from fastbit.data.augment import Augment
    from fastbit.data.features import view_pixels
    from fastbit.data import inspect_image
    from fastbit.data.check import read_once
    from fastbit.export.predict import flat_squares
    from fastbit.data.stream_dl import StreamDL
    pp = body_preprocess('test_efficientnet', size=32)
    stream = SimpleNamespace(pp=pp, train=True, seed=0, augment=Augment())
    return dict(check=inspect_image, once=lambda p: read_once(p, pp, [32, 35]), predict=lambda p: flat_squares(p, [32], pp), features=lambda p: view_pixels(p, 0, pp), stream=lambda p: StreamDL._pixels(stream, (0, p.read_bytes(), 0)))


@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='only Linux tells the high-water mark')
@pytest.mark.parametrize('reader', ['check', 'once', 'predict', 'features', 'stream'])
def test_one_large_image_is_in_memory_at_a_time(reader, tmp_path):
    "Whatever the number of threads: the picture as stored and as RGB, and no more"
    f = _readers(tmp_path)[reader]
    (tmp_path/'large.png').write_bytes(corpus.png(SIDE, SIDE, bytes(SIDE*(SIDE*3+1))))
    f(tmp_path/'large.png')   # what is imported and kept at the first time
    one = SIDE*SIDE*4/2**20
    assert most_memory(lambda: in_threads(f, [tmp_path/'large.png']*3, '', 3)) < 2.8*one   # two, and what the threads' heaps keep of the small ones made of it


def test_a_large_image_goes_before_the_next_comes(tmp_path):
    "A large image is one block that the system maps on its own: nothing that is allocated after it can hold it"
    (tmp_path/'large.png').write_bytes(corpus.png(SIDE, SIDE, bytes(SIDE*(SIDE*3+1))))
    sizes, alive, most, real = [], [], [], Image.core.get_block_size()
    with reading(tmp_path/'large.png'):
        sizes.append(Image.core.get_block_size())
        with reading(tmp_path/'large.png'): pass
        sizes.append(Image.core.get_block_size())
    assert sizes == [2**30]*2 and Image.core.get_block_size() == real
    def work(path):
        with reading(path):
            alive.append(path); most.append(len(alive)); time.sleep(.05); alive.pop()
    in_threads(work, [tmp_path/'large.png']*3, '', 3)
    assert most == [1]*3, 'the next one was read before there was nothing left to do with this one'


def test_training(hostile, trained):
    "What cannot be read is left out by name and reason, what can be is in the tables, and nothing else happens"
    (data, cases), (cwd, run) = hostile, trained
    run.sound(0)
    left_out = pd.read_csv(cwd/'out'/'left_out.csv', keep_default_na=False).set_index('path').reason
    seen = found(cases)
    for p, c in seen.items():
        if c.fate == corpus.BAD: assert left_out[as_text(p)], c.name
        if c.fate == corpus.GOOD: assert as_text(p) not in left_out, (c.name, left_out[as_text(p)])
    passed_over = left_out[left_out.isin(['hidden', 'name is not UTF-8', 'folder name is not UTF-8'])]
    left_out = left_out.drop(passed_over.index)
    assert passed_over.value_counts().to_dict() == {'name is not UTF-8': 2, 'hidden': 2, 'folder name is not UTF-8': 1}
    assert set(left_out.index) <= set(map(as_text, seen)) and (left_out != '').all()
    predictions = pd.read_csv(cwd/'out'/'predictions.csv', keep_default_na=False)
    assert predictions.probability.between(0, 1).all() and not set(predictions.path) & set(left_out.index)
    assert set(predictions.label) <= set(CLASSES)
    assert f'{len(left_out)} of {len(seen) + 8*(len(CLASSES)-1)} images cannot be read' in run.err
    assert '3 file(s) or folder(s) of' in run.err and '2 name is not UTF-8, 1 folder name is not UTF-8' in run.err
    assert not list(cwd.glob('**/ran')) and not list(data.glob('**/ran'))


def test_by_the_rule_with_loader_processes(hostile, tmp_path):
    Run('baseline', hostile[0], *QUICK, '--recipe', 'hyperrule', '--bs', 8, '--batch-size', 16, '--steps', 6, '--workers', 2, '--no-cache', '--out', 'out', cwd=tmp_path, FASTBIT_CACHE=str(tmp_path/'cache')).sound(0)
    assert (tmp_path/'out'/'results.json').exists()


def test_checking(hostile, tmp_path):
    data, cases = hostile
    Run('check', data, *QUICK[:-2], '--out', 'out', cwd=tmp_path, FASTBIT_CACHE=str(tmp_path/'cache')).sound(1)
    rows = pd.read_csv(tmp_path/'out'/'check.csv', keep_default_na=False)
    reasons = rows[rows.kind.isin(['unreadable', 'truncated'])].set_index('path').detail
    for p, c in found(cases).items():
        if c.fate == corpus.BAD: assert reasons[as_text(p)], c.name
        if c.fate == corpus.GOOD: assert as_text(p) not in reasons, c.name


def test_predicting(hostile, trained, tmp_path):
    "The same files are refused as in training, and what is right gets the answer of the plain picture"
    cases, cwd = hostile[1], trained[0]
    plain = tmp_path/'plain.png'
    corpus.art().save(plain)
    listed = [p for p in cases if '\0' not in p]
    run = Run('predict', cwd/'out', plain, *listed, '--csv', '--probs', cwd=tmp_path, FASTBIT_CACHE=str(tmp_path/'cache')).sound(1, csv=True)
    (tmp_path/'rows.csv').write_bytes(run.out.encode())
    rows = pd.read_csv(tmp_path/'rows.csv', keep_default_na=False, na_values={'probability': ['']})
    assert rows.path.tolist() == [str(plain), *map(as_text, listed)]
    probs = rows.filter(like='p(').apply(pd.to_numeric, errors='coerce')
    left_out = set(pd.read_csv(cwd/'out'/'left_out.csv', keep_default_na=False).path)
    for i, p in enumerate(listed, 1):
        c, r = cases[p], rows.iloc[i]
        assert bool(r.reason) != bool(r.prediction) and (np.isfinite(r.probability) if r.prediction else np.isnan(r.probability)), c.name
        if c.fate == corpus.BAD: assert r.reason, c.name
        if c.fate == corpus.GOOD:
            assert not r.reason, (c.name, r.reason)
            assert np.abs(probs.iloc[i] - probs.iloc[0]).max() < (.02 if c.name.endswith(('.jpg', '.tif', '.webp', '.bmp')) or 'really' in c.name else 1e-6), c.name
        if p in found(cases): assert bool(r.reason) == (as_text(p) in left_out), (c.name, r.reason)


def test_predicting_in_python(hostile, trained):
    "Bytes, too"
    from fastbit.export import load_predictor
    p, cases = load_predictor(trained[0]/'out', 'cpu'), [c for c in corpus.all_cases() if 'megapixels' not in c.name]
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # of Pillow's, about what is odd in a file
        rows = p.predict([c.data for c in cases])
    for c, r in zip(cases, rows.itertuples()):
        assert bool(r.reason) == pd.isna(r.prediction) == np.isnan(r.probability)
        if c.fate == corpus.BAD: assert r.reason, c.name
        if c.fate == corpus.GOOD: assert not r.reason, c.name


def test_pages_and_tables_escape_what_names_contain(trained, hostile, tmp_path):
    cwd, _ = trained
    html = (cwd/'out'/'report.html').read_text()
    assert '<script>alert(1)<' not in html and '<b>bold' not in html and 'onerror=alert(1)>.png' not in html.replace('&gt;', '')
    assert '&lt;b&gt;bold' in html


def formulas(text):
    "Cells and names of columns that a spreadsheet would run"
    df = pd.read_csv(io.StringIO(text, newline=''), header=None, keep_default_na=False, dtype=str)
    return [v for v in df.values.ravel() if v[:1] in ('=', '+', '-', '@', '\t', '\r') and not re.fullmatch(r'-?[\d.e+-]+', v)]


def test_tables_are_raw_for_programs_and_harmless_for_spreadsheets(trained):
    "What is written is what is there; what a person opens in a spreadsheet is asked for by name"
    cwd, _ = trained
    tables = [pd.read_csv(cwd/'out'/name, keep_default_na=False, dtype=str) for name in ('predictions.csv', 'left_out.csv')]
    assert {'=1+1', '-c'} <= set(tables[0].label)
    for df in tables: assert not formulas(csv_text(df, spreadsheet=True))
    assert formulas(csv_text(tables[0])) and not formulas(csv_text(pd.DataFrame({'=p': ['\t=1', '\r=1', '@x', '+', '-', '=']}), spreadsheet=True))


def test_a_page_of_hostile_names_runs_nothing(trained):
    from conftest import look_at
    page = look_at(trained[0]/'out'/'report.html', 1280)
    assert not page['errors'] and not page['requests'] and 'bold' in page['text']
