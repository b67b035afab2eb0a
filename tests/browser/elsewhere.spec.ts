import { expectGrowth, words } from './support/chat'
import { actionsOf, expect, requestsOf, test, testWithOwnRelay } from './support/test'

const question = `Repeat: ${words(150)}`

test('Back and Forward go from one conversation to another, whose answer has gone on meanwhile', async ({ chat, page }) => {
  await chat.open('demo/length')
  await chat.ask('First')
  await chat.ends('complete')
  await page.getByRole('button', { name: 'New conversation' }).click()
  await expect(chat.questions).toHaveCount(0)
  await chat.pick('demo/echo')
  await chat.ask(question)
  await chat.reaches(50)
  await page.goBack()
  await expect(page.getByRole('heading', { name: 'What would you like to know?' })).toBeVisible()
  await page.goBack()
  await expect(chat.questions).toHaveText([/^First/])
  await chat.ends('complete')
  await page.goForward()
  await page.goForward()
  await expect(chat.questions).toHaveText([/^Repeat/])
  await chat.reaches(50)
  await page.goto('about:blank')
  await page.goBack()
  await chat.reaches(50)
  const states = await chat.statesShown()
  await chat.ends('complete')
  expectGrowth(states, await chat.showsWhatIsStored())
})

test('an edit whose message another tab has replaced meanwhile is asked after it', async ({ chat, anotherTab }) => {
  await chat.open('demo/length')
  await chat.ask('Original')
  await chat.ends('complete')
  const other = await anotherTab()
  await other.page.goto(chat.page.url())
  for (const [tab, text] of [[chat, 'Mine'], [other, 'Yours']] as const) {
    await tab.questions.getByRole('button', { name: 'Edit' }).click()
    await tab.box.fill(text)
  }
  await other.send.click()
  await expect(chat.questions).toHaveText([/^Yours/])
  await chat.ends('complete')
  await expect(chat.box).toHaveValue('Mine')
  await chat.send.click()
  for (const tab of [chat, other]) {
    await expect(tab.questions).toHaveText([/^Yours/, /^Mine/])
    await expect(tab.answers).toHaveCount(2)
    await tab.ends('complete')
  }
  expect((await chat.stored()).map(({ role }) => role)).toEqual(['user', 'assistant', 'user', 'assistant'])
})

testWithOwnRelay('opening a conversation whose reply failed starts nothing, and trying again is one request', async ({ chat, page, relay, anotherTab }) => {
  await chat.open('demo/error')
  await chat.ask('Fail once')
  await chat.ends('failed')
  const requests = requestsOf(page)
  for (let load = 0; load < 2; load++) {
    await page.reload()
    await chat.ends('failed')
    await page.waitForLoadState('networkidle')
  }
  const other = await anotherTab()
  await other.page.goto(page.url())
  await other.ends('failed')
  expect(requests.filter((url) => url.includes('/stream'))).toEqual([])
  expect(relay.generations(chat.id())).toBe(1)
  const [, failed] = await chat.stored()

  const actions = actionsOf(page)
  await chat.answer.getByRole('button', { name: 'Try again' }).click()
  await expect.poll(async () => (await chat.stored())[1]?.id).not.toBe(failed!.id)
  await chat.ends('failed')
  expect(actions.filter((action) => !action.includes('join=true'))).toEqual([`GET /conversations/${chat.id()}/stream`])
  expect(relay.generations(chat.id())).toBe(2)
  expect(await relay.counts()).toMatchObject({ messages: 2 })
})

testWithOwnRelay('a question that another client has left unanswered is answered only when its reader wants it', async ({ chat, page, relay }) => {
  const id = await relay.create({ default_model: 'demo/length' })
  await relay.ask(id, 'Whenever you like')
  await page.goto(`/#${id}`)
  await expect(page.getByText('This question has no answer yet.')).toBeVisible()
  await expect(chat.stop).toHaveCount(0)
  await page.reload()
  const button = page.getByRole('button', { name: 'Get the answer' })
  await expect(button).toBeVisible()
  expect(relay.generations(id)).toBe(0)
  expect(await relay.counts()).toMatchObject({ messages: 1, replies_in_progress: 0 })
  await button.dblclick()
  await chat.ends('complete')
  await chat.showsWhatIsStored()
  await expect(button).toHaveCount(0)
  expect(relay.generations(id)).toBe(1)
})

testWithOwnRelay('tabs that nobody sees keep no connection from the one that is seen', async ({ chat, anotherTab }) => {
  const others = []
  const requests = []
  for (let connection = 0; connection < 6; connection++) {
    const other = await anotherTab()
    await other.openExisting({ default_model: 'demo/silent' })
    await other.ask('Anything?')
    await expect(other.answer).toHaveAttribute('data-status', 'streaming')
    await other.hide()
    others.push(other)
    requests.push(requestsOf(other.page))
  }
  await chat.open('demo/length')
  await chat.ask('Is there a connection left?') // the other tabs hear of it
  await chat.ends('complete')
  expect(requests.flat()).toEqual([])
  await others[0]!.hide(false)
  await others[0]!.stop.click()
  await others[0]!.ends('stopped')
})

testWithOwnRelay('a conversation older than the 200 that are listed has its title and its model, and can be listed', async ({ chat, relay }) => {
  await relay.create({ title: 'Even longer ago' })
  const id = await relay.create({ title: 'Long ago', default_model: 'demo/length' })
  await Promise.all(Array.from({ length: 200 }, (_, number) => relay.create({ title: `Newer ${number}` })))
  await chat.page.goto(`/#${id}`)
  await expect(chat.page.getByRole('heading', { name: 'Long ago' })).toBeVisible()
  await expect(chat.page.getByRole('link', { name: 'Long ago' })).toHaveAttribute('aria-current', 'page')
  await expect(chat.page.getByRole('link', { name: 'Even longer ago' })).toHaveCount(0)
  await chat.page.getByRole('button', { name: 'Show more' }).click()
  await expect(chat.page.getByRole('link', { name: 'Even longer ago' })).toBeVisible()
  await expect(chat.page.getByRole('button', { name: 'Show more' })).toHaveCount(0)
  await chat.pick('demo/echo')
  await chat.ask('Still there?')
  await expect(chat.answer).toHaveAccessibleName('Answer of demo/echo')
  await chat.ends('complete')
})

test.describe('a conversation deleted elsewhere', () => {
  test.use({ mayComplain: /404 \(Not Found\)/ })

  test('while it is answered leaves its text in the page', async ({ chat, relay }) => {
    await chat.open('demo/echo')
    await chat.ask(question)
    await chat.reaches(50)
    await relay.delete(chat.id())
    await expect(chat.notice).toContainText('The relay no longer has this conversation.')
    await expect(chat.stop).toHaveCount(0)
    expect((await chat.text()).length).toBeGreaterThanOrEqual(50)
    expect(`You asked: ${question}`).toContain(await chat.text())
    await chat.ask('And now?') // in a new one
    await expect(chat.questions).toHaveText([/^And now\?/])
    await chat.ends('complete')
    expect(await chat.stored()).toHaveLength(2)
  })
})
