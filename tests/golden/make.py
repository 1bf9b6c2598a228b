"Write the golden artifact of this version: run once for a new format, and never again for an old one"
import json, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import fastbit
from fastbit.artifact import save_artifact
from fastbit.predict import load_predictor
from test_artifact import GOLDEN, about_net, golden_picture, some_net

from fastbit.artifact import FORMAT
name = f'{fastbit.__version__}-format{FORMAT}'
folder = GOLDEN/f'artifact-{name}'
save_artifact(folder, some_net(), about_net(evaluation=dict(part='valid', n=40, accuracy=.9, low=.77, high=.96), weights_from='somewhere', trained_on=dict(images=1, digests=['0123456789abcdef'])))
df = load_predictor(folder, 'cpu').predict(golden_picture(), probs=True)
(GOLDEN/f'answers-{name}.json').write_text(json.dumps(dict(prediction=df.prediction[0], probs=df.filter(like='p(').iloc[0].tolist(), calibrated=df.calibrated[0])) + '\n')
