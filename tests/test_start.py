"How the command starts: mistakes are reported before PyTorch is imported, and each command imports what it needs"
import json, subprocess, sys, textwrap

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
    'baseline texts': 'it contains 1 not an image (.txt)',
    'baseline data/red': 'has 3 images and no class folders',
    'baseline one': "Only one class, 'red'",
    'baseline data --label-col kind': '--label-col kind is for tables (CSV)',
    'baseline table.csv --label-col species': "--label-col species: the table has no column 'species'",
    'baseline void.csv': 'is empty',
    'leaderboard empty': 'it is empty',
    'check empty': 'it is empty',
    'rule empty': 'it is empty',
    'predict model texts': 'No images in texts; skipped: 1 not an image (.txt)'}
COMMANDS = ['--help', *(f'{c} --help' for c in ('baseline', 'leaderboard', 'check', 'rule', 'predict', 'evaluate', 'embed', 'similar', 'label-next',
                                                'export', 'bodies', 'cache', 'serve')), 'bodies']
NEVER = ('torch', 'timm', 'fastai', 'sklearn', 'scipy', 'matplotlib', 'torchvision', 'huggingface_hub')

FORKS = '''
import contextlib, io, json, os, sys
def ended(words):
    "Exit status, messages and imports of a command, in a fork of this process"
    read, write = os.pipe()
    if os.fork() == 0:
        status, out = 'died', io.StringIO()
        try:
            from fastbit.cli.command import main
            with contextlib.redirect_stderr(out), contextlib.redirect_stdout(io.StringIO()): status = main(words)
        except SystemExit as e: status = e.code
        finally:
            os.write(write, json.dumps([status, out.getvalue(), [m for m in HEAVY if m in sys.modules]]).encode())
            os._exit(0)
    os.close(write)
    with open(read) as f: found = json.loads(f.read())
    os.wait()
    return found
HEAVY, first, second = json.loads(sys.argv[1])
import fastbit.cli.command   # forks of what all commands import
res = {words: ended(words.split()) for words in first}
import fastbit.data.layouts, fastbit.data.rows
res |= {words: ended(words.split()) for words in second}
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
    for name in ('config.json', 'model.safetensors'): (root/'model'/name).touch()
    (root/'table.csv').write_text('path,kind\n' + ''.join(f'data/{c}/{i}.png,{c}\n' for c in ('blue', 'red') for i in range(3)))
    (root/'void.csv').touch()
    first, second = [*WITHOUT_PANDAS, *COMMANDS], list(WITH_PANDAS)
    asked = json.dumps([[*NEVER, 'numpy', 'pandas'], first, second])
    run = subprocess.run([sys.executable, '-c', textwrap.dedent(FORKS), asked], cwd=root, capture_output=True, text=True)
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
        assert not {*heavy} & {*NEVER}, (words, heavy)


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
