import { expectAccessible } from './support/axe'
import { expectGrowth, words } from './support/chat'
import { expect, hold, requestsOf, test, testWithOwnRelay } from './support/test'

test('the first answer streams in, word by word', async ({ chat, page }) => {
  await chat.open('demo/echo')
  const shown = chat.statesShown()
  await chat.ask(`Why is the sky blue?\n${words(250)}`)
  const states = await shown
  expect(states.length).toBeGreaterThan(3)
  await chat.ends('complete')
  const answer = await chat.showsWhatIsStored()
  expectGrowth(states, answer)
  expect(answer.content).toMatch(/^You asked: Why is the sky blue\?/)
  await expect(chat.answer).toContainText(/demo\/echo · \d+ tokens in, \d+ out · \$0\.000\d+/)
  await expect(page).toHaveTitle('Why is the sky blue? · Chat relay')
  await expect(page.getByRole('link', { name: 'Why is the sky blue?' }).first()).toHaveAttribute('aria-current', 'page')
})

testWithOwnRelay('StrictMode, which runs every effect twice, makes one call upstream', async ({ chat, relay }) => {
  await chat.open('demo/echo')
  await chat.ask('Once?')
  await chat.ends('complete')
  const answer = await chat.showsWhatIsStored()
  expect(answer.generation_id).toMatch(/^gen-/)
  expect(relay.generations(chat.id())).toBe(1)
  expect(await relay.counts()).toMatchObject({ conversations: 1, messages: 2, replies_in_progress: 0 })
})

test('stop keeps the text that has come', async ({ chat, page }) => {
  await chat.open('demo/long')
  await chat.ask('Everything, please')
  await chat.reaches(200)
  await chat.stop.click()
  await chat.ends('stopped')
  await expect(chat.answer).toContainText('stopped · demo/long')
  const text = await chat.text()
  expect(text.length).toBeGreaterThanOrEqual(200)
  const stored = (await chat.stored()).at(-1)
  expect(stored?.status).toBe('stopped')
  expect(stored?.content.replaceAll('\n\n', '').trimEnd()).toBe(text)
  await page.reload()
  await chat.ends('stopped')
  expect(await chat.text()).toBe(text)
})

test('stop also stops an answer that the page hasn’t seen begin', async ({ chat, page }) => {
  await chat.open('demo/long')
  const release = await hold(page, 'GET', /\/stream\?/)
  await chat.ask('Never mind')
  await chat.stop.click()
  await chat.ends('stopped')
  release()
  expect((await chat.stored()).map(({ status }) => status)).toEqual(['complete', 'stopped'])
})

testWithOwnRelay('a ping, after 15 s of silence, is no trouble and no text', async ({ chat, page, relay }) => {
  await chat.open('demo/silent')
  await chat.ask('Anything?')
  await expect(chat.answer).toHaveAttribute('data-status', 'streaming')
  const streams = requestsOf(page)
  const pings = await page.evaluate((path) => {
    const source = new EventSource(path)
    return new Promise<string>((resolve) => source.addEventListener('ping', ({ data }) => (source.close(), resolve(data))))
  }, `http://localhost:8001/conversations/${chat.id()}/stream?join=true`)
  expect(pings).toBe('{}')
  await expect(chat.notice).toHaveCount(0)
  expect(await chat.text()).toBe('')
  expect(streams).toHaveLength(1) // this one's: the page's own hasn't been opened again
  await chat.stop.click()
  await chat.ends('stopped')
  expect(relay.generations(chat.id())).toBe(1)
})

testWithOwnRelay('an answer that is over before the page has followed it is shown all the same', async ({ chat, page, relay }) => {
  await chat.openExisting({ default_model: 'demo/length' })
  const release = await hold(page, 'GET', /\/stream\?/)
  await chat.ask('Quick?')
  await expect.poll(async () => (await relay.counts()).replies_in_progress).toBe(0)
  release()
  await chat.ends('complete')
  await chat.showsWhatIsStored()
  await expect(chat.notice).toHaveCount(0)
  expect(relay.generations(chat.id())).toBe(1)
})

test('an edited question takes the place of the old one and of all that followed it', async ({ chat }) => {
  await chat.open('demo/length')
  await chat.ask('Original')
  await chat.ends('complete')
  await chat.ask('Follow-up')
  await expect(chat.answers).toHaveCount(2)
  await chat.ends('complete')

  await chat.questions.first().getByRole('button', { name: 'Edit' }).click()
  await expect(chat.box).toHaveValue('Original')
  await expect(chat.box).toBeFocused()
  await chat.box.fill('Edited')
  await chat.send.click()
  await expect(chat.questions).toHaveText([/^Edited/])
  await chat.ends('complete')
  await expect(chat.answers).toHaveCount(1)
  expect((await chat.showsWhatIsStored()).content).toContain('about “Edited”')
  expect((await chat.stored()).map(({ role }) => role)).toEqual(['user', 'assistant'])
  await expect(chat.box).toHaveValue('')
})

test('regenerate puts another answer in the place of the last one', async ({ chat, page }) => {
  await chat.open('demo/length')
  await chat.ask('Again?')
  await chat.ends('complete')
  const first = await chat.showsWhatIsStored()

  await chat.pick('demo/echo')
  await page.getByRole('button', { name: 'Regenerate', exact: true }).click()
  await expect(page.getByRole('article', { name: 'Answer of demo/echo' })).toBeVisible()
  await chat.ends('complete')
  await expect(chat.answers).toHaveCount(1)
  const second = await chat.showsWhatIsStored()
  expect(second.id).not.toBe(first.id)
  expect(await chat.stored()).toHaveLength(2)
})

test('an EventSource stays closed after the end: no request for ten seconds', async ({ chat, anotherTab, context }) => {
  const failing = await anotherTab()
  await failing.open('demo/error')
  await failing.ask('Fail, then be quiet')
  await failing.ends('failed')
  await chat.open('demo/length')
  await chat.ask('Answer, then be quiet')
  await chat.ends('complete')
  await chat.showsWhatIsStored()
  // Each tab has told the other of its question: whatever that made them read has been read by now.
  await Promise.all([chat, failing].map(({ page }) => page.waitForLoadState('networkidle')))
  const request = context.waitForEvent('request', { timeout: 10_000 }).then((request) => request.url())
  await expect(request).rejects.toThrow('Timeout')
})

test('an answer can’t run scripts, load pictures or link to code', async ({ chat, page }) => {
  const addresses = ['javascript:alert(1)', 'JaVaScRiPt:alert(1)', 'java&#x0A;script:alert(1)', 'data:text/html,x', '#elsewhere']
  const evil = [
    '<img src=x onerror="document.title=1"> <svg onload="document.title=1"> <b>bold</b> <a href="javascript:alert(1)">raw</a>',
    '![beacon](http://localhost:8001/beacon) ![code](javascript:alert(1)) <javascript:alert(1)> [ref]',
    ...addresses.map((address) => `[run](${address})`),
    '[ref]: javascript:alert(1)',
  ].join('\n\n')
  await chat.open('demo/echo')
  const requests = requestsOf(page)
  await chat.ask(evil)
  await chat.ends('complete')
  await expect(chat.answer.getByText('run', { exact: true })).toHaveCount(addresses.length)
  await expect(chat.answer.getByRole('link')).toHaveText(['Picture: beacon'])
  await expect(chat.answer.locator('.markdown').locator('a:not([href^="http"]), img, svg, b, script')).toHaveCount(0)
  await expect(page).not.toHaveTitle('1')
  expect(requests.filter((url) => url.includes('beacon') || url.endsWith('/x'))).toEqual([])
})

test('footnotes of two answers keep out of each other’s way', async ({ chat, page }) => {
  await chat.open('demo/echo')
  for (const answers of [1, 2]) {
    await chat.ask('Really?[^1]\n\n[^1]: No.')
    await expect(chat.answers).toHaveCount(answers)
    await chat.ends('complete')
    await expect(page.getByRole('heading', { name: 'Footnotes' })).toHaveCount(answers)
  }
  const ids = await page.locator('[id]').evaluateAll((elements) => elements.map(({ id }) => id))
  expect(ids).toEqual([...new Set(ids)])
})

test('emoji, right-to-left text and unusual line ends arrive one code point at a time and whole', async ({ chat }) => {
  await chat.open('demo/unicode')
  await chat.ask('👩‍👩‍👧‍👦')
  await chat.ends('complete')
  const stored = (await chat.stored()).at(-1)!.content
  const bare = (text: string) => text.replace(/\s|^- /gm, '')
  await expect.poll(async () => bare((await chat.answer.locator('> .markdown').textContent()) ?? '')).toBe(bare(stored))
})

test('a question costs at most four requests', async ({ chat, page }) => {
  const requests = (during: () => Promise<unknown>) => {
    const urls = requestsOf(page)
    return during().then(async () => {
      await page.waitForLoadState('networkidle')
      page.removeAllListeners('request')
      return urls.filter((url) => url.includes(':8001/')).map((url) => new URL(url).pathname.replace(/[0-9a-f]{32}/, '{id}'))
    })
  }
  await chat.open('demo/length')
  const ask = async (question: string) => {
    await chat.ask(question)
    await chat.ends('complete')
  }
  const [list, messages, stream] = ['/conversations', '/conversations/{id}/messages', '/conversations/{id}/stream']
  expect((await requests(() => ask('First'))).sort()).toEqual([list, list, messages, stream]) // made, and listed
  expect((await requests(() => ask('Second'))).sort()).toEqual([list, list, messages, stream]) // listed, and its cost
  await chat.showsWhatIsStored()
})

test('reasoning is open while it comes, and then says how long it took', async ({ chat, page }) => {
  await chat.open('demo/reasoning')
  await chat.ask('Think')
  const reasoning = chat.answer.locator('details')
  await expect(reasoning).toHaveAttribute('open')
  await expect(reasoning.locator('summary')).toHaveText('Thinking …')
  await chat.ends('complete')
  await expect(reasoning).not.toHaveAttribute('open')
  await expect(reasoning.locator('summary')).toHaveText(/^Thought for \d+ s$/)
  await page.reload()
  await expect(reasoning.locator('summary')).toHaveText('Reasoning')
})

test('code has colours, as it comes too', async ({ chat, page }) => {
  await chat.open('demo/echo')
  await chat.ask('Repeat:\n\n```python\ndef sky(): return "blue"\n```')
  await expect(chat.answer.locator('.hljs-keyword').first()).toHaveText('def')
  await chat.ends('complete')
  await expect(chat.answer.locator('figcaption')).toContainText('python')
  await expectAccessible(page)
})

test('the answers that others have replaced can be looked at while the page lives', async ({ chat, page }) => {
  await chat.open('demo/length')
  await chat.ask('Again?')
  await chat.ends('complete')
  const first = await chat.text()
  await chat.pick('demo/echo')
  await page.getByRole('button', { name: 'Regenerate', exact: true }).click()
  await expect(chat.answer).toHaveAccessibleName('Answer of demo/echo')
  await chat.ends('complete')
  const second = await chat.text()
  await expect(page.getByRole('group', { name: 'Versions of the answer' })).toContainText('2/2')
  await page.getByRole('button', { name: 'Earlier version' }).click()
  await expect(chat.answer).toHaveAccessibleName('Answer of demo/length')
  expect(await chat.text()).toBe(first)
  await expectAccessible(page)
  await page.getByRole('button', { name: 'Later version' }).click()
  await expect.poll(() => chat.text()).toBe(second)
  await page.reload()
  await chat.showsWhatIsStored()
  await expect(page.getByRole('group', { name: 'Versions of the answer' })).toHaveCount(0)
})
