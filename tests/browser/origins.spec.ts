import { readFileSync } from 'node:fs'
import { withPage } from './support/origins'
import { root } from './support/paths'
import { expect, test, testWithOwnRelay } from './support/test'

/** The first example of docs/clients.md in this language that has this word in it. */
function clientExample(language: string, word: string): string {
  const blocks = readFileSync(`${root}docs/clients.md`, 'utf8').matchAll(/^```(\w+)\n(.*?)^```$/gms)
  const found = [...blocks].find(([, of, code]) => of === language && code?.includes(word))
  return found?.[2] ?? ''
}

test('the documented EventSource example gives the exact answer on a page of localhost:3000', async ({ page, relay }) => {
  const code = clientExample('js', 'EventSource')
  const { text, id } = await withPage(3000, async () => {
    await page.goto('http://localhost:3000')
    const stream = page.waitForRequest(/\/stream$/)
    const text = await page.evaluate(`${code}
      let text = ''
      ask('Does the example work?', (more) => (text += more)).then((end) => text + end.status)`)
    return { text, id: new URL((await stream).url()).pathname.split('/')[2]! }
  })
  const answer = (await relay.messages(id)).at(-1)
  expect(answer?.content).toContain('You asked: Does the example work?')
  expect(text).toBe(`${answer?.content}complete`)
})

testWithOwnRelay.describe('a page of an origin that isn’t allowed', () => {
  testWithOwnRelay.use({
    mayComplain: /CORS policy|net::ERR_|403 \(Forbidden\)/,
    settings: { OPENROUTER_BASE_URL: 'http://127.0.0.1:9/v1' }, // no demo, which lets every page of this machine call
  })

  for (const host of ['localhost', '127.0.0.1']) {
    testWithOwnRelay(`can neither read nor write, on another port of ${host}`, async ({ page, relay }) => {
      const id = await relay.create({ default_model: 'demo/echo' })
      await relay.ask(id, 'A secret?')
      const before = await relay.counts()
      const got = await withPage(0, async (port) => {
        await page.goto(`http://${host}:${port}`)
        return page.evaluate(attack, id)
      })
      expect(got).toEqual([])
      expect(await relay.counts()).toEqual(before)
      expect(relay.generations(id)).toBe(0)
      expect((await relay.messages(id)).map(({ content }) => content)).toEqual(['A secret?'])
    })
  }
})

/** What a page elsewhere would try; the names of what worked. */
async function attack(id: string): Promise<string[]> {
  const conversations = 'http://localhost:8001/conversations'
  const body = '{"content": "From elsewhere"}'
  const outcome = (source: EventTarget, good: string) =>
    new Promise<boolean>((resolve) => {
      source.addEventListener(good, () => resolve(true))
      source.addEventListener('error', () => resolve(false))
    })
  const fetched = (path: string, options?: RequestInit) => fetch(conversations + path, options).then(() => true, () => false)
  const loaded = (tag: 'img' | 'script', path: string) => {
    const element = document.createElement(tag)
    const result = outcome(element, 'load')
    element.src = conversations + path
    document.body.append(element)
    return result
  }
  const json = { 'Content-Type': 'application/json' }
  const tries = {
    read: fetched(''),
    'read messages': fetched(`/${id}/messages`),
    write: fetched('', { method: 'POST' }),
    'write JSON': fetched(`/${id}/messages`, { method: 'POST', headers: json, body }),
    'write text': fetched(`/${id}/messages`, { method: 'POST', body }),
    'write blindly': fetched(`/${id}/messages`, { method: 'POST', mode: 'no-cors', body }).then(() => false),
    delete: fetched(`/${id}`, { method: 'DELETE' }),
    stream: outcome(new EventSource(`${conversations}/${id}/stream`), 'start'),
    picture: loaded('img', `/${id}/stream`),
    script: loaded('script', `/${id}/messages`),
  }
  const worked = await Promise.all(Object.entries(tries).map(async ([name, works]) => ((await works) ? name : '')))
  return worked.filter(Boolean)
}
