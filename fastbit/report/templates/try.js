
'use strict'
const $ = id => document.getElementById(id)
const settings = JSON.parse($('settings').textContent)
let image = null     // the bytes that were chosen last
let address = null   // of the preview
let stream = null    // of the webcam
let shown = {}       // pictures of the server: plain, and with the map

// texts stay texts: names of classes may be anything
const make = (tag, className = '', text = '') => {
  const e = document.createElement(tag)
  e.className = className
  e.textContent = text
  return e
}
const name = text => { const e = make('span', '', text); e.dir = 'auto'; return e }
const percent = p => p >= .9995 && p < 1 ? '> 99.9%' : `${(100*p).toFixed(p < .1 || p > .9 ? 1 : 0)}%`
const show = (id, text) => { $(id).textContent = text; $(id).hidden = !text }

async function ask(path, blob) {
  let response
  try { response = await fetch(path, {method: 'POST', body: blob, headers: {'Content-Type': 'application/octet-stream'}}) }
  catch { throw new Error('fastbit does not answer. Is it still running?') }
  const found = await response.json().catch(() => ({error: `The server answered with status ${response.status}.`}))
  if (!response.ok) throw new Error(found.error)
  return found
}

// choosing an image

function choose(files, none) {
  const found = [...files]
  const file = found.find(f => f.type.startsWith('image/')) || found[0]
  if (!file) return fail(none)
  predict(file, found.length > 1 ? `${found.length} files; this is the answer for ${file.name}.` : '')
}

$('file').addEventListener('change', e => {
  if (e.target.files.length) choose(e.target.files)
  e.target.value = ''   // the same file can be chosen again
})
let over = 0
const mark = () => $('drop').classList.toggle('over', over > 0)
document.addEventListener('dragenter', e => { e.preventDefault(); over++; mark() })
document.addEventListener('dragleave', () => { over--; mark() })
document.addEventListener('dragover', e => e.preventDefault())
document.addEventListener('drop', e => {
  e.preventDefault()
  over = 0
  mark()
  choose(e.dataTransfer.files, 'That was not a file. Save the image first, then drop the file.')
})
document.addEventListener('paste', e => choose(e.clipboardData.files, 'The clipboard has no image.'))

// the webcam

const noCamera = {
  NotAllowedError: 'The browser does not let this page use the webcam. Allow it next to the address, or choose a file.',
  NotFoundError: 'No webcam was found. Choose a file instead.',
  NotReadableError: 'Another program uses the webcam. Close it, or choose a file.'}
$('camera').addEventListener('click', async () => {
  if (!navigator.mediaDevices) return fail('Browsers allow the webcam only on pages of this machine (localhost) and on https. Choose a file instead.')
  try { stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}}) }
  catch (e) { return fail(noCamera[e.name] || `The webcam cannot be used (${e.message}). Choose a file instead.`) }
  show('error', '')
  $('video').srcObject = stream
  $('camera-panel').hidden = false
  $('shoot').focus()
})
function stop() {
  if (stream) stream.getTracks().forEach(t => t.stop())
  stream = null
  $('camera-panel').hidden = true
}
$('stop').addEventListener('click', () => { stop(); $('camera').focus() })
$('shoot').addEventListener('click', () => {
  const video = $('video'), canvas = document.createElement('canvas')
  if (!video.videoWidth) return
  canvas.width = video.videoWidth
  canvas.height = video.videoHeight
  canvas.getContext('2d').drawImage(video, 0, 0)
  canvas.toBlob(blob => predict(blob), 'image/png')
})

// the answer

function fail(text) {
  show('error', text)
  show('status', '')
}

function preview(blob) {
  if (address) URL.revokeObjectURL(address)
  address = URL.createObjectURL(blob)
  shown = {}
  $('picture').hidden = false
  $('picture').className = ''
  $('picture').onerror = () => { $('picture').hidden = true }   // a format that the browser does not have
  $('picture').src = address
}

async function predict(blob, note = '') {
  if (blob.size > settings.max_bytes) return fail(`The file has ${(blob.size/1e6).toFixed(1)} MB, and ${(settings.max_bytes/1e6).toFixed(1)} MB are accepted.`)
  image = blob
  show('error', '')
  show('status', 'Predicting …')
  try {
    const answer = await ask('/predict', blob)
    if (image !== blob) return   // another one was chosen meanwhile
    preview(blob)
    draw(answer)
    show('status', note)
    await Promise.all([drawMap(blob, ''), drawSimilar(blob, answer)])
  } catch (e) {
    if (image !== blob) return
    for (const id of ['result', 'similar', 'json']) $(id).hidden = true
    fail(e.message)
  }
}

function draw(answer) {
  $('result').hidden = false
  show('map-words', '')
  $('map-switch').hidden = true
  const task = settings.task
  if (task === 'number') drawNumber(answer)
  else drawClasses(answer, task === 'labels')
  $('json').hidden = false
  $('json-text').textContent = JSON.stringify(answer, null, 2)
}

function drawClasses(answer, several) {
  const probs = answer.calibrated_probs || answer.probs
  const chosen = new Set(several ? answer.prediction : [answer.prediction])
  const sorted = Object.entries(probs).sort((a, b) => chosen.has(b[0]) - chosen.has(a[0]) || b[1] - a[1])
  const rows = sorted.slice(0, Math.max(several ? 8 : 5, chosen.size))
  const isUnsure = !several && answer.answer !== undefined && answer.answer !== answer.prediction
  if (several) $('verdict').textContent = answer.prediction.join(', ') || 'No label'
  else $('verdict').textContent = isUnsure ? 'Unsure' : answer.prediction
  const kind = answer.calibrated_probs ? 'calibrated confidence' : 'confidence'
  const counted = `Labels that reach their threshold (the line in each bar): ${answer.prediction.length} of ${settings.classes.length}.`
  const sets = answer.set ? ` Classes that contain the true one: ${answer.set.join(', ')}.` : ''
  show('sure', several ? counted : isUnsure ? '' : `${percent(probs[answer.prediction])} ${kind}.${sets}`)
  show('unsure', isUnsure ? `The most probable class is ${answer.prediction} (${percent(probs[answer.prediction])}), which is not enough `
    + `for a precision of ${100*settings.limits.min_precision}%.${sets}` : '')
  show('unlike', answer.unlike ? `Unlike the training images: ${percent(answer.p_value)} of the validation images are as far from them. `
    + 'Do not rely on this answer.' : '')
  $('bars').replaceChildren(...rows.map(([label, p]) => {
    const li = make('li', chosen.has(label) && !isUnsure ? 'chosen' : ''), row = make('div', 'row'), track = make('div', 'track'), fill = make('div', 'fill')
    row.append(name(label), make('span', '', percent(p)))
    fill.style.width = `${100*p}%`
    track.append(fill)
    if (several) {
      const tick = make('div', 'tick')
      tick.style.left = `${100*settings.ticks[settings.classes.indexOf(label)]}%`
      track.append(tick)
    }
    li.append(row, track)
    return li
  }))
  const rest = sorted.slice(rows.length)
  const sum = rest.reduce((s, [, p]) => s + p, 0)
  show('more', !rest.length ? '' : several ? `${rest.length} other labels are below their thresholds.`
    : `${rest.length} other ${rest.length === 1 ? 'class' : 'classes'} together: ${percent(sum)}`)
  drawOptions(rows.map(([label]) => label))
}

function drawNumber(answer) {
  const format = v => v.toLocaleString('en-US', {minimumFractionDigits: settings.digits, maximumFractionDigits: settings.digits})
  const {low, high} = settings.number, known = answer.low !== null
  $('verdict').textContent = answer.level && answer.level !== String(answer.prediction) ? answer.level : format(answer.prediction)
  const exact = answer.level ? `${settings.classes[0]} ${format(answer.prediction)}` : settings.classes[0]
  show('sure', known ? `${exact}; 90% interval ${format(answer.low)} to ${format(answer.high)}.` : `${exact}; the interval is unknown.`)
  const from = Math.min(low, answer.prediction, known ? answer.low : low), to = Math.max(high, answer.prediction, known ? answer.high : high)
  const at = v => `${100*(v - from)/(to - from)}%`
  const parts = [make('div', 'axis')]
  if (known) {
    const range = make('div', 'range')
    range.style.left = at(answer.low)
    range.style.width = `calc(${at(answer.high)} - ${at(answer.low)})`
    parts.push(range)
  }
  const dot = make('div', 'dot')
  dot.style.left = at(answer.prediction)
  parts.push(dot, make('span', 'end low', format(from)), make('span', 'end high', format(to)))
  $('line').replaceChildren(...parts)
  $('line').hidden = false
  show('line-words', (known ? 'For 90% of new images the true number lies in such an interval. ' : '') + `The training images go from ${format(low)} to ${format(high)}.`)
  for (const id of ['bars', 'more', 'unsure', 'unlike']) $(id).hidden = true
}

// the activation map

function drawOptions(labels) {
  $('map-of').replaceChildren(...labels.map(label => {
    const option = make('option', '', label)
    option.value = settings.classes.indexOf(label)
    return option
  }))
  $('map-of').hidden = labels.length < 2
}

function drawPicture() {
  const uri = $('map-on').checked && shown.map || shown.picture
  if (!uri) return
  $('picture').hidden = false
  $('picture').src = uri
  $('picture').className = shown.small ? 'small' : ''
  $('picture').alt = $('map-on').checked && shown.map ? 'The image with its activation map' : 'The image'
  show('map-words', $('map-on').checked || !shown.map ? shown.words : '')
}

async function drawMap(blob, output) {
  const found = await ask(output === '' ? '/map' : `/map?output=${output}`, blob)
  if (image !== blob) return
  shown = found
  $('map-switch').hidden = !found.map
  if (found.output !== null) $('map-of').value = found.output
  drawPicture()
}

$('map-on').addEventListener('change', drawPicture)
$('map-of').addEventListener('change', async e => {
  $('map-on').checked = true
  try { await drawMap(image, e.target.value) } catch (error) { fail(error.message) }
})

// training images

async function drawSimilar(blob, answer) {
  const found = await ask('/similar', blob)
  if (image !== blob) return
  $('similar').hidden = false
  show('similar-words', found.words)
  $('nearest').replaceChildren(...found.similar.map(o => {
    const figure = make('figure'), caption = make('figcaption'), label = make('b', '', o.label)
    let picture = make('div', 'gone')
    if (o.uri) {
      picture = make('img')
      picture.src = o.uri
      picture.alt = `A training image: ${o.label}`
    }
    label.dir = 'auto'
    caption.append(label, o.similarity.toFixed(3))
    figure.title = o.file
    figure.append(picture, caption)
    return figure
  }))
}
