"Write the golden artifact of this version: run once for a new format, and never again for an old one"
import json, sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import fastbit
from fastbit.export import load_predictor, save_artifact
from fastbit.export.artifact import FORMAT
from test_artifact import GOLDEN, about_net, golden_picture, some_net

name = f'{fastbit.__version__}-format{FORMAT}'
folder = GOLDEN/f'artifact-{name}'
about = replace(about_net(),   # of several labels: one label per image is still written in format 3
    temperature=None, task='labels', thresholds=(.1, .2, .3), weights_from='somewhere',
    evaluation=dict(part='valid', n=40, map=.9, map_interval=[.8, .95]), trained_on=dict(images=1, digests=['0123456789abcdef']))
save_artifact(folder, some_net(), about)
row = load_predictor(folder, 'cpu').predict(golden_picture(), probs=True).iloc[0]
answers = dict(prediction=row.prediction, probs=list(map(float, row.filter(like='p('))))
(GOLDEN/f'answers-{name}.json').write_text(json.dumps(answers) + '\n')
