"Write the golden artifact of this version: run once for a new format, and never again for an old one"
import json, sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import fastbit
from fastbit.export import load_predictor, save_artifact
from fastbit.export.artifact import FORMAT
from test_artifact import GOLDEN, about_net, golden_picture, some_net

common = dict(temperature=None, weights_from='somewhere', trained_on=dict(images=1, digests=['0123456789abcdef']))
labels = dict(   # one label per image is still written in format 3
    task='labels', thresholds=(.1, .2, .3), evaluation=dict(part='valid', n=40, map=.9, map_interval=[.8, .95]))
number = dict(
    task='number', classes=('level',), number=dict(mean=50., std=10., low=20., high=90., within=12.),
    evaluation=dict(part='valid', n=40, mae=3., mae_interval=[2., 4.]))

def write(name, about, net):
    "Write an artifact and its answers, unless it is there"
    folder = GOLDEN/f'artifact-{name}'
    if folder.exists(): return
    save_artifact(folder, net, about)
    p = load_predictor(folder, 'cpu')
    row = p.predict(golden_picture(), probs=not p.task.is_number).iloc[0]
    answers = dict(prediction=row.prediction)
    if p.task.is_number: answers |= dict(low=row.low, high=row.high)
    else: answers['probs'] = list(map(float, row.filter(like='p(')))
    (GOLDEN/f'answers-{name}.json').write_text(json.dumps(answers) + '\n')

version = f'{fastbit.__version__}-format{FORMAT}'
write(version, replace(about_net(), **common, **labels), some_net())
write(f'{version}-number', replace(about_net(), **common, **number), some_net(classes=1))
