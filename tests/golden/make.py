"Write the golden artifact of this version: run once for a new format, and never again for an old one"
import json, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import fastbit
from fastbit.export import load_predictor, save_artifact
from fastbit.export.artifact import FORMAT
from test_artifact import GOLDEN, about_net, golden_picture, some_net
from test_unsure import some_answers

name = f'{fastbit.__version__}-format{FORMAT}'
folder = GOLDEN/f'artifact-{name}'
net = some_net()
about = about_net(
    evaluation=dict(part='valid', n=40, accuracy=.9, low=.77, high=.96), weights_from='somewhere',
    trained_on=dict(images=1, digests=['0123456789abcdef']))
save_artifact(folder, net, about, answers=some_answers(40, net.num_features))
df = load_predictor(folder, 'cpu').predict(golden_picture(), probs=True, min_precision=.9, coverage=.9, unlike=.05)
row = df.iloc[0]
answers = dict(prediction=row.prediction, probs=df.filter(like='p(').iloc[0].tolist(), calibrated=row.calibrated,
               answer=row.answer, set=row['set'], p_value=row.p_value)
(GOLDEN/f'answers-{name}.json').write_text(json.dumps(answers) + '\n')
