"""The picture on the home page: the top of a report, light and dark. `python tools/home_picture.py results/report.html`

`nbs/images/report_light.webp` and `report_dark.webp`: cards, verdict, the first mistakes with their nearest training images, and the confusion matrix, side by side.
`phone_light.webp` and `phone_dark.webp`: cards, verdict and the first mistakes, as a phone shows them.
Nothing is drawn here: the page is that of the report, its other sections hidden. It needs Chromium; the report of the committed pictures was made by
`python -c "from fastbit.data import drawn_flowers; drawn_flowers('photos')"` and `fastbit baseline photos --size 128 --out results`.
"""
import argparse, base64, io, shutil
from pathlib import Path

from PIL import Image
from selenium import webdriver

ROOT = Path(__file__).parents[1]
WIDTH, PHONE, SCALE = 1100, 390, 2   # CSS pixels, and pixels for each: sharp on a screen of a phone

# of the report's own page: header, two mistakes, and the confusion matrix next to them
ONLY_THE_TOP = """
main { display: grid; grid-template-columns: 1.35fr 1fr; column-gap: 2.5rem; max-width: none; padding: 1.5rem 2rem 1rem; margin: 0 }
main > * { grid-column: 1 / -1; max-width: none !important }
main > #mistakes { grid-column: 1 }
main > #classes { grid-column: 2 }
main > nav, main > .note, main > section:not(#mistakes):not(#classes), footer { display: none }
#mistakes h3, #mistakes h3 ~ p, #mistakes .grid ~ *, #classes figure ~ * , #classes figcaption { display: none }
#mistakes .grid { grid-template-columns: 1fr 1fr; gap: 1rem }
#mistakes .grid > div:nth-child(n+3) { display: none }
#classes img { width: 100%; max-width: 24rem }
.big div { padding: .4rem .8rem }
.lead, .lead ~ p { margin: .25rem 0 }
h2 { margin-top: 1.2rem }
html { overflow: hidden }
"""
# the same below each other; what a phone shows of it has to be read
ONLY_THE_TOP_OF_A_PHONE = """
main { padding: .2rem .2rem .6rem; margin: 0 }
main > nav, main > .note, main > section:not(#mistakes), footer { display: none }
#mistakes h3, #mistakes h3 ~ p, #mistakes .grid ~ * { display: none }
#mistakes .grid > div:nth-child(n+3) { display: none }
.lead ~ p, .big div:nth-child(n+3) { display: none }
#mistakes .neighbors figcaption { font-size: .58rem }
.big { margin: .6rem 0 }
h2 { margin-top: .8rem }
html { overflow: hidden }
"""


def browser():
    "Headless Chromium"
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium') or shutil.which('google-chrome')
    for o in ('headless=new', 'no-sandbox', 'disable-gpu', 'hide-scrollbars'): options.add_argument(f'--{o}')
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which('chromedriver')))


def picture(
    chromium,
    report:Path,    # `report.html`
    scheme:str,     # light or dark
    width:int=WIDTH, # CSS pixels
) -> Image.Image:
    "The top of a report as it looks in a browser"
    size = lambda height: dict(width=width, height=height, deviceScaleFactor=SCALE, mobile=False)
    feature = dict(name='prefers-color-scheme', value=scheme)
    chromium.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[feature]))
    chromium.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size(900))
    chromium.get(report.resolve().as_uri())
    add_style = 'const s = document.createElement("style"); s.textContent = arguments[0]; document.head.append(s)'
    chromium.execute_script(add_style, ONLY_THE_TOP if width == WIDTH else ONLY_THE_TOP_OF_A_PHONE)
    height = chromium.execute_script('return Math.ceil(document.querySelector("main").getBoundingClientRect().bottom)')
    chromium.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size(height))
    return Image.open(io.BytesIO(base64.b64decode(chromium.get_screenshot_as_base64()))).convert('RGB')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('report', type=Path, help='report.html of a run')
    report = parser.parse_args().report
    folder = ROOT/'nbs'/'images'
    folder.mkdir(exist_ok=True)
    chromium = browser()
    try:
        for scheme in ('light', 'dark'):
            picture(chromium, report, scheme).save(folder/f'report_{scheme}.webp', quality=82, method=6)
            picture(chromium, report, scheme, PHONE).save(folder/f'phone_{scheme}.webp', quality=82, method=6)
    finally: chromium.quit()


if __name__ == '__main__': main()
