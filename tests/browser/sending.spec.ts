import { words, type Chat } from './support/chat'
import { actionsOf, expect, hold, lose, test, testWithOwnRelay } from './support/test'

const messages = /\/messages$/
const conversations = /\/conversations$/

test('a text that is too long replaces nothing, and stays in the box', async ({ chat, page }) => {
  await chat.open('demo/length')
  await chat.ask('Original')
  await chat.ends('complete')
  await chat.questions.getByRole('button', { name: 'Edit' }).click()
  await chat.box.fill('x'.repeat(200_001))
  await chat.send.click()
  await expect(page.getByRole('alert')).toHaveText(/ 200001 .* 200000/)
  expect(await chat.box.inputValue()).toHaveLength(200_001)
  await expect(chat.questions).toHaveText([/^Original/])
  expect(await chat.stored()).toHaveLength(2)
  await chat.box.fill('Shorter')
  await chat.send.click()
  await expect(chat.questions).toHaveText([/^Shorter/])
  await chat.ends('complete')
  await expect(page.getByRole('alert')).toHaveCount(0)
})

testWithOwnRelay.describe('an edit that is refused', () => {
  testWithOwnRelay.use({ mayComplain: /422 \(Unprocessable/, settings: { MAX_MESSAGE_CHARS: '20' } })

  testWithOwnRelay('replaces nothing, and stays in the box', async ({ chat, page }) => {
    await chat.open('demo/length')
    await chat.ask('Original')
    await chat.ends('complete')
    await edit(chat, 'More than 20 characters')
    await expect(page.getByRole('alert')).toContainText(' 20 ')
    await expect(chat.questions).toHaveText([/^Original/])
    await expect(chat.box).toHaveValue('More than 20 characters')
    expect(await chat.stored()).toHaveLength(2)
  })
})

testWithOwnRelay('an edit in the middle of an answer is one request, which stops it', async ({ chat, page, relay }) => {
  await chat.open('demo/length')
  await chat.ask('First')
  await chat.ends('complete')
  const [, answer] = await chat.stored()
  await chat.pick('demo/echo')
  await chat.ask(`Repeat: ${words(250)}`)
  await chat.reaches(50)
  const actions = actionsOf(page)
  await edit(chat, 'Second')
  await expect(chat.questions).toHaveText([/^First/, /^Second/])
  await expect(chat.answer).toContainText('You asked: Second')
  await chat.ends('complete')
  expect((await chat.showsWhatIsStored()).content).toContain('You asked: Second')
  const stored = await chat.stored()
  expect(stored.map(({ role }) => role)).toEqual(['user', 'assistant', 'user', 'assistant'])
  expect(stored[1]!.id).toBe(answer!.id)
  expect(actions.filter((action) => !action.startsWith('GET'))).toEqual([`POST /conversations/${chat.id()}/messages`])
  expect(relay.generations(chat.id())).toBe(3)
  expect((await relay.counts()).replies_in_progress).toBe(0)
})

testWithOwnRelay('a question that is sent twice at once, by a double click or otherwise, is asked once', async ({ chat, page, relay }) => {
  await chat.open('demo/length')
  await chat.box.fill('Once?')
  await chat.send.dblclick()
  await chat.ends('complete')
  await chat.box.fill('And now?')
  await page.getByRole('form', { name: 'Ask' }).evaluate((form: HTMLFormElement) => {
    form.requestSubmit()
    form.requestSubmit()
  })
  await expect(chat.answers).toHaveCount(2)
  await chat.ends('complete')
  expect(await relay.counts()).toMatchObject({ conversations: 1, messages: 4 })
  expect(relay.generations(chat.id())).toBe(2)
})

test.describe('on a bad network', () => {
  test.use({ mayComplain: /net::ERR_|404 \(Not Found\)/ })
  testWithOwnRelay.use({ mayComplain: /net::ERR_|404 \(Not Found\)|50[234]/ })

  for (const [fate, isTaken] of [['before the relay has taken it', false], ['after the relay has taken it', true]] as const) {
    testWithOwnRelay(`a question that is lost ${fate} is asked once`, async ({ chat, page, relay }) => {
      const lost = isTaken ? { takenBy: relay } : {}
      await lose(page, 'POST', conversations, lost)
      await lose(page, 'POST', messages, { ...lost, times: 2 })
      await chat.open('demo/length')
      await chat.box.fill('Once?')
      await chat.box.press('Enter')
      await expect(page.getByRole('alert')).toContainText(/Can’t reach the relay.* Trying again …/)
      await expect(chat.questions).toHaveText([/^Once\?/])
      await chat.ends('complete')
      await chat.showsWhatIsStored()
      await expect(chat.box).toHaveValue('')
      await expect(page.getByRole('alert')).toHaveCount(0)
      expect(await relay.counts()).toMatchObject({ conversations: 1, messages: 2 })
      expect(relay.generations(chat.id())).toBe(1)

      await lose(page, 'POST', messages, lost)
      await edit(chat, 'Otherwise?')
      await expect(chat.questions).toHaveText([/^Otherwise\?/])
      await chat.ends('complete')
      await expect(chat.box).toHaveValue('')
      expect(await relay.counts()).toMatchObject({ conversations: 1, messages: 2 })
      expect(relay.generations(chat.id())).toBe(2)

      await lose(page, 'POST', messages, lost)
      await chat.box.fill('Otherwise?') // meant, this time
      await chat.box.press('Enter')
      await expect(chat.answers).toHaveCount(2)
      await chat.ends('complete')
      expect(relay.generations(chat.id())).toBe(3)
    })
  }

  for (const status of [502, 503, 504]) {
    testWithOwnRelay(`a question that a proxy answers with ${status} is asked once`, async ({ chat, page, relay }) => {
      let tries = 0
      await page.route(messages, async (route) => {
        if (route.request().method() !== 'POST' || tries++ > 0) return route.fallback()
        await relay.take(route.request())
        await route.fulfill({ status, contentType: 'text/html', headers: { 'Access-Control-Allow-Origin': '*' }, body: '<h1>Bad gateway</h1>' })
      })
      await chat.open('demo/length')
      await chat.ask('Once?')
      await chat.ends('complete')
      expect(tries).toBe(2)
      expect(await relay.counts()).toMatchObject({ conversations: 1, messages: 2 })
      expect(relay.generations(chat.id())).toBe(1)
    })
  }

  testWithOwnRelay('a question is given up after six tries, and is the same question when it is sent again', async ({ chat, page, relay }) => {
    await page.clock.install()
    await chat.openExisting({ default_model: 'demo/length' })
    await lose(page, 'POST', messages, { times: 6, takenBy: relay })
    const actions = actionsOf(page)
    const release = await hold(page, 'GET', messages) // or the page would find it
    await chat.box.fill('Once?')
    await chat.box.press('Enter')
    await expect(async () => {
      await page.clock.runFor(16_000)
      await expect(page.getByRole('alert')).toContainText('may not have been done', { timeout: 500 })
    }).toPass()
    expect(actions).toHaveLength(6)
    await expect(chat.box).toHaveValue('Once?')
    await chat.box.press('Enter')
    await expect(chat.box).toHaveValue('')
    release()
    await chat.ends('complete')
    expect(await relay.counts()).toMatchObject({ messages: 2 })
    expect(relay.generations(chat.id())).toBe(1)
  })

  test('a question whose arrival nobody heard of leaves the box', async ({ chat, page, relay }) => {
    await chat.open('demo/length')
    await chat.ask('Twice?')
    await chat.ends('complete')
    await lose(page, 'POST', messages, { times: 9, takenBy: relay })
    await chat.box.fill('Twice?')
    await chat.box.press('Enter')
    await expect(page.getByRole('alert')).toContainText('Trying again …')
    await chat.stop.click()
    await expect(chat.questions).toHaveCount(2)
    await expect(chat.box).toHaveValue('')
    await expect(page.getByRole('alert')).toHaveCount(0)
    expect(await chat.stored()).toHaveLength(4)
  })

  test('a question that never arrived stays in the box, although it was asked before, here and elsewhere', async ({ chat, page, relay }) => {
    const other = await relay.create({ title: 'Elsewhere', default_model: 'demo/length' })
    await relay.ask(other, 'Twice?')
    await chat.open('demo/length')
    await chat.ask('Twice?')
    await chat.ends('complete')
    await lose(page, 'POST', messages, { times: 9 })
    await chat.box.fill('Twice?')
    await chat.box.press('Enter')
    await expect(page.getByRole('alert')).toContainText('Trying again …')
    const read = page.waitForResponse((response) => messages.test(response.url()))
    await chat.stop.click()
    await expect(page.getByRole('alert')).toContainText('may not have been done')
    await read
    await expect(chat.box).toHaveValue('Twice?')
    await expect(chat.stop).toHaveCount(0)
    await page.goto(`/#${other}`)
    await expect(page.getByRole('heading', { name: 'Elsewhere' })).toBeVisible()
    await expect(chat.questions).toHaveText([/^Twice\?/])
    await expect(chat.box).toHaveValue('Twice?')
  })
})

test('what is typed while a question is on its way stays in the box', async ({ chat, page }) => {
  await chat.open('demo/length')
  const release = await hold(page, 'POST', messages)
  await chat.box.fill('First')
  await chat.box.press('Enter')
  await expect(page.getByText('Sending …')).toBeVisible()
  await chat.box.pressSequentially(' and more')
  release()
  await expect(chat.questions).toHaveText([/^First(?! and)/])
  await chat.ends('complete')
  await expect(chat.box).toHaveValue('First and more')
})

test('a conversation that comes into being late doesn’t take its reader out of another', async ({ chat, page, relay }) => {
  const other = await relay.create({ title: 'Another one', default_model: 'demo/length' })
  await chat.open('demo/length')
  const release = await hold(page, 'POST', conversations)
  await chat.box.fill('Late')
  await chat.box.press('Enter')
  await page.getByRole('link', { name: 'Another one' }).first().click()
  release()
  await page.getByRole('link', { name: 'Late', exact: true }).first().waitFor()
  expect(chat.id()).toBe(other)
})

test('a conversation that goes late doesn’t take its reader out of another', async ({ chat, page, relay }) => {
  const other = await relay.create({ title: 'A quiet place' })
  await chat.openExisting({ title: 'Going' })
  const row = page.getByRole('listitem').filter({ has: page.locator('[aria-current]') })
  await row.hover()
  await row.getByRole('button', { name: 'Delete Going' }).click()
  const release = await hold(page, 'DELETE', /\/conversations\/[^/]+$/)
  await page.getByRole('button', { name: 'Delete Going for good' }).click()
  await page.getByRole('link', { name: 'A quiet place' }).first().click()
  const deleted = page.waitForResponse((response) => response.request().method() === 'DELETE')
  release()
  await deleted
  await expect(page.getByRole('link', { name: 'Going', exact: true })).toHaveCount(0)
  expect(chat.id()).toBe(other)
})

test('a draft is there again after an edit, and no starter takes its place', async ({ chat, page }) => {
  await chat.open('demo/length')
  await chat.box.fill('A draft')
  await expect(page.getByRole('button', { name: 'Why is the sky blue?', exact: true })).toBeDisabled()
  await chat.ask('Original')
  await chat.ends('complete')
  await chat.box.fill('A draft')
  await chat.questions.getByRole('button', { name: 'Edit' }).click()
  await expect(chat.box).toHaveValue('Original')
  await chat.box.press('Escape')
  await expect(chat.box).toHaveValue('A draft')
  await chat.questions.getByRole('button', { name: 'Edit' }).click()
  await chat.box.fill('Edited')
  await chat.send.click()
  await expect(chat.questions).toHaveText([/^Edited/])
  await chat.ends('complete')
  await expect(chat.box).toHaveValue('A draft')
})

/** Puts this in place of the last question. */
async function edit(chat: Chat, text: string) {
  await chat.questions.last().getByRole('button', { name: 'Edit' }).click()
  await chat.box.fill(text)
  await chat.send.click()
}
