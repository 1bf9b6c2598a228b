"""`make fuzz`: coverage-guided noise (atheris) into what opens strangers' files, for a minute

Images and artifacts may be refused with the errors that the docstrings promise, and with no other: `read_image` with OSError, ValueError or SyntaxError, `load_artifact`
with ValueError or OSError. Whatever else comes out is printed with the input that did it, which is written into the working directory, and the exit status is 1.
"""
import argparse, json, os, struct, subprocess, sys, tempfile, warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT/'tests'))
TARGETS = ('image', 'config', 'weights')


def seeds(target, folder):
    "Things to begin with: the corpus of the tests, and the golden artifact"
    if target == 'image':
        import corpus
        for i, c in enumerate(corpus.all_cases()):
            if len(c.data) < 20_000: (folder/str(i)).write_bytes(c.data)
        return
    golden = next((ROOT/'tests'/'golden').glob('artifact-*/'))
    text = (golden/'config.json').read_bytes()
    data = (golden/'model.safetensors').read_bytes()
    header = data[8:8+struct.unpack('<Q', data[:8])[0]]
    (folder/'0').write_bytes(text if target == 'config' else header)
    small = json.loads(text) if target == 'config' else {'a': dict(dtype='F32', shape=[1], data_offsets=[0, 4])}
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
        assert (found.reason == '') == (img is not None), f'refused as {found.reason!r} by one, and not by the other'
    return test


def one_artifact(target):
    import shutil
    from fastbit.export import load_artifact, read_config
    from fastbit.export.artifact import CONFIG, WEIGHTS
    folder = Path(tempfile.mkdtemp())/'model'
    golden = next((ROOT/'tests'/'golden').glob('artifact-*/'))
    shutil.copytree(golden, folder)
    whole = (folder/WEIGHTS).read_bytes()
    body = whole[8+struct.unpack('<Q', whole[:8])[0]:]
    def test(data):
        if target == 'config': (folder/CONFIG).write_bytes(data)
        else: (folder/WEIGHTS).write_bytes(struct.pack('<Q', len(data)) + data + body)   # a header of noise before real numbers
        try: read_config(folder/CONFIG) if target == 'config' and len(data) % 8 else load_artifact(folder)
        except (ValueError, OSError) as e: assert str(e) and '\n' not in str(e)
    return test


def fuzz(target, seconds, folder):
    import atheris
    with atheris.instrument_imports(include=['PIL', 'fastbit.data.decode', 'fastbit.export.artifact']):
        import PIL.Image, PIL.JpegImagePlugin, PIL.PngImagePlugin, PIL.TiffImagePlugin, PIL.GifImagePlugin   # noqa: what is watched
        import fastbit.export.artifact, fastbit.data.decode   # noqa
    atheris.Setup([sys.argv[0], f'-max_total_time={seconds}', '-rss_limit_mb=4000', '-timeout=20', '-max_len=20000', '-verbosity=0', '-print_final_stats=1', str(folder)], one_image() if target == 'image' else one_artifact(target))
    atheris.Fuzz()


def run(target, seconds) -> int:
    "One target in a process of its own, without atheris' line for each module"
    words = [sys.executable, __file__, '--target', target, '--seconds', str(seconds)]
    with subprocess.Popen(words, env={**os.environ, 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace') as p:
        for line in p.stdout:
            if 'Instrumenting' not in line: print(line, end='', flush=True)
    return p.returncode


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--seconds', type=int, default=60, help='for all targets together')
    p.add_argument('--target', choices=TARGETS, help='one of them, in this process')
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.target:
            seeds(args.target, Path(folder))
            return fuzz(args.target, args.seconds, folder)
    share = dict(image=.5, config=.25, weights=.25)
    failed = [t for t in TARGETS if run(t, max(1, round(share[t]*args.seconds)))]
    print('fuzz:', f'{", ".join(failed)} failed' if failed else 'nothing but the promised errors')
    sys.exit(len(failed) > 0)


if __name__ == '__main__': main()
