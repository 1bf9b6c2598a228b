"How the command starts: mistakes are reported before PyTorch is imported, and each command imports what it needs"
import json, os, subprocess, sys, textwrap

import pytest

from conftest import write_folder

# words of a command -> part of the message; the first group needs the standard library alone
WITHOUT_PANDAS = {
    'baseline nowhere': "no folder or file 'nowhere'",
    'baseline data --sise 3': 'did you mean --size?',
    'baseline data --epochs -1': '--epochs -1: 1 or more',
    'baseline data --recipe magic': "unknown recipe 'magic'",
    'baseline data --recipe onecycle --steps 20': '--steps applies to',
    'baseline data --arch resnet5O': "'resnet5O' is not the name of a timm model. Did you mean resnet50, resnet51q, resnet50t?",
    'baseline data --weights imagenet': "--weights imagenet; it can be 'auto'",
    'baseline data --balance evenly': '--balance evenly: choose from none, loss, batches',
    'baseline data --valid-pct .6 --test-pct .6': 'leave no images to train on',
    'baseline data --fold 3': '--fold 3 without --folds',
    'baseline data --budget soon': "a time such as '90s'",
    'baseline data --out /dev/null/out': 'cannot be written to',
    'baseline data --out foreign --overwrite': 'foreign/results.json is not from fastbit and would be overwritten',
    'baseline data --steps 3 --budget 90s': '--steps 3 and --budget 90s: the budget chooses the length',
    'baseline data --checkpoint-every 3 --budget 90s': 'a run against the clock cannot be resumed',
    'baseline data --recipe hyperrule --budget 90s': 'budget applies to the auto, onecycle and head recipes only',
    'baseline data --budget 0': '--budget 0: a time above zero',
    'baseline data --budget 1': '--budget 1 has no unit. Write --budget 1s, --budget 1m or --budget 1h; numbers from 60 on count seconds.',
    'baseline data --time-limit 2.5': 'has no unit. Write --budget 2.5s, --budget 2.5m or --budget 2.5h',
    'baseline data --recipe head --patience 3': '--patience 3: logistic regression has no epochs to choose from',
    'baseline data --label-smoothing 2': 'a share of the target, from 0 to below 1',
    'baseline data --device gpu': "--device gpu: not a kind of device; use 'cpu' or 'cuda'",
    'check data --device cpu:x': "--device cpu:x: not a kind of device",
    'baseline data --task regression': '--task regression: it can be label (one label per image)',
    'baseline data --task labels --loss mse': '--loss mse: choose from bce, asymmetric',
    'baseline --loss bce': '--loss bce is for several labels per image or for numbers, and these have one label',
    'leaderboard data --arch resnet5O=random': 'Did you mean resnet50',
    'predict data data': 'is not a fastbit results folder: it has no config.json',
    'evaluate nowhere data': "no folder 'nowhere'",
    'export data net.onnx': 'is not a fastbit results folder',
    'serve nowhere': "no folder 'nowhere'",
    'serve data': 'is not a fastbit results folder: it has no config.json',
    'serve model --port 70000': '--port 70000: a number from 0 to 65535',
    'serve model --host 192.0.2.1': '--host 192.0.2.1 is not an address of this machine',
    'bodies *nope*': 'No body matches'}
WITH_PANDAS = {
    'baseline empty': 'it is empty',
    'baseline texts': 'skipped: 1 not an image (.txt)',
    'baseline data/red': 'has 3 images and no class folders',
    'baseline one': "Only one class, 'red'",
    'baseline data --label-col kind': '--label-col kind is for tables (CSV)',
    'baseline table.csv --label-col species': "--label-col species: the table has no column 'species'",
    'baseline void.csv': 'is empty',
    'leaderboard empty': 'it is empty',
    'check empty': 'it is empty',
    'baseline data --out taken': 'taken/ already contains a finished run (see taken/results.json). Choose another --out',
    'baseline data --loss hinge': '--loss hinge is for several labels per image or for numbers',
    'baseline table.csv --thresholds one': '--thresholds one is for several labels per image',
    'baseline ages.csv --task number --metric kappa': '--metric kappa is for one label per image. Numbers are reported',
    'baseline ages.csv --task number --loss bce': 'is not a loss of a number per image. Choose from smooth_l1, mse, l1',
    'baseline data --task number': '--task number needs a table with a column of numbers (CSV)',
    'leaderboard data --arch BiT-L-R50x1': 'BiT-L was trained on JFT-300M and never published',
    'baseline data --arch BiT-M-R50x7': 'the authors published R50x1',
    'baseline data --arch resnet50.nope': "timm has no 'resnet50.nope'; tags of resnet50: resnet50.a1_in1k",
    'baseline data --arch BiT-S-R50x1': 'was published as a file only: download',
    'baseline data --arch efficientnet_b0_gn': 'No pretrained weights are available for efficientnet_b0_gn',
    'baseline data --arch dpn131 --weights bundled': 'No installed package has weights for dpn131.mx_in1k',
    'baseline data --arch dpn131': 'The Hugging Face hub does not answer, and its cache on this machine has no weights of dpn131.mx_in1k',
    'baseline data --weights empty': 'empty has no weights: neither model.safetensors',
    'baseline data --weights files/notes.pth': 'cannot be read as weights (neither a torch nor a safetensors file)',
    'baseline data --weights files/page.safetensors': 'an HTML page, not a file of weights: download the file itself',
    'check data --weights files/cut.safetensors': 'cannot be read as weights (SafetensorError: Error while deserializing header',
    'rule empty': 'it is empty',
    'predict model texts': 'No images in texts; skipped: 1 not an image (.txt)'}
COMMANDS = ['--help', *(f'{c} --help' for c in ('baseline', 'leaderboard', 'check', 'rule', 'predict', 'evaluate', 'embed', 'similar', 'label-next',
                                                'export', 'bodies', 'cache', 'serve')), 'bodies']
CODE = {   # Python -> what it finds, without PyTorch
    """from fastbit.data import check_table, image_table, split_table
table = split_table(image_table('data'))
check_table(table)
found = table.split.value_counts().to_dict()""": dict(train=6, valid=3),
    """from fastbit.data import read_image_set, split_table
images = read_image_set('table.csv', task='label', group=r'(..)[.]png')
found = [images.task_name, images.source]""": ['label', 'table.csv: paths from column path, labels from kind'],
    """import fastbit.data, pickle
images = pickle.loads(pickle.dumps(fastbit.data.read_image_set('data')))
found = sorted(set(fastbit.data.check_images(images.table.path).reason))""": [''],
    """from fastbit.metrics import wilson_interval
found = [round(v, 3) for v in wilson_interval(9, 10)]""": [.596, .982],
    """from fastbit.bodies import Preprocess, timm_name
found = [timm_name('BiT-M-R50x1'), Preprocess(64, (.5,)*3, (.5,)*3, 'bilinear').train_size]""": ['resnetv2_50x1_bit.goog_in21k', 69]}
NEVER = ('torch', 'timm', 'fastai', 'sklearn', 'scipy', 'matplotlib', 'torchvision', 'huggingface_hub')

FORKS = '''
import contextlib, io, json, os, sys
def command(words):
    from fastbit.cli.command import main
    return main(words)
def python(code):
    names = {}
    exec(code, names)
    return names['found']
def ended(words, run=command):
    "Exit status, messages and imports of a command or of Python code, in a fork of this process"
    read, write = os.pipe()
    if os.fork() == 0:
        status, out = 'died', io.StringIO()
        try:
            with contextlib.redirect_stderr(out), contextlib.redirect_stdout(io.StringIO()): status = run(words)
        except SystemExit as e: status = e.code
        finally:
            os.write(write, json.dumps([status, out.getvalue(), [m for m in HEAVY if m in sys.modules]]).encode())
            os._exit(0)
    os.close(write)
    with open(read) as f: found = json.loads(f.read())
    os.wait()
    return found
HEAVY, first, second, codes = json.loads(sys.argv[1])
import fastbit.cli.command   # forks of what all commands import
res = {words: ended(words.split()) for words in first}
import fastbit.data.layouts, fastbit.data.rows
res |= {words: ended(words.split()) for words in second}
res |= {code: ended(code, python) for code in codes}
print(json.dumps(res))
'''


@pytest.fixture(scope='module')
def ended(tmp_path_factory):
    "What each command does, from one process that has not imported anything"
    root = tmp_path_factory.mktemp('start')
    write_folder(root/'data', dict(blue=3, green=3, red=3))
    write_folder(root/'one', dict(red=3))
    for name in ('empty', 'texts', 'model'): (root/name).mkdir()
    (root/'texts'/'notes.txt').write_text('no image')
    weights = root/'files'   # that are none
    weights.mkdir()
    (weights/'notes.pth').write_text('no weights')
    (weights/'page.safetensors').write_text('<!DOCTYPE html><html>')
    (weights/'cut.safetensors').write_bytes((2**40).to_bytes(8, 'little') + b'{"a":')
    for name, results in dict(taken='{"versions": {"fastbit": "0"}, "settings": {}}', foreign='{}').items():
        (root/name).mkdir()
        (root/name/'results.json').write_text(results)
    (root/'ages.csv').write_text('path,age\n' + ''.join(f'data/{c}/{i:03d}.png,{20.25 + i + 9*len(c)}\n' for c in ('blue', 'red') for i in range(3)))
    for name in ('config.json', 'model.safetensors'): (root/'model'/name).touch()
    (root/'table.csv').write_text('path,kind\n' + ''.join(f'data/{c}/{i:03d}.png,{c}\n' for c in ('blue', 'red') for i in range(3)))
    (root/'void.csv').touch()
    first, second = [*WITHOUT_PANDAS, *COMMANDS], list(WITH_PANDAS)
    asked = json.dumps([[*NEVER, 'numpy', 'pandas'], first, second, [*CODE]])
    env = os.environ | dict(HF_HUB_OFFLINE='1', HF_HUB_CACHE=str(root/'hub'))
    run = subprocess.run([sys.executable, '-c', textwrap.dedent(FORKS), asked], cwd=root, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)



def test_a_mistake_is_reported_without_libraries(ended):
    "`bodies` asks huggingface_hub where its cache is"
    for words, message in WITHOUT_PANDAS.items():
        status, text, heavy = ended[words]
        assert status == 2 and message in text and text.count('\n') == 1 and not {*heavy} - {'huggingface_hub'}, (words, status, text, heavy)


def test_folders_and_tables_are_read_without_pytorch(ended):
    for words, message in WITH_PANDAS.items():
        status, text, heavy = ended[words]
        assert status == 2 and message in text and text.count('\n') == 1, (words, status, text)
        assert not {*heavy} & {*NEVER} - {'huggingface_hub'}, (words, heavy)   # which knows where its cache is


def test_images_are_listed_split_and_checked_without_pytorch(ended):
    "scikit-learn draws the split, and scipy computes intervals"
    for code, found in CODE.items():
        got, text, heavy = ended[code]
        assert got == found and not text, (code, got, text)
        assert not {*heavy} & {*NEVER} - {'sklearn', 'scipy'}, (code, heavy)


def test_help_and_lists_import_nothing(ended):
    for words in COMMANDS:
        status, _, heavy = ended[words]
        assert status == 0 and not {*heavy} - {'huggingface_hub'}, (words, heavy)


def test_early_messages_are_those_of_the_run(tmp_path):
    "The same readers, so the same words"
    from fastbit.bodies import timm_name
    from fastbit.core.published import check_body_name, is_of_installed_timm
    from fastbit.data import read_image_set
    from fastbit.cli.command import read_arguments
    from fastbit.cli.sources import check_images_source
    folder = write_folder(tmp_path/'data', dict(red=3))/'red'
    with pytest.raises(ValueError) as early: check_images_source(read_arguments(['baseline', str(folder)]))
    with pytest.raises(ValueError) as late: read_image_set(folder)
    assert str(early.value) == str(late.value)
    if not is_of_installed_timm(): pytest.skip('the table of bodies is of another timm')
    for name in ('resnet5O', 'EfficientNetB9', 'convnext_tinny.fb_in1k', 'alexnet', 'vit_b_16', 'foo', 'efficientnet_bO'):
        with pytest.raises(ValueError) as early: check_body_name(name)
        with pytest.raises(ValueError) as late: timm_name(name)
        assert str(early.value) == str(late.value), name


def test_what_timm_may_know_is_left_to_it(monkeypatch):
    from fastbit.core import published
    for name in ('resnet50', 'resnet50.a1_in1k', 'BiT-M-R50x1', 'bit-m-r50x1', 'efficientvim_m1', 'tf_efficientnet_b0_ns'):
        published.check_body_name(name)   # the last is a name of the past
    monkeypatch.setattr(published, 'is_of_installed_timm', lambda: False)
    published.check_body_name('a_body_of_tomorrow')


def test_large_folders_and_tables_wait_for_the_run(tmp_path, monkeypatch):
    import fastbit.data.folders
    from fastbit.cli import sources
    from fastbit.cli.command import read_arguments
    (tmp_path/'empty').mkdir()
    (tmp_path/'table.csv').write_text('path\nx')
    check = lambda name: sources.check_images_source(read_arguments(['baseline', str(tmp_path/name)]))
    for name in ('empty', 'table.csv'):
        with pytest.raises(ValueError): check(name)
    monkeypatch.setattr(sources, 'MAX_TABLE', 3)
    monkeypatch.setattr(sources, 'has_more_files', lambda folder: True)
    monkeypatch.setattr(fastbit.data.folders, 'list_folder', lambda folder: pytest.fail('listed'))
    for name in ('empty', 'table.csv'): check(name)
