"""`make fuzz`: coverage-guided noise (atheris) into the readers of foreign files, for a minute

Images, tables and artifacts may be refused with the errors that the docstrings promise, and with no other:
`read_image` with OSError, ValueError or SyntaxError, `read_image_set` and `load_artifact` with ValueError or OSError.
Tables and artifacts are of all tasks. Any other error is printed with the input that caused it, which is written into
the working directory, and the exit status is 1.
"""
import argparse, json, os, shutil, struct, subprocess, sys, tempfile, warnings
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ROOT/'tests'
sys.path.insert(0, str(TESTS))
SHARES = dict(image=.35, table=.3, config=.2, weights=.15)   # of the time, by target
SMALL = 20_000   # bytes of an image to begin with, and of an input
PLUGINS = [f'PIL.{o}ImagePlugin' for o in ('Jpeg', 'Png', 'Tiff', 'Gif')]
READERS = [f'fastbit.data.{o}' for o in ('decode', 'csvfile', 'columns', 'labels', 'label_sets', 'quantities', 'rows')]
READERS += ['fastbit.export.artifact', 'fastbit.export.record']
INSTRUMENTED = ['PIL.Image', *PLUGINS, *READERS]


def golden(name='artifact-0.1.0') -> Path:
    "The folder of an artifact that tests keep"
    return TESTS/'golden'/name

LATEST = dict(label='artifact-0.1.0-format3', labels='artifact-0.1.0-format4', number='artifact-0.1.0-format4-number')


def header_size(data) -> int:
    "Bytes of the header of a safetensors file, without its length"
    return struct.unpack('<Q', data[:8])[0]


def image_seeds(folder):
    import corpus
    for i, case in enumerate(corpus.all_cases()):
        if len(case.data) < SMALL: (folder/str(i)).write_bytes(case.data)


def seeds(target, folder):
    "Inputs to begin with: the corpus of the tests, tables of each task, and the golden artifacts"
    if target == 'image': return image_seeds(folder)
    if target == 'table': return table_seeds(folder)
    if target == 'config':
        for name in LATEST.values(): shutil.copy(golden(name)/'config.json', folder/name)
    text, data = (golden()/'config.json').read_bytes(), (golden()/'model.safetensors').read_bytes()
    header = data[8:8+header_size(data)]
    (folder/'0').write_bytes(text if target == 'config' else header)
    small = json.loads(text) if target == 'config' else dict(a=dict(dtype='F32', shape=[1], data_offsets=[0, 4]))
    (folder/'1').write_text(json.dumps(small, separators=(',', ':')))


def one_image():
    from fastbit.data import inspect_image, read_image
    scratch = Path(tempfile.mkdtemp())/'x'
    def test(data):
        warnings.simplefilter('ignore')
        try: img = read_image(data)
        except (OSError, ValueError, SyntaxError): img = None
        if img is not None: assert img.mode == 'RGB' and img.width and img.height
        scratch.write_bytes(data)
        found = inspect_image(scratch)
        assert (found.reason == '') == (img is not None), f'refused as {found.reason!r} by one reader only'
    return test


def table_seeds(folder):
    "Tables of each task in several forms"
    from tasks import CASES
    for i, case in enumerate(CASES.values()):
        rows = [f'{k}.png;"{cell}";{"train" if k % 3 else "valid"}' for k, cell in enumerate(case.cells)]
        text = '\n'.join(['path;label;split', *rows])
        for k, form in enumerate((text.encode(), text.replace(';"', ',"').encode('utf-16'), b'\n'.join(text.encode().split(b'\n')[1:]))):
            (folder/f'{i}-{k}').write_bytes(bytes([i]) + form)

def one_table():
    "The first byte chooses the task; the others are the file"
    from fastbit.data import read_image_set
    folder, tasks = Path(tempfile.mkdtemp()), ('label', 'labels', 'number', None)
    for k in range(3): (folder/f'{k}.png').write_bytes(b'x')
    def test(data):
        warnings.simplefilter('ignore')
        (folder/'t.csv').write_bytes(data[1:])
        try: found = read_image_set(folder/'t.csv', task=tasks[data[0] % 4] if data else None)
        except (ValueError, OSError) as e: return check_words(str(e), 2000 + 2*len(data))   # with a column's name
        assert len(found.table) and found.table.path.is_unique and found.table.label.map(type).nunique() == 1
    return test

def check_words(text, most=2000): assert text and len(text) < most, f'{len(text)} characters: {text[:200]!r}'

def one_artifact(target):
    from fastbit.export import load_artifact, read_config
    from fastbit.export.artifact import CONFIG, WEIGHTS
    folders = {task: Path(tempfile.mkdtemp())/'model' for task in LATEST}
    for task, name in LATEST.items(): shutil.copytree(golden(name), folders[task])
    whole = (folders['label']/WEIGHTS).read_bytes()
    body = whole[8+header_size(whole):]
    def write(data):
        task = next((o for o in ('labels', 'number') if f'"{o}"'.encode() in data), 'label') if target == 'config' else 'label'
        if target == 'config': (folders[task]/CONFIG).write_bytes(data)
        else: (folders[task]/WEIGHTS).write_bytes(struct.pack('<Q', len(data)) + data + body)   # noise before real numbers
        return folders[task]
    def test(data):
        folder = write(data)
        try: found = read_config(folder/CONFIG) if target == 'config' and len(data) % 8 else load_artifact(folder).about
        except (ValueError, OSError) as e:
            assert '\n' not in str(e)
            return check_words(str(e))
        assert str(found)   # a record that is read can be shown
    return test


def fuzz(target, seconds, folder):
    import atheris
    with atheris.instrument_imports(include=['PIL', *READERS]):
        for name in INSTRUMENTED: import_module(name)
    options = [f'-max_total_time={seconds}', f'-max_len={SMALL}', '-rss_limit_mb=4000', '-timeout=20',
               '-verbosity=0', '-print_final_stats=1']
    test = dict(image=one_image, table=one_table).get(target, lambda: one_artifact(target))()
    atheris.Setup([sys.argv[0], *options, str(folder)], test)
    atheris.Fuzz()


def run(target, seconds) -> int:
    "Run one target in a separate process, without atheris' line for each module"
    words = [sys.executable, __file__, '--target', target, '--seconds', str(seconds)]
    env = os.environ | dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
    with subprocess.Popen(words, env=env, **output) as p:
        for line in p.stdout:
            if 'Instrumenting' not in line: print(line, end='', flush=True)
    return p.returncode


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--seconds', type=int, default=60, help='for all targets together')
    p.add_argument('--target', choices=SHARES, help='one of them, in this process')
    args = p.parse_args()
    if args.target:
        with tempfile.TemporaryDirectory() as folder:
            seeds(args.target, Path(folder))
            return fuzz(args.target, args.seconds, folder)
    failed = [t for t, share in SHARES.items() if run(t, max(1, round(share*args.seconds)))]
    print('fuzz:', f'{", ".join(failed)} failed' if failed else 'nothing but the promised errors')
    sys.exit(len(failed) > 0)


if __name__ == '__main__': main()
