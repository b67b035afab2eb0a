// node browser.mjs WHAT <targets.json: reads all of them at once in Chromium, each with the library that it names.
// WHAT: `read` in one page; `switch` away from the tab and back while each is read; `reload` the page meanwhile.
import { existsSync, readFileSync } from 'node:fs'
import { dirname, extname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { chromium } from 'playwright-core'

const here = dirname(fileURLToPath(import.meta.url))
const root = dirname(here)
const modules = {
  '@fortaine/fetch-event-source': 'lib/esm/index.js',
  '@microsoft/fetch-event-source': 'lib/esm/index.js',
  axios: 'dist/esm/axios.js',
  'eventsource-parser': 'dist/index.js',
  'extended-eventsource': 'dist/index.esm.js',
  'reconnecting-eventsource': 'build/esm/reconnecting-eventsource.js',
  'sse.js': 'lib/sse.js',
}
const imports = Object.fromEntries(Object.entries(modules).map(([name, file]) => [name, `/node_modules/${name}/${file}`]))
imports['event-source-polyfill'] = '/polyfill.mjs'
const html = `<!doctype html><title>clients</title>
<script src="/node_modules/event-source-polyfill/src/eventsource.js"></script>
<script type="importmap">${JSON.stringify({ imports })}</script>
<script type="module" src="/programs/page.mjs"></script>`
const types = { '.mjs': 'text/javascript', '.js': 'text/javascript' }

async function serve(route) {
  const path = new URL(route.request().url()).pathname
  if (path === '/') return route.fulfill({ body: html, contentType: 'text/html' })
  if (path === '/polyfill.mjs') return route.fulfill({ body: 'export const { EventSourcePolyfill } = window', contentType: 'text/javascript' })
  const file = [join(root, path), `${join(root, path)}.js`].find((file) => extname(file) && existsSync(file))
  return file ? route.fulfill({ path: file, contentType: types[extname(file)] }) : route.fulfill({ status: 404 })
}

async function open(context, told = () => {}) {
  const page = await context.newPage()
  page.on('pageerror', (error) => process.stderr.write(`${error}\n`))
  await page.route('http://localhost:5173/**', serve)
  await page.exposeFunction('tell', (line) => {
    process.stdout.write(`${line}\n`)
    told(line)
  })
  await load(page)
  return page
}

async function load(page) {
  await page.goto('http://localhost:5173/')
  await page.waitForFunction('window.read')
}

const read = (page, target, number) =>
  page.evaluate(([target, number]) => window.read(target, number), [target, number])

/** A page of its own, and a way to wait until its `streams`th stream has brought text. */
async function openWithText(context) {
  let [streams, texts, look] = [0, 0, () => {}]
  const page = await open(context, (line) => {
    if (line.includes('\tstart\t')) [streams, texts] = [streams + 1, 0]
    if (line.includes('"content"')) texts++
    look()
  })
  const text = (wanted) =>
    new Promise((resolve) => {
      look = () => streams >= wanted && texts && resolve()
      look()
    })
  return [page, text]
}

/** What a page sees when its tab is hidden, or comes back. */
const show = (page, visible) =>
  page.evaluate((visible) => {
    Object.defineProperty(document, 'hidden', { value: !visible, configurable: true })
    Object.defineProperty(document, 'visibilityState', { value: visible ? 'visible' : 'hidden', configurable: true })
    document.dispatchEvent(new Event('visibilitychange'))
  }, visible)

const ways = {
  async read(context, targets) {
    const page = await open(context)
    await Promise.all(targets.map((target, number) => read(page, target, number)))
  },

  async switch(context, targets) {
    const one = async (target, number) => {
      const [page, text] = await openWithText(context)
      const reading = read(page, target, number)
      for (let streams = 1; streams <= 3; streams++) {
        await text(streams)
        await show(page, false)
        await show(page, true)
      }
      await reading
    }
    await Promise.all(targets.map(one))
  },

  // The page that comes back asks as a page asks that opens a conversation.
  async reload(context, targets) {
    const one = async (target, number) => {
      const [page, text] = await openWithText(context)
      read(page, target, number).catch(() => {})
      await text(1)
      await load(page)
      process.stdout.write(`${number}\t=\tagain\n`)
      const path = target.url.replace(/(messages|stream)$/, 'stream?join=true')
      await read(page, { ...target, url: path, method: 'GET', headers: {}, body: undefined }, number)
    }
    await Promise.all(targets.map(one))
  },
}

const targets = JSON.parse(readFileSync(0, 'utf8'))
const executablePath = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(existsSync)
const args = ['--disable-gpu', '--disable-quic', '--disable-sync', '--no-sandbox']
args.push('--disable-features=LocalNetworkAccessChecks') // the page is made up, and counts as one of the internet
const browser = await chromium.launch({ executablePath, args })
try {
  await ways[process.argv[2]](await browser.newContext(), targets)
} finally {
  await browser.close()
}
