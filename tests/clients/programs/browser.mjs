// node browser.mjs LIBRARY <targets.json: reads all of them at once in one page of Chromium.
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

const [library, what = 'read'] = process.argv.slice(2)
const targets = JSON.parse(readFileSync(0, 'utf8'))
const executablePath = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(existsSync)
const browser = await chromium.launch({ executablePath, args: ['--disable-gpu', '--disable-quic', '--disable-sync', '--no-sandbox', '--disable-features=LocalNetworkAccessChecks'] })
try {
  const page = await browser.newPage()
  page.on('pageerror', (error) => process.stderr.write(`${error}\n`))
  await page.route('http://localhost:5173/**', serve)
  let taken = () => {}
  await page.exposeFunction('tell', (line) => {
    process.stdout.write(`${line}\n`)
    if (line.includes('"content"')) taken()
  })
  const open = async () => {
    await page.goto('http://localhost:5173/')
    await page.waitForFunction('window.read')
  }
  const read = (target, number) =>
    page.evaluate(([library, target, number]) => window.read(library, target, number), [library, target, number])
  const text = () => new Promise((resolve) => (taken = resolve))

  if (what === 'read') {
    await open()
    await Promise.all(targets.map(read))
  } else if (what === 'switch') {
    // A tab that is hidden and comes back, twice: what a page sees of it.
    await open()
    const show = (hidden) =>
      page.evaluate((hidden) => {
        Object.defineProperty(document, 'hidden', { value: hidden, configurable: true })
        Object.defineProperty(document, 'visibilityState', { value: hidden ? 'hidden' : 'visible', configurable: true })
        document.dispatchEvent(new Event('visibilitychange'))
      }, hidden)
    const reading = read(targets[0], 0)
    for (let times = 0; times < 3; times++) {
      await text()
      await show(true)
      await show(false)
    }
    await reading
  } else if (what === 'reload') {
    // The page is loaded again in the middle of the answer, and asks as a page asks that opens a conversation.
    await open()
    read(targets[0], 0).catch(() => {})
    await text()
    await open()
    process.stdout.write('0\t=\tagain\n')
    await read(targets[1], 0)
  }
} finally {
  await browser.close()
}
